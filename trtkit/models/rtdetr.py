"""RT-DETR: its backbone's layers, its encoder layer and its decoder (Zhao et al., 2023, arXiv:2304.08069).

Attribute names are those of Ultralytics' checkpoints. Tokens are (B, N, C), feature maps NCHW.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trtkit.models.layers import Conv, DWConv, gather_rows, reshape, reshape_like

__all__ = ["AIFI", "HGBlock", "HGStem", "LightConv", "ProjectionConv", "RTDETRDecoder"]


# The backbone, HGNetV2.


class LightConv(nn.Module):
    """A pointwise convolution without activation and a depthwise one."""

    def __init__(self, c1: int, c2: int, k: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv(c1, c2, act=False)
        self.conv2 = DWConv(c2, c2, k, act=nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """`x` through both."""
        return self.conv2(self.conv1(x))  # type: ignore[no-any-return]


class HGStem(nn.Module):
    """The first layers, from the image to a quarter of its size: a pooled and a convolved path.

    Args:
        c1: Channels in.
        cm: Channels inside.
        c2: Channels out.
    """

    def __init__(self, c1: int, cm: int, c2: int) -> None:
        super().__init__()
        self.stem1 = Conv(c1, cm, 3, 2, act=nn.ReLU())
        self.stem2a = Conv(cm, cm // 2, 2, 1, 0, act=nn.ReLU())
        self.stem2b = Conv(cm // 2, cm, 2, 1, 0, act=nn.ReLU())
        self.stem3 = Conv(2 * cm, cm, 3, 2, act=nn.ReLU())
        self.stem4 = Conv(cm, c2, act=nn.ReLU())
        self.pad, self.pool = nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features at a quarter of the image's size."""
        x = self.pad(self.stem1(x))
        convolved = self.stem2b(self.pad(self.stem2a(x)))
        return self.stem4(self.stem3(torch.cat((self.pool(x), convolved), 1)))  # type: ignore[no-any-return]


class HGBlock(nn.Module):
    """A chain of convolutions whose outputs are all concatenated, then squeezed and excited by two more.

    Args:
        c1: Channels in.
        cm: Channels of the chain.
        c2: Channels out.
        k: Kernel size of the chain.
        n: Length of the chain.
        lightconv: Whether the chain is of `LightConv`.
        shortcut: Residual connection, if the channels are equal.
    """

    def __init__(
        self, c1: int, cm: int, c2: int, k: int = 3, n: int = 6, lightconv: bool = False, shortcut: bool = False
    ) -> None:
        super().__init__()
        inputs = [c1, *[cm] * (n - 1)]
        self.m = nn.ModuleList(LightConv(c, cm, k) if lightconv else Conv(c, cm, k, act=nn.ReLU()) for c in inputs)
        self.sc = Conv(c1 + n * cm, c2 // 2, act=nn.ReLU())
        self.ec = Conv(c2 // 2, c2, act=nn.ReLU())
        self.add = bool(shortcut) and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """`x` through the block."""
        outputs = [x]
        for module in self.m:
            outputs.append(module(outputs[-1]))
        y: Tensor = self.ec(self.sc(torch.cat(outputs, 1)))
        return x + y if self.add else y


# The encoder.


class MultiheadAttention(nn.Module):
    """Attention with the weights of `torch.nn.MultiheadAttention`, traced without computing sizes in the graph."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        if c % heads:
            raise ValueError(f"{c} channels for {heads} heads")
        self.c, self.heads, self.scale = c, heads, (c // heads) ** -0.5
        self.in_proj_weight = nn.Parameter(torch.empty(3 * c, c))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * c))
        self.out_proj = nn.Linear(c, c)

    def forward(self, query: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attention of each token of `query` to all of them, over the tokens of `value`; all (B, N, C).

        Args:
            query: From which queries and keys are computed.
            value: From which values are computed.
            bias: Added to the logits, (B, 1, 1, N).
        """
        sizes = [2 * self.c, self.c]
        weights, biases = torch.split(self.in_proj_weight, sizes), torch.split(self.in_proj_bias, sizes)
        qk, v = (
            reshape(nn.functional.linear(source, weight, bias), 0, 0, -1, self.c // self.heads).transpose(1, 2)
            for source, weight, bias in zip((query, value), weights, biases, strict=True)
        )
        q, k = torch.split(qk, self.heads, 1)
        logits = (q * self.scale) @ k.transpose(-2, -1)
        attention = (logits if bias is None else logits + bias).softmax(-1)
        return self.out_proj(reshape((attention @ v).transpose(1, 2), 0, -1, self.c))  # type: ignore[no-any-return]


class AIFI(nn.Module):
    """Attention-based intra-scale feature interaction: a transformer encoder layer over a feature map.

    Args:
        c: Channels, a multiple of four.
        hidden: Width of the feed-forward network.
        heads: Attention heads.
    """

    def __init__(self, c: int, hidden: int = 2048, heads: int = 8) -> None:
        super().__init__()
        if c % 4:
            raise ValueError(f"{c} channels for a position embedding in four parts")
        self.c = c
        self.ma = MultiheadAttention(c, heads)
        self.fc1, self.fc2 = nn.Linear(c, hidden), nn.Linear(hidden, c)
        self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.act: nn.Module = nn.GELU()

    def embed_positions(self, x: Tensor) -> Tensor:
        """Sine and cosine of each position's row and column, (1, H * W, C), for a feature map (B, C, H, W)."""
        quarter = self.c // 4
        # In Python's doubles, rounded once: the frequencies are constants.
        omega = torch.tensor([10000 ** -(index / quarter) for index in range(quarter)], device=x.device)
        row = torch.arange(x.shape[2], device=x.device).to(x.dtype).reshape(-1, 1, 1) * omega
        column = torch.arange(x.shape[3], device=x.device).to(x.dtype).reshape(1, -1, 1) * omega
        # Broadcast sums need no shapes in the graph, unlike expand().
        row, column = row + 0 * column, 0 * row + column
        return torch.cat((row.sin(), row.cos(), column.sin(), column.cos()), 2).reshape(1, -1, self.c)

    def forward(self, x: Tensor) -> Tensor:
        """`x` after attention of every position to all others."""
        tokens = reshape(x, 0, 0, -1).transpose(1, 2)
        tokens = self.norm1(tokens + self.ma(tokens + self.embed_positions(x), tokens))
        tokens = self.norm2(tokens + self.fc2(self.act(self.fc1(tokens))))
        return reshape_like(tokens.transpose(1, 2), x)


# The decoder.


class ProjectionConv(nn.Sequential):
    """A pointwise convolution and a BatchNorm, without activation."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__(nn.Conv2d(c1, c2, 1, bias=False), nn.BatchNorm2d(c2))

    def fuse(self) -> None:
        """Fold the BatchNorm into the convolution, in place."""
        conv, bn = self
        if not (isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)):
            return
        assert bn.running_mean is not None
        assert bn.running_var is not None
        factor = torch.rsqrt(bn.running_var + bn.eps) * bn.weight
        conv.weight.mul_(factor.reshape(-1, 1, 1, 1))
        conv.bias = nn.Parameter(bn.bias - bn.running_mean * factor, requires_grad=False)
        self[1] = nn.Identity()


class MLP(nn.Module):
    """Fully connected layers with ReLU between them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(c1, c2) for c1, c2 in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """`x` through all layers."""
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else torch.relu(x))
        return x


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention: every query reads a few points of each feature map around its box.

    Source: Zhu et al., Deformable DETR, 2020, arXiv:2010.04159.
    """

    def __init__(self, c: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.c, self.levels, self.heads, self.points = c, levels, heads, points
        samples = heads * levels * points
        self.sampling_offsets = nn.Linear(c, 2 * samples)
        self.attention_weights = nn.Linear(c, samples)
        self.value_proj = nn.Linear(c, c)
        self.output_proj = nn.Linear(c, c)

    def forward(self, query: Tensor, boxes: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Values (B, Q, C) read at `boxes` (B, Q, 4), fractions of the image, from feature maps (B, C, H, W)."""
        samples = self.levels * self.points
        offsets = reshape(self.sampling_offsets(query), 0, -1, self.heads, samples, 2)
        weights = reshape(self.attention_weights(query), 0, -1, self.heads, samples).softmax(-1)
        count = int(query.shape[1])
        centers, sizes = torch.split(reshape(boxes, 0, -1, 1, 1, 4), [2, 2], 4)
        # An offset of `points` is half a box. grid_sample reads at -1 to 1, twice as long as a fraction.
        grids = (2 * centers - 1) + offsets * (sizes / self.points)
        grids = reshape(grids.transpose(1, 2), -1, count, samples, 2)
        weights = reshape(weights.transpose(1, 2), -1, 1, count, samples)
        # As a pointwise convolution the projection keeps the maps' shape, so that no size is computed in the graph.
        kernel = self.value_proj.weight.reshape(self.c, self.c, 1, 1)
        sampled = []
        for level, grid in zip(maps, torch.split(grids, self.points, 2), strict=True):
            value = reshape(nn.functional.conv2d(level, kernel, self.value_proj.bias), -1, self.c // self.heads, 0, 0)
            sampled.append(nn.functional.grid_sample(value, grid, "bilinear", "zeros", align_corners=False))
        output = (torch.cat(sampled, 3) * weights).sum(3)
        return self.output_proj(reshape(output, -1, self.c, count).transpose(1, 2))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention among queries, deformable attention to the feature maps, and a feed-forward network."""

    def __init__(self, c: int, levels: int, heads: int, points: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(c, heads)
        self.cross_attn = MSDeformAttn(c, levels, heads, points)
        self.linear1, self.linear2 = nn.Linear(c, hidden), nn.Linear(hidden, c)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(c) for _ in range(3))
        self.act: nn.Module = nn.ReLU()

    def forward(
        self, x: Tensor, position: Tensor, boxes: Tensor, maps: Sequence[Tensor], bias: Tensor | None
    ) -> Tensor:
        """Queries (B, Q, C) after one layer; `position` embeds their boxes, `bias` is that of their attention."""
        x = self.norm1(x + self.self_attn(x + position, x, bias))
        x = self.norm2(x + self.cross_attn(x + position, boxes, maps))
        return self.norm3(x + self.linear2(self.act(self.linear1(x))))  # type: ignore[no-any-return]


class RTDETRDecoder(nn.Module):
    """Boxes and class scores of queries, from several feature maps.

    The positions of highest score become queries, whose boxes each layer refines. Its output is `DETR_ROWS`, of `nq`
    rows: small images have fewer queries, of which more classes each are then among the highest scores.

    Args:
        nc: Number of classes.
        channels: Channels of each feature map.
        strides: Stride of each feature map, pixels.
        hd: Channels inside.
        nq: Most queries; fewer if the maps have fewer positions, except that a `dynamic` head fills up with score 0.
        ndp: Points that a query reads of each map with each head.
        nh: Attention heads.
        ndl: Layers.
        d_ffn: Width of the feed-forward networks.

    Attributes:
        dynamic: Whether the head is traced for images of any size: small ones have fewer than `nq` positions.
    """

    ANCHOR_SIZE = 0.05
    """Side of the boxes that queries of the finest map start from, as a fraction of the image's."""

    MARGIN = 0.01
    """Positions nearer than this to the image's border, as a fraction of its side, give no box of their own."""

    BORDER_LOGIT = 1e4
    """Their boxes' logit: its sigmoid is 1, as that of infinity, but FP16 can compute with it."""

    def __init__(
        self,
        nc: int,
        channels: Sequence[int],
        strides: Sequence[int],
        hd: int = 256,
        nq: int = 300,
        ndp: int = 4,
        nh: int = 8,
        ndl: int = 6,
        d_ffn: int = 1024,
    ) -> None:
        super().__init__()
        self.nc, self.strides, self.queries, self.dynamic = nc, tuple(strides), nq, False
        self.input_proj = nn.ModuleList(ProjectionConv(c, hd) for c in channels)
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(DecoderLayer(hd, len(channels), nh, ndp, d_ffn) for _ in range(ndl))
        # Read in training only, but checkpoints hold it.
        self.denoising_class_embed = nn.Embedding(nc, hd)
        self.query_pos_head = MLP(4, 2 * hd, hd)
        self.enc_output = nn.Sequential(nn.Linear(hd, hd), nn.LayerNorm(hd))
        self.enc_score_head = nn.Linear(hd, nc)
        self.enc_bbox_head = MLP(hd, hd, hd, 4)
        self.dec_score_head = nn.ModuleList(nn.Linear(hd, nc) for _ in range(ndl))
        self.dec_bbox_head = nn.ModuleList(MLP(hd, hd, hd, 4) for _ in range(ndl))

    def anchors(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes at all positions, as logits of fractions, (N, 4), and whether they are off the border, (N, 1)."""
        levels = []
        for index, y in enumerate(maps):
            row = (torch.arange(y.shape[3], device=y.device).to(y.dtype) + 0.5) / y.shape[3]
            column = ((torch.arange(y.shape[2], device=y.device).to(y.dtype) + 0.5) / y.shape[2]).reshape(-1, 1)
            # Broadcast sums need no shapes in the graph, unlike expand().
            size = 0 * row + 0 * column + self.ANCHOR_SIZE * 2.0**index
            levels.append(torch.stack((row + 0 * column, 0 * row + column, size, size), 2).reshape(-1, 4))
        boxes = torch.cat(levels)
        x, y, size = torch.split(((boxes > self.MARGIN) & (boxes < 1 - self.MARGIN))[:, :3], 1, 1)
        inside = x & y & size
        return torch.where(inside, (boxes / (1 - boxes)).log(), self.BORDER_LOGIT), inside

    def select_queries(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features (B, Q, C) and boxes (B, Q, 4) of the positions of highest score, and which exist (B, Q).

        None stands for all of them.
        """
        anchors, inside = self.anchors(maps)
        tokens = torch.cat([reshape(y, 0, 0, -1).transpose(1, 2) for y in maps], 1)
        features = self.enc_output(tokens * inside.to(tokens.dtype))
        best = self.enc_score_head(features).amax(-1)
        exists = None
        if self.dynamic:
            best = nn.functional.pad(best, (0, self.queries), value=-self.BORDER_LOGIT)
        count = self.queries if self.dynamic else min(self.queries, int(best.shape[1]))
        best, indices = best.topk(count, 1)
        if self.dynamic:
            # A query beyond the positions reads the first one; no other query attends to it.
            exists = (best > -self.BORDER_LOGIT / 2).to(best.dtype)
            indices = indices * exists.to(indices.dtype)
        queries = gather_rows(features, indices)
        return queries, (self.enc_bbox_head(queries) + anchors[indices]).sigmoid(), exists

    def decode(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes (center x, center y, width, height as fractions), (B, Q, 4), and class scores, (B, Q, nc)."""
        maps = [project(y) for project, y in zip(self.input_proj, x, strict=True)]
        queries, boxes, exists = self.select_queries(maps)
        bias = None if exists is None else reshape((exists - 1) * self.BORDER_LOGIT, -1, 1, 1, self.queries)
        for layer, refine in zip(self.decoder.layers, self.dec_bbox_head, strict=True):  # type: ignore[arg-type]
            queries = layer(queries, self.query_pos_head(boxes), boxes, maps, bias)
            boxes = (refine(queries) + logit(boxes)).sigmoid()
        scores = self.dec_score_head[-1](queries).sigmoid()
        return boxes, scores if exists is None else scores * exists.unsqueeze(2)

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        """The highest scores of all queries and classes in descending order: box, score, class; (B, Q, 6).

        A query may have several rows, of different classes.
        """
        boxes, scores = self.decode(x)
        count = min(self.queries, int(scores.shape[1]) * self.nc)
        top, places = torch.topk(reshape(scores, 0, -1), count, 1)
        # Both are positive, so that truncation is the floor, as a single node.
        chosen = torch.div(places, self.nc, rounding_mode="trunc")
        classes = (places - chosen * self.nc).to(top.dtype)
        return torch.cat((gather_rows(boxes, chosen), top.unsqueeze(2), classes.unsqueeze(2)), 2)


def logit(x: Tensor, smallest: float = 1e-5) -> Tensor:
    """The inverse of the sigmoid, finite for fractions of 0 and 1."""
    return (x.clamp(min=smallest) / (1 - x).clamp(min=smallest)).log()

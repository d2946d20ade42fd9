"""Blocks of single families: YOLOv8-ghost, YOLOv8-P6, YOLOv9, YOLO12 and ResNet; names are those of Ultralytics.

What several families share is in `trtkit.models.layers`; conventions are those of that module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trtkit.models.layers import C3, Bottleneck, C3k, Conv, DWConv, reshape, reshape_like

__all__ = [
    "C2",
    "ELAN1",
    "SPP",
    "SPPELAN",
    "A2C2f",
    "AAttn",
    "ABlock",
    "AConv",
    "ADown",
    "C3Ghost",
    "CBFuse",
    "CBLinear",
    "GhostBottleneck",
    "GhostConv",
    "RepBottleneck",
    "RepC3",
    "RepCSP",
    "RepConv",
    "RepNCSPELAN4",
    "ResNetBlock",
    "ResNetLayer",
]


class C2(nn.Module):
    """Cross-stage partial block of two convolutions around `n` bottlenecks (YOLOv8-P6)."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        self.c = int(c2 * e)
        self.cv1 = Conv(c1, 2 * self.c)
        self.cv2 = Conv(2 * self.c, c2)
        self.m = nn.Sequential(*(Bottleneck(self.c, self.c, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """The half through the bottlenecks and the other half, through the last convolution."""
        bottlenecks, plain = torch.split(self.cv1(x), [self.c, self.c], 1)
        return self.cv2(torch.cat((self.m(bottlenecks), plain), 1))  # type: ignore[no-any-return]


class SPP(nn.Module):
    """Spatial pyramid pooling by parallel max poolings of the sizes `k` (YOLOv3-SPP)."""

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c1 // 2)
        self.cv2 = Conv(c1 // 2 * (len(k) + 1), c2)
        self.m = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in k)

    def forward(self, x: Tensor) -> Tensor:
        """`x` and its pooled versions, through the last convolution."""
        y = self.cv1(x)
        return self.cv2(torch.cat([y, *(pool(y) for pool in self.m)], 1))  # type: ignore[no-any-return]


# Ghost layers (Han et al., 2019, arXiv:1911.11907).


class GhostConv(nn.Module):
    """A convolution for half of the channels, and a 5x5 depthwise convolution of those for the other half."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2 // 2, k, s, g=g, act=act)
        self.cv2 = Conv(c2 // 2, c2 // 2, 5, g=c2 // 2, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Both halves."""
        y = self.cv1(x)
        return torch.cat((y, self.cv2(y)), 1)


class GhostBottleneck(nn.Module):
    """Two ghost convolutions with a residual connection; stride 2 adds a depthwise convolution to both paths."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1) -> None:
        super().__init__()
        hidden = c2 // 2
        self.conv = nn.Sequential(
            GhostConv(c1, hidden),
            DWConv(hidden, hidden, k, s, act=False) if s == 2 else nn.Identity(),
            GhostConv(hidden, c2, act=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if s == 2:
            self.shortcut = nn.Sequential(DWConv(c1, c1, k, s, act=False), Conv(c1, c2, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """`x` through the block."""
        return self.conv(x) + self.shortcut(x)  # type: ignore[no-any-return]


class C3Ghost(C3):
    """A `C3` around ghost bottlenecks."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, 0, shortcut, g, e)
        hidden = int(c2 * e)
        self.m = nn.Sequential(*(GhostBottleneck(hidden, hidden) for _ in range(n)))


# Reparameterized convolutions (Ding et al., RepVGG, 2021, arXiv:2101.03697).


class RepConv(nn.Module):
    """The sum of a 3x3 and a 1x1 convolution, one 3x3 convolution after `fuse`."""

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 3,
        s: int = 1,
        p: int = 1,
        g: int = 1,
        d: int = 1,
        act: bool = True,
        bn: bool = False,
    ) -> None:
        super().__init__()
        if (k, p, d, bn) != (3, 1, 1, False):
            raise ValueError(f"RepConv of size {k}, padding {p}, dilation {d} and bn {bn}")
        self.conv: nn.Conv2d | None = None
        self.conv1: Conv | None = Conv(c1, c2, 3, s, 1, g, act=False)
        self.conv2: Conv | None = Conv(c1, c2, 1, s, 0, g, act=False)
        self.act: nn.Module = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The activated sum of both convolutions of `x`."""
        if self.conv is not None:
            return self.act(self.conv(x))  # type: ignore[no-any-return]
        assert self.conv1 is not None
        assert self.conv2 is not None
        return self.act(self.conv1(x) + self.conv2(x))  # type: ignore[no-any-return]

    def remove_bn(self) -> None:
        """Replace both convolutions by an empty one, to load weights that were fused before they were saved."""
        assert self.conv1 is not None
        shape = self.conv1.conv
        self.conv = nn.Conv2d(
            shape.in_channels,
            shape.out_channels,
            3,
            shape.stride[0],
            1,
            groups=shape.groups,
            device=shape.weight.device,
        )
        self.conv1 = self.conv2 = None

    def fuse(self) -> None:
        """Add both convolutions, in place."""
        if self.conv1 is None or self.conv2 is None:
            return
        self.conv1.fuse()
        self.conv2.fuse()
        conv, point = self.conv1.conv, self.conv2.conv
        assert conv.bias is not None
        assert point.bias is not None
        conv.weight.add_(nn.functional.pad(point.weight, (1, 1, 1, 1)))
        conv.bias.add_(point.bias)
        self.conv, self.conv1, self.conv2 = conv, None, None


class RepC3(nn.Module):
    """`n` reparameterized convolutions, added to a 1x1 convolution (RT-DETR)."""

    def __init__(self, c1: int, c2: int, n: int = 3, e: float = 1.0) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden)
        self.cv2 = Conv(c1, hidden)
        self.m = nn.Sequential(*(RepConv(hidden, hidden) for _ in range(n)))
        self.cv3: nn.Module = Conv(hidden, c2) if hidden != c2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both paths."""
        return self.cv3(self.m(self.cv1(x)) + self.cv2(x))  # type: ignore[no-any-return]


# YOLOv9 (Wang et al., 2024, arXiv:2402.13616): generalized ELAN.


class RepBottleneck(Bottleneck):
    """A `Bottleneck` whose first convolution is reparameterized."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, shortcut, g, e=e)
        self.cv1 = RepConv(c1, int(c2 * e))  # type: ignore[assignment]


class RepCSP(C3):
    """A `C3` around reparameterized bottlenecks."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, 0, shortcut, g, e)
        hidden = int(c2 * e)
        self.m = nn.Sequential(*(RepBottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))


class RepNCSPELAN4(nn.Module):
    """Efficient layer aggregation of two chained stages of `RepCSP` and a convolution.

    Args:
        c1: Channels in.
        c2: Channels out.
        c3: Channels of the first convolution, which are split in halves.
        c4: Channels of the stages.
        n: Bottlenecks of each `RepCSP`.
    """

    def __init__(self, c1: int, c2: int, c3: int, c4: int, n: int = 1) -> None:
        super().__init__()
        self.c = c3 // 2
        self.cv1 = Conv(c1, c3)
        self.cv2 = self.build_stage(self.c, c4, n)
        self.cv3 = self.build_stage(c4, c4, n)
        self.cv4 = Conv(c3 + 2 * c4, c2)

    def build_stage(self, c1: int, c2: int, n: int) -> nn.Module:
        """One of the two stages."""
        return nn.Sequential(RepCSP(c1, c2, n), Conv(c2, c2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Both halves and both stages, through the last convolution."""
        outputs = list(torch.split(self.cv1(x), [self.c, self.c], 1))
        outputs.append(self.cv2(outputs[-1]))
        outputs.append(self.cv3(outputs[-1]))
        return self.cv4(torch.cat(outputs, 1))  # type: ignore[no-any-return]


class ELAN1(RepNCSPELAN4):
    """A `RepNCSPELAN4` with one convolution a stage."""

    def build_stage(self, c1: int, c2: int, n: int) -> nn.Module:
        """One of the two stages."""
        return Conv(c1, c2, 3)


class AConv(nn.Module):
    """Downsampling by average pooling and a convolution."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2, 3, 2)
        self.pool = nn.AvgPool2d(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` at half its size."""
        return self.cv1(self.pool(x))  # type: ignore[no-any-return]


class ADown(nn.Module):
    """Downsampling by average pooling, then a convolution of one half and max pooling of the other."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.c = c1 // 2
        self.cv1 = Conv(self.c, c2 // 2, 3, 2)
        self.cv2 = Conv(self.c, c2 // 2)
        self.average, self.max = nn.AvgPool2d(2, 1), nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` at half its size."""
        one, other = torch.split(self.average(x), [self.c, self.c], 1)
        return torch.cat((self.cv1(one), self.cv2(self.max(other))), 1)


class SPPELAN(nn.Module):
    """Spatial pyramid pooling by three successive max poolings of size `k`, with `c3` channels inside."""

    def __init__(self, c1: int, c2: int, c3: int, k: int = 5) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c3)
        self.cv2, self.cv3, self.cv4 = (nn.MaxPool2d(k, 1, k // 2) for _ in range(3))
        self.cv5 = Conv(4 * c3, c2)

    def forward(self, x: Tensor) -> Tensor:
        """`x` and its pooled versions, through the last convolution."""
        outputs = [self.cv1(x)]
        for pool in (self.cv2, self.cv3, self.cv4):
            outputs.append(pool(outputs[-1]))
        return self.cv5(torch.cat(outputs, 1))  # type: ignore[no-any-return]


class CBLinear(nn.Module):
    """A convolution whose output channels are split into several feature maps, which `CBFuse` layers read."""

    def __init__(self, c1: int, c2s: Sequence[int], k: int = 1, s: int = 1, p: int | None = None, g: int = 1) -> None:
        super().__init__()
        self.sizes = list(c2s)
        self.conv = nn.Conv2d(c1, sum(c2s), k, s, k // 2 if p is None else p, groups=g)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The feature maps."""
        return torch.split(self.conv(x), self.sizes, 1)


class CBFuse(nn.Module):
    """The sum of feature maps, each enlarged to the size of the last one.

    Args:
        indices: Which map of each `CBLinear` is added.
        factors: By how much each of them is enlarged.
    """

    def __init__(self, indices: Sequence[int], factors: Sequence[int]) -> None:
        super().__init__()
        if len(indices) != len(factors):
            raise ValueError(f"{len(indices)} indices for {len(factors)} feature maps")
        self.indices = tuple(indices)
        self.resize = nn.ModuleList(
            nn.Upsample(scale_factor=factor) if factor > 1 else nn.Identity() for factor in factors
        )

    def forward(self, x: Sequence[Any]) -> Tensor:
        """The sum for the outputs of several `CBLinear` and, last, a feature map."""
        y: Tensor = x[-1]
        for maps, index, resize in zip(x, self.indices, self.resize, strict=False):
            y = y + resize(maps[index])
        return y


# YOLO12 (Tian et al., 2025, arXiv:2502.12524): residual ELAN with area attention.


class AAttn(nn.Module):
    """Self-attention within each of `area` horizontal bands, with a depthwise convolution of the values."""

    def __init__(self, c: int, heads: int, area: int = 1) -> None:
        super().__init__()
        self.heads, self.area, self.size = heads, area, c // heads
        width = self.size * heads
        self.scale = self.size**-0.5
        self.qkv = Conv(c, 3 * width, act=False)
        self.proj = Conv(width, c, act=False)
        self.pe = Conv(width, width, 7, g=width, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` after attention of every position to those of its band."""
        bands = (self.area,) if self.area > 1 else ()
        qkv = reshape(self.qkv(x), 0, self.heads, 3 * self.size, *bands, -1)
        q, k, v = torch.split(qkv, [self.size] * 3, 2)
        plain = v
        if bands:
            q, k, v = (part.transpose(2, 3) for part in (q, k, v))
        y = v @ ((q * self.scale).transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        if bands:
            y = y.transpose(2, 3)
        return self.proj(reshape_like(y, x) + self.pe(reshape_like(plain, x)))  # type: ignore[no-any-return]


class ABlock(nn.Module):
    """Area attention and a two-layer feed-forward network, each with a residual connection."""

    def __init__(self, c: int, heads: int, mlp_ratio: float = 1.2, area: int = 1) -> None:
        super().__init__()
        hidden = int(c * mlp_ratio)
        self.attn = AAttn(c, heads, area)
        self.mlp = nn.Sequential(Conv(c, hidden), Conv(hidden, c, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """`x` through the block."""
        x = x + self.attn(x)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class A2C2f(nn.Module):
    """Layer aggregation of `n` pairs of area attention blocks, or of `C3k` blocks.

    Args:
        c1: Channels in.
        c2: Channels out.
        n: Number of pairs or blocks.
        a2: Whether they are attention blocks.
        area: Bands of the attention.
        residual: Add the block's output, scaled for each channel, to its input; for attention only.
        mlp_ratio: Width of the feed-forward networks in terms of the block's.
        e: Width inside in terms of `c2`.
        g: Groups of the `C3k` blocks' convolutions.
        shortcut: Residual connections in the `C3k` blocks.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        a2: bool = True,
        area: int = 1,
        residual: bool = False,
        mlp_ratio: float = 2.0,
        e: float = 0.5,
        g: int = 1,
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        if hidden % 32:
            raise ValueError(f"{hidden} channels, no multiple of 32, for attention")
        self.cv1 = Conv(c1, hidden)
        self.cv2 = Conv((1 + n) * hidden, c2)
        self.gamma = nn.Parameter(torch.full((c2,), 0.01)) if a2 and residual else None
        self.m = nn.ModuleList(
            nn.Sequential(*(ABlock(hidden, hidden // 32, mlp_ratio, area) for _ in range(2)))
            if a2
            else C3k(hidden, hidden, 2, shortcut, g)
            for _ in range(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`x` through the block."""
        outputs = [self.cv1(x)]
        for module in self.m:
            outputs.append(module(outputs[-1]))
        y: Tensor = self.cv2(torch.cat(outputs, 1))
        return y if self.gamma is None else x + self.gamma.reshape(1, -1, 1, 1) * y


# ResNet (He et al., 2015, arXiv:1512.03385).


class ResNetBlock(nn.Module):
    """Three convolutions with a residual connection; the output has `e` times the inner channels."""

    def __init__(self, c1: int, c2: int, s: int = 1, e: int = 4) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2)
        self.cv2 = Conv(c2, c2, 3, s)
        self.cv3 = Conv(c2, e * c2, act=False)
        self.shortcut: nn.Module = nn.Identity()
        if s != 1 or c1 != e * c2:
            self.shortcut = nn.Sequential(Conv(c1, e * c2, 1, s, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """`x` through the block."""
        return torch.relu(self.cv3(self.cv2(self.cv1(x))) + self.shortcut(x))


class ResNetLayer(nn.Module):
    """A ResNet's first convolution and pooling, or `n` blocks of which the first has stride `s`."""

    def __init__(self, c1: int, c2: int, s: int = 1, is_first: bool = False, n: int = 1, e: int = 4) -> None:
        super().__init__()
        if is_first:
            self.layer = nn.Sequential(Conv(c1, c2, 7, 2), nn.MaxPool2d(3, 2, 1))
        else:
            blocks = [ResNetBlock(c1 if number == 0 else e * c2, c2, s if number == 0 else 1, e) for number in range(n)]
            self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """`x` through the layer."""
        return self.layer(x)  # type: ignore[no-any-return]

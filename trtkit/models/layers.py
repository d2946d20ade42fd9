"""Layers of YOLO models; attribute names are those of Ultralytics' checkpoints.

Shapes are NCHW. The layers are written for inference and tracing: no control flow depends on tensor values, and sizes
that may be dynamic are computed in the graph.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "ACTIVATIONS",
    "C2PSA",
    "C3",
    "CIB",
    "PSA",
    "SPPF",
    "Attention",
    "Bottleneck",
    "C2f",
    "C2fCIB",
    "C3k",
    "C3k2",
    "Concat",
    "Conv",
    "DWConv",
    "PSABlock",
    "RepVGGDW",
    "SCDown",
    "describe_activation",
    "gather_rows",
    "parse_activation",
    "reshape",
    "reshape_like",
]


ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in (
        "SiLU", "ReLU", "ReLU6", "LeakyReLU", "ELU", "CELU", "SELU", "GELU", "Hardswish", "Hardsigmoid", "Mish",
        "Sigmoid", "Tanh", "Identity",
    )
}  # fmt: skip

ACTIVATION_OPTIONS = {"LeakyReLU": ("negative_slope",), "ELU": ("alpha",), "CELU": ("alpha",), "GELU": ("approximate",)}
"""Attributes of activations that change their values; they are also their constructors' arguments, in order."""


def parse_activation(text: str) -> nn.Module | None:
    """The activation in a text such as "SiLU", "nn.LeakyReLU(0.1)" or "torch.nn.ELU(alpha=0.5, inplace=True)".

    Args:
        text: From an architecture or a checkpoint; it is parsed, not run.

    Returns:
        A new module; None if trtkit has no such activation or the text is none.
    """
    try:
        expression = ast.parse(text.strip(), mode="eval").body
        call = expression if isinstance(expression, ast.Call) else ast.Call(expression, [], [])
        name = re.sub(r"^(torch\.)?nn\.", "", ast.unparse(call.func))
        values = {
            str(option.arg): ast.literal_eval(option.value) for option in call.keywords if option.arg != "inplace"
        }
        options = ACTIVATION_OPTIONS.get(name, ())
        positional = [ast.literal_eval(value) for value in call.args]
        values.update(zip(options, positional, strict=False))
        # Behind its options an activation takes whether it works in place, which changes no value.
        if len(positional) > len(options) + 1 or not set(values) <= set(options):
            return None
        return ACTIVATIONS[name](**values) if all(map(_is_option, values.values())) else None
    except (KeyError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return None


def describe_activation(kind: str, attributes: Mapping[str, Any]) -> str:
    """The text that `parse_activation` reads.

    Args:
        kind: Class name, such as "LeakyReLU".
        attributes: The module's attributes, by name; a value that no option has is written as "...", which is not read.
    """
    options = [
        f"{name}={attributes[name]!r}" if _is_option(attributes[name]) else f"{name}=..."
        for name in ACTIVATION_OPTIONS.get(kind, ())
        if name in attributes
    ]
    return f"{kind}({', '.join(options)})" if options else kind


def _is_option(value: Any) -> bool:
    return (type(value) in (int, float) and math.isfinite(value)) or value in ("none", "tanh")


class _Reshape(torch.autograd.Function):
    """A reshape that is one ONNX node: 0 keeps a dimension, so that no size is computed in the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return x.reshape([x.shape[index] if size == 0 else size for index, size in enumerate(sizes)])

    @staticmethod
    def symbolic(g: Any, x: Any, sizes: tuple[int, ...]) -> Any:
        return g.op("Reshape", x, g.op("Constant", value_t=torch.tensor(sizes, dtype=torch.int64)))


class _ReshapeLike(torch.autograd.Function):
    """A reshape to another tensor's shape, as the two ONNX nodes Shape and Reshape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, like: Tensor) -> Tensor:
        return x.reshape(like.shape)

    @staticmethod
    def symbolic(g: Any, x: Any, like: Any) -> Any:
        return g.op("Reshape", x, g.op("Shape", like))


class _GatherRows(torch.autograd.Function):
    """Rows by index, as one ONNX node."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor) -> Tensor:
        return x.gather(1, indices.unsqueeze(2).expand(-1, -1, x.shape[2]))

    @staticmethod
    def symbolic(g: Any, x: Any, indices: Any) -> Any:
        axis = g.op("Constant", value_t=torch.tensor([2]))
        return g.op("GatherND", x, g.op("Unsqueeze", indices, axis), batch_dims_i=1)


def reshape(x: Tensor, *sizes: int) -> Tensor:
    """`x` with new sizes; 0 keeps the size at that position, -1 is inferred."""
    if torch.onnx.is_in_onnx_export():
        return _Reshape.apply(x, sizes)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]
    return x.reshape([x.shape[index] if size == 0 else size for index, size in enumerate(sizes)])


def reshape_like(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the shape of `like`."""
    if torch.onnx.is_in_onnx_export():
        return _ReshapeLike.apply(x, like)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]
    return x.reshape(like.shape)


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """The rows (B, K, C) of each image's `x` (B, N, C) at its `indices` (B, K)."""
    return _GatherRows.apply(x, indices)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]


class Conv(nn.Module):
    """Convolution, BatchNorm and activation; padded so that stride 1 keeps the size.

    Args:
        c1: Channels in.
        c2: Channels out.
        k: Kernel size, one number or (height, width).
        s: Stride.
        p: Padding; None takes half the kernel.
        g: Groups.
        d: Dilation.
        act: True for SiLU, False for none, or a module.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int | Sequence[int] = 1,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        d: int = 1,
        act: bool | nn.Module = True,
    ) -> None:
        super().__init__()
        kernel = (k, k) if isinstance(k, int) else (k[0], k[1])
        half = ((d * (kernel[0] - 1) + 1) // 2, (d * (kernel[1] - 1) + 1) // 2)
        self.conv = nn.Conv2d(c1, c2, kernel, s, half if p is None else p, dilation=d, groups=g, bias=False)
        self.bn: nn.BatchNorm2d | None = nn.BatchNorm2d(c2)
        self.act = act if isinstance(act, nn.Module) else nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The activated convolution of `x`."""
        y = self.conv(x)
        return self.act(y if self.bn is None else self.bn(y))  # type: ignore[no-any-return]

    def remove_bn(self) -> None:
        """Remove the BatchNorm without folding it, to load weights that were fused before they were saved."""
        self.conv.bias = nn.Parameter(self.conv.weight.new_empty(self.conv.out_channels))
        self.bn = None

    def fuse(self) -> None:
        """Fold the BatchNorm into the convolution, in place."""
        bn = self.bn
        if bn is None or bn.running_mean is None or bn.running_var is None:
            return
        factor = torch.rsqrt(bn.running_var + bn.eps)
        self.conv.weight.mul_((bn.weight * factor).reshape(-1, 1, 1, 1))
        self.conv.bias = nn.Parameter(bn.bias - bn.running_mean * factor * bn.weight, requires_grad=False)
        self.bn = None


class DWConv(Conv):
    """A depthwise `Conv`: as many groups as the greatest common divisor of both channel counts."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, d: int = 1, act: bool | nn.Module = True) -> None:
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), d=d, act=act)


class Concat(nn.Module):
    """Concatenation of feature maps."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        """The concatenated feature maps of `x`."""
        return torch.cat(tuple(x), self.dimension)


class Bottleneck(nn.Module):
    """Two convolutions, with a residual connection if `shortcut` is set and the channels are equal."""

    def __init__(
        self,
        c1: int,
        c2: int,
        shortcut: bool = True,
        g: int = 1,
        k: Sequence[int | tuple[int, int]] = (3, 3),
        e: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, k[0], 1)
        self.cv2 = Conv(hidden, c2, k[1], 1, g=g)
        self.add = bool(shortcut) and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """`x` through the block."""
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C2f(nn.Module):
    """Cross-stage partial block that concatenates the outputs of all of its `n` bottlenecks (YOLOv8)."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = False, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        self.c = int(c2 * e)
        self.cv1 = Conv(c1, 2 * self.c)
        self.cv2 = Conv((2 + n) * self.c, c2)
        self.m = nn.ModuleList(self.build_block(shortcut, g) for _ in range(n))

    def build_block(self, shortcut: bool, g: int) -> nn.Module:
        """One of the repeated blocks."""
        return Bottleneck(self.c, self.c, shortcut, g, e=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Both halves of the first convolution and every block's output, through the last convolution."""
        outputs = list(torch.split(self.cv1(x), [self.c, self.c], 1))
        for module in self.m:
            outputs.append(module(outputs[-1]))
        return self.cv2(torch.cat(outputs, 1))  # type: ignore[no-any-return]


class C3(nn.Module):
    """Cross-stage partial block of three convolutions around `n` bottlenecks."""

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        k: Sequence[int | tuple[int, int]] = (1, 3),
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden)
        self.cv2 = Conv(c1, hidden)
        self.cv3 = Conv(2 * hidden, c2)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, k, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """The half through the bottlenecks and the other half, through the last convolution."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))  # type: ignore[no-any-return]


class C3k(C3):
    """A `C3` whose bottlenecks have two kernels of size `k`."""

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5, k: int = 3
    ) -> None:
        super().__init__(c1, c2, n, shortcut, g, e, (k, k))


class C3k2(C2f):
    """A `C2f` around `C3k` blocks, or around plain bottlenecks of half the width (YOLO11)."""

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        c3k: bool = False,
        e: float = 0.5,
        attn: bool = False,
        g: int = 1,
        shortcut: bool = True,
    ) -> None:
        self.c3k, self.attn = c3k, attn
        super().__init__(c1, c2, n, shortcut, g, e)

    def build_block(self, shortcut: bool, g: int) -> nn.Module:
        """One of the repeated blocks."""
        if self.attn:
            return nn.Sequential(Bottleneck(self.c, self.c, shortcut, g), PSABlock(self.c, max(self.c // 64, 1)))
        if self.c3k:
            return C3k(self.c, self.c, 2, shortcut, g)
        return Bottleneck(self.c, self.c, shortcut, g)


class SPPF(nn.Module):
    """Spatial pyramid pooling by successive max poolings.

    Args:
        c1: Channels in.
        c2: Channels out.
        k: Size of the pooling window.
        n: Number of poolings; None for 3 behind an activated convolution, which YOLO26 has without activation.
        shortcut: Residual connection, if the channels are equal.
    """

    def __init__(self, c1: int, c2: int, k: int = 5, n: int | None = None, shortcut: bool = False) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c1 // 2, act=n is None)
        n = 3 if n is None else n
        self.cv2 = Conv(c1 // 2 * (n + 1), c2)
        self.m = nn.MaxPool2d(k, 1, k // 2)
        self.n = n
        self.add = bool(shortcut) and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """`x` and its pooled versions, through the last convolution."""
        outputs = [self.cv1(x)]
        for _ in range(self.n):
            outputs.append(self.m(outputs[-1]))
        y: Tensor = self.cv2(torch.cat(outputs, 1))
        return x + y if self.add else y


class Attention(nn.Module):
    """Self-attention over positions, with a depthwise convolution of the values as positional encoding."""

    def __init__(self, c: int, heads: int, ratio: float = 0.5) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = c // heads
        self.key_dim = int(self.head_dim * ratio)
        self.scale = self.key_dim**-0.5
        self.qkv = Conv(c, c + 2 * self.key_dim * heads, act=False)
        self.proj = Conv(c, c, act=False)
        self.pe = Conv(c, c, 3, g=c, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` after attention of every position to all others."""
        qkv = reshape(self.qkv(x), 0, self.heads, 2 * self.key_dim + self.head_dim, -1)
        q, k, v = torch.split(qkv, [self.key_dim, self.key_dim, self.head_dim], 2)
        attention = ((q * self.scale).transpose(-2, -1) @ k).softmax(-1)
        y = reshape_like(v @ attention.transpose(-2, -1), x) + self.pe(reshape_like(v, x))
        return self.proj(y)  # type: ignore[no-any-return]


class PSABlock(nn.Module):
    """Attention and a two-layer feed-forward network, each with a residual connection."""

    def __init__(self, c: int, heads: int, shortcut: bool = True) -> None:
        super().__init__()
        self.attn = Attention(c, heads)
        self.ffn = nn.Sequential(Conv(c, 2 * c), Conv(2 * c, c, act=False))
        self.add = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """`x` through the block."""
        x = x + self.attn(x) if self.add else self.attn(x)
        y: Tensor = self.ffn(x)
        return x + y if self.add else y


class C2PSA(nn.Module):
    """Cross-stage partial block of `n` attention blocks (YOLO11)."""

    def __init__(self, c1: int, c2: int, n: int = 1, e: float = 0.5) -> None:
        super().__init__()
        self.c = int(c1 * e)
        self.cv1 = Conv(c1, 2 * self.c)
        self.cv2 = Conv(2 * self.c, c2)
        self.m = nn.Sequential(*(PSABlock(self.c, max(self.c // 64, 1)) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """The half through attention and the other half, through the last convolution."""
        plain, attended = torch.split(self.cv1(x), [self.c, self.c], 1)
        return self.cv2(torch.cat((plain, self.m(attended)), 1))  # type: ignore[no-any-return]


class PSA(nn.Module):
    """`C2PSA` with one attention block, which is not a module of its own (YOLOv10)."""

    def __init__(self, c1: int, c2: int, e: float = 0.5) -> None:
        super().__init__()
        if c1 != c2:
            raise ValueError(f"PSA from {c1} to {c2} channels")
        self.c = int(c1 * e)
        self.cv1 = Conv(c1, 2 * self.c)
        self.cv2 = Conv(2 * self.c, c1)
        self.attn = Attention(self.c, max(self.c // 64, 1))
        self.ffn = nn.Sequential(Conv(self.c, 2 * self.c), Conv(2 * self.c, self.c, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """The half through attention and the other half, through the last convolution."""
        plain, attended = torch.split(self.cv1(x), [self.c, self.c], 1)
        attended = attended + self.attn(attended)
        attended = attended + self.ffn(attended)
        return self.cv2(torch.cat((plain, attended), 1))  # type: ignore[no-any-return]


# Layers of YOLOv10 (Wang et al., 2024, arXiv:2405.14458).


class SCDown(nn.Module):
    """Downsampling by a pointwise convolution for the channels and a depthwise one for the size."""

    def __init__(self, c1: int, c2: int, k: int, s: int) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2)
        self.cv2 = Conv(c2, c2, k, s, g=c2, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` at c2 channels and 1 / s of its size."""
        return self.cv2(self.cv1(x))  # type: ignore[no-any-return]


class RepVGGDW(nn.Module):
    """The sum of a 7x7 and a 3x3 depthwise convolution, one convolution after `fuse`."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = Conv(c, c, 7, g=c, act=False)
        self.conv1: Conv | None = Conv(c, c, 3, g=c, act=False)
        self.act: nn.Module = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """The activated sum of both convolutions of `x`."""
        y = self.conv(x)
        return self.act(y if self.conv1 is None else y + self.conv1(x))  # type: ignore[no-any-return]

    def remove_bn(self) -> None:
        """Remove the 3x3 convolution without adding it, to load weights that were fused before they were saved."""
        self.conv1 = None

    def fuse(self) -> None:
        """Add the 3x3 convolution to the 7x7 one, in place."""
        if self.conv1 is None:
            return
        for conv in (self.conv, self.conv1):
            conv.fuse()
        assert self.conv.conv.bias is not None
        assert self.conv1.conv.bias is not None
        self.conv.conv.weight.add_(nn.functional.pad(self.conv1.conv.weight, (2, 2, 2, 2)))
        self.conv.conv.bias.add_(self.conv1.conv.bias)
        self.conv1 = None


class CIB(nn.Module):
    """Compact inverted block: depthwise and pointwise convolutions by turns; with `lk` the middle one is 7x7."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, e: float = 0.5, lk: bool = False) -> None:
        super().__init__()
        wide = 2 * int(c2 * e)
        self.cv1 = nn.Sequential(
            Conv(c1, c1, 3, g=c1),
            Conv(c1, wide),
            RepVGGDW(wide) if lk else Conv(wide, wide, 3, g=wide),
            Conv(wide, c2),
            Conv(c2, c2, 3, g=c2),
        )
        self.add = bool(shortcut) and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """`x` through the block."""
        y: Tensor = self.cv1(x)
        return x + y if self.add else y


class C2fCIB(C2f):
    """A `C2f` around `CIB` blocks."""

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = False, lk: bool = False, g: int = 1, e: float = 0.5
    ) -> None:
        self.lk = lk
        super().__init__(c1, c2, n, shortcut, g, e)

    def build_block(self, shortcut: bool, g: int) -> nn.Module:
        """One of the repeated blocks."""
        return CIB(self.c, self.c, shortcut, 1.0, self.lk)

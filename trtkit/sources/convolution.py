"""The convolution that everything else is made of, with its BatchNorm, activation and folding; and reshapes.

Shapes are NCHW throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "Concat", "Conv", "DWConv", "reshape", "reshape_like"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name) for name in ("SiLU", "ReLU", "ReLU6", "Hardswish", "Mish", "Sigmoid", "Tanh", "Identity")
}


class _Reshape(torch.autograd.Function):
    """A reshape that ONNX writes as one node: 0 keeps a dimension as it is, so no size is computed in the graph."""

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


def reshape(x: Tensor, *sizes: int) -> Tensor:
    """`x` with new sizes, where 0 keeps the size at that position and -1 takes what is left."""
    if torch.onnx.is_in_onnx_export():
        return _Reshape.apply(x, sizes)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]
    return x.reshape([x.shape[index] if size == 0 else size for index, size in enumerate(sizes)])


def reshape_like(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the shape of `like`."""
    if torch.onnx.is_in_onnx_export():
        return _ReshapeLike.apply(x, like)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]
    return x.reshape(like.shape)


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

    def strip(self) -> None:
        """Become what `fuse` leaves behind, for weights that were fused before they were saved."""
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
    """A `Conv` with as many groups as both channel counts share."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, d: int = 1, act: bool | nn.Module = True) -> None:
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), d=d, act=act)


class Concat(nn.Module):
    """Feature maps side by side."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        """The feature maps of `x` as one."""
        return torch.cat(tuple(x), self.dimension)

"""Heads of YOLOv8 and YOLO11: from feature maps to decoded boxes, masks, keypoints, angles or classes.

Outputs are those of Ultralytics' exports: values per anchor, boxes as center x, center y, width and height in input
pixels, scores after the sigmoid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trtkit.models.layers import Conv, DWConv, reshape

__all__ = ["DFL", "OBB", "Classify", "Detect", "Pose", "Proto", "Segment"]


class DFL(nn.Module):
    """The expected value of a distribution over `bins` distances.

    Source: Li et al., Generalized Focal Loss, 2020, equation 5.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.conv = nn.Conv2d(bins, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Distances (B, 4, A) in grid cells from logits (B, 4 * bins, A)."""
        logits = reshape(x, 0, 4, self.bins, -1).transpose(1, 2)
        return reshape(self.conv(logits.softmax(1)), 0, 4, -1)


class Proto(nn.Module):
    """Mask prototypes at twice the size of the feature map."""

    def __init__(self, c1: int, hidden: int, c2: int) -> None:
        super().__init__()
        self.cv1 = Conv(c1, hidden, 3)
        self.upsample = nn.ConvTranspose2d(hidden, hidden, 2, 2)
        self.cv2 = Conv(hidden, hidden, 3)
        self.cv3 = Conv(hidden, c2)

    def forward(self, x: Tensor) -> Tensor:
        """Prototypes (B, c2, 2H, 2W) of a feature map (B, c1, H, W)."""
        return self.cv3(self.cv2(self.upsample(self.cv1(x))))  # type: ignore[no-any-return]


def _branch(c1: int, hidden: int, c2: int) -> nn.Sequential:
    return nn.Sequential(Conv(c1, hidden, 3), Conv(hidden, hidden, 3), nn.Conv2d(hidden, c2, 1))


def _depthwise_branch(c1: int, hidden: int, c2: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(DWConv(c1, c1, 3), Conv(c1, hidden)),
        nn.Sequential(DWConv(hidden, hidden, 3), Conv(hidden, hidden)),
        nn.Conv2d(hidden, c2, 1),
    )


class Detect(nn.Module):
    """Boxes and class scores from several feature maps.

    Args:
        nc: Number of classes.
        channels: Channels of each feature map.
        strides: Stride of each feature map, pixels.
        bins: Bins of the distance distributions.
        depthwise_scores: Whether the class branch is YOLO11's depthwise one; False for YOLOv8's.
    """

    def __init__(
        self, nc: int, channels: Sequence[int], strides: Sequence[int], bins: int = 16, depthwise_scores: bool = True
    ) -> None:
        super().__init__()
        self.nc, self.strides, self.bins = nc, tuple(strides), bins
        box = max(16, channels[0] // 4, bins * 4)
        score = max(channels[0], min(nc, 100))
        branch = _depthwise_branch if depthwise_scores else _branch
        self.cv2 = nn.ModuleList(_branch(c, box, 4 * bins) for c in channels)
        self.cv3 = nn.ModuleList(branch(c, score, nc) for c in channels)
        self.dfl = DFL(bins)

    def build_branches(self, channels: Sequence[int], values: int) -> nn.ModuleList:
        """Branches for `values` further numbers per anchor."""
        return nn.ModuleList(_branch(c, max(channels[0] // 4, values), values) for c in channels)

    def concat_branches(self, branches: nn.ModuleList, x: Sequence[Tensor], values: int) -> Tensor:
        """The branches' outputs of all feature maps, (B, values, A)."""
        return torch.cat([reshape(branch(y), 0, values, -1) for branch, y in zip(branches, x, strict=True)], 2)

    def distances(self, x: Sequence[Tensor]) -> Tensor:
        """Distances (B, 4, A) from the cell center to the left, top, right and bottom side, in cells."""
        return self.dfl(self.concat_branches(self.cv2, x, 4 * self.bins))  # type: ignore[no-any-return]

    def scores(self, x: Sequence[Tensor]) -> Tensor:
        """Class probabilities (B, nc, A)."""
        return self.concat_branches(self.cv3, x, self.nc).sigmoid()

    def anchors(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Centers of all grid cells, (1, 2, A) as x and y in cells, and their strides in pixels, (1, 1, A)."""
        levels = []
        for y, stride in zip(x, self.strides, strict=True):
            # Broadcast sums need no shapes in the graph, unlike expand().
            row = torch.arange(y.shape[3], device=y.device).to(y.dtype) + 0.5
            column = torch.arange(y.shape[2], device=y.device).to(y.dtype).reshape(-1, 1) + 0.5
            cells = torch.stack((row + 0 * column, 0 * row + column, 0 * row + 0 * column + stride))
            levels.append(cells.reshape(1, 3, -1))
        centers, strides = torch.split(torch.cat(levels, 2), [2, 1], 1)
        return centers, strides

    def decode_boxes(self, distances: Tensor, centers: Tensor, strides: Tensor) -> Tensor:
        """Boxes (B, 4, A) in pixels."""
        # Shifting the center by half a difference would be one operation less, but would differ from Ultralytics'
        # rounding by 6e-5 pixels.
        near, far = torch.split(distances, [2, 2], 1)
        low, high = centers - near, centers + far
        return torch.cat(((low + high) / 2, high - low), 1) * strides

    def forward(self, x: Sequence[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """Boxes and scores, (B, 4 + nc, A)."""
        return torch.cat((self.decode_boxes(self.distances(x), *self.anchors(x)), self.scores(x)), 1)


class Segment(Detect):
    """`Detect` with mask coefficients and mask prototypes."""

    def __init__(
        self,
        nc: int,
        masks: int,
        hidden: int,
        channels: Sequence[int],
        strides: Sequence[int],
        bins: int = 16,
        depthwise_scores: bool = True,
    ) -> None:
        super().__init__(nc, channels, strides, bins, depthwise_scores)
        self.masks = masks
        self.proto = Proto(channels[0], hidden, masks)
        self.cv4 = self.build_branches(channels, masks)

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes, scores and coefficients, (B, 4 + nc + masks, A), and prototypes (B, masks, H / 4, W / 4)."""
        boxes = self.decode_boxes(self.distances(x), *self.anchors(x))
        return torch.cat((boxes, self.scores(x), self.concat_branches(self.cv4, x, self.masks)), 1), self.proto(x[0])


class Pose(Detect):
    """`Detect` with keypoints.

    Args:
        nc: Number of classes.
        kpt_shape: Keypoints per box and values per keypoint: 2 for x and y, 3 with visibility.
        channels: Channels of each feature map.
        strides: Stride of each feature map, pixels.
        bins: Bins of the distance distributions.
        depthwise_scores: Whether the class branch is YOLO11's depthwise one.
    """

    def __init__(
        self,
        nc: int,
        kpt_shape: Sequence[int],
        channels: Sequence[int],
        strides: Sequence[int],
        bins: int = 16,
        depthwise_scores: bool = True,
    ) -> None:
        super().__init__(nc, channels, strides, bins, depthwise_scores)
        self.points, self.values = kpt_shape
        if self.values not in (2, 3):
            raise ValueError(f"{self.values} values per keypoint")
        self.cv4 = self.build_branches(channels, self.points * self.values)

    def decode_keypoints(self, x: Tensor, centers: Tensor, strides: Tensor) -> Tensor:
        """Keypoints (B, points * values, A): pixels, and visibility after the sigmoid."""
        x = reshape(x, 0, self.points, self.values, -1)
        decoded = (x[:, :, :2] * 2 + (centers - 0.5)) * strides
        if self.values == 3:
            decoded = torch.cat((decoded, x[:, :, 2:].sigmoid()), 2)
        return reshape(decoded, 0, self.points * self.values, -1)

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        """Boxes, scores and keypoints, (B, 4 + nc + points * values, A)."""
        centers, strides = self.anchors(x)
        keypoints = self.decode_keypoints(
            self.concat_branches(self.cv4, x, self.points * self.values), centers, strides
        )
        return torch.cat((self.decode_boxes(self.distances(x), centers, strides), self.scores(x), keypoints), 1)


class OBB(Detect):
    """`Detect` with oriented boxes, at angles between -45 and 135 degrees."""

    def __init__(
        self,
        nc: int,
        angles: int,
        channels: Sequence[int],
        strides: Sequence[int],
        bins: int = 16,
        depthwise_scores: bool = True,
    ) -> None:
        super().__init__(nc, channels, strides, bins, depthwise_scores)
        self.angles = angles
        if angles != 1:
            raise ValueError(f"{angles} angles per box")
        self.cv4 = self.build_branches(channels, angles)

    def decode_oriented_boxes(self, distances: Tensor, angle: Tensor, centers: Tensor, strides: Tensor) -> Tensor:
        """Boxes (B, 4, A) in pixels, from distances along the rotated axes."""
        near, far = torch.split(distances, [2, 2], 1)
        x, y = torch.split((far - near) / 2, [1, 1], 1)
        cos, sin = angle.cos(), angle.sin()
        shift = torch.cat((x * cos - y * sin, x * sin + y * cos), 1)
        return torch.cat((centers + shift, near + far), 1) * strides

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        """Boxes, scores and angles in radians, (B, 4 + nc + 1, A)."""
        angle = (self.concat_branches(self.cv4, x, self.angles).sigmoid() - 0.25) * math.pi
        return torch.cat(
            (self.decode_oriented_boxes(self.distances(x), angle, *self.anchors(x)), self.scores(x), angle), 1
        )


class Classify(nn.Module):
    """Class probabilities from one feature map."""

    HIDDEN = 1280

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1) -> None:
        super().__init__()
        self.conv = Conv(c1, self.HIDDEN, k, s, p, g)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(self.HIDDEN, c2)

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (B, nc)."""
        return self.linear(self.pool(self.conv(x)).flatten(1)).softmax(1)  # type: ignore[no-any-return]

"""Heads of YOLO models: from feature maps to decoded boxes, masks, keypoints, angles or classes.

Outputs are those of Ultralytics' exports: values per anchor, boxes as center x, center y, width and height in input
pixels, scores after the sigmoid; or rows of the highest scores, from the one-to-one branches of YOLO26 and YOLOv10.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trtkit.models.layers import Conv, DWConv, gather_rows, reshape

__all__ = [
    "DFL",
    "MAX_DET",
    "OBB",
    "OBB26",
    "Classify",
    "Detect",
    "Pose",
    "Pose26",
    "Proto",
    "Proto26",
    "Segment",
    "Segment26",
    "v10Detect",
]

MAX_DET = 300
"""Rows of a one-to-one head, by default."""


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


class Proto26(Proto):
    """Mask prototypes from the sum of all feature maps (YOLO26).

    Args:
        channels: Channels of each feature map.
        hidden: Channels inside.
        c2: Number of prototypes.
    """

    def __init__(self, channels: Sequence[int], hidden: int, c2: int) -> None:
        super().__init__(hidden, hidden, c2)
        self.feat_refine = nn.ModuleList(Conv(c, channels[0]) for c in channels[1:])
        self.feat_fuse = Conv(channels[0], hidden, 3)

    def forward(self, x: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """Prototypes (B, c2, 2H, 2W) of feature maps, the first (B, C, H, W), each next one of half its size."""
        y = x[0]
        for level, refine in enumerate(self.feat_refine, 1):
            y = y + nn.functional.interpolate(refine(x[level]), scale_factor=float(2**level), mode="nearest")
        return super().forward(self.feat_fuse(y))


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

    A head with one-to-one branches has every branch twice: trained with many predictions per object, for NMS, and with
    one (YOLOv10, Wang et al., 2024, arXiv:2405.14458). `end2end` selects which ones run.

    Args:
        nc: Number of classes.
        channels: Channels of each feature map.
        strides: Stride of each feature map, pixels.
        bins: Bins of the distance distributions; 1 for distances without distribution (YOLO26).
        depthwise_scores: Whether the class branch is YOLO11's depthwise one; False for YOLOv8's.
        one_to_one: Whether to build one-to-one branches.

    Attributes:
        end2end: Whether the one-to-one branches run and the output is their highest-scoring rows.
        max_det: Number of these rows.
        dynamic: Whether the head is traced for images of any size: small ones have fewer than `max_det` anchors.
    """

    BRANCHES: tuple[str, ...] = ("cv2", "cv3")
    """Names of the branches; "one2one_" precedes those of the one-to-one branches."""

    TRAINING_ONLY: tuple[str, ...] = ()
    """Names of modules in checkpoints that only training runs."""

    def __init__(
        self,
        nc: int,
        channels: Sequence[int],
        strides: Sequence[int],
        bins: int = 16,
        depthwise_scores: bool = True,
        one_to_one: bool = False,
    ) -> None:
        super().__init__()
        self.nc, self.strides, self.bins = nc, tuple(strides), bins
        self.end2end, self.max_det, self.dynamic = False, MAX_DET, False
        box = max(16, channels[0] // 4, bins * 4)
        score = max(channels[0], min(nc, 100))
        branch = _depthwise_branch if depthwise_scores else _branch
        self.cv2 = nn.ModuleList(_branch(c, box, 4 * bins) for c in channels)
        self.cv3 = nn.ModuleList(branch(c, score, nc) for c in channels)
        self.dfl = DFL(bins) if bins > 1 else None
        self.build_further_branches(channels)
        if one_to_one:
            for name in self.BRANCHES:
                setattr(self, f"one2one_{name}", copy.deepcopy(getattr(self, name)))

    def extra_repr(self) -> str:
        """What the head returns, which its layers do not show."""
        return f"end2end={self.end2end}, max_det={self.max_det}"

    def build_further_branches(self, channels: Sequence[int]) -> None:
        """Build the branches besides boxes and scores."""

    def build_branches(self, channels: Sequence[int], values: int) -> nn.ModuleList:
        """Branches for `values` further numbers per anchor."""
        return nn.ModuleList(_branch(c, max(channels[0] // 4, values), values) for c in channels)

    # Which branches there are, and which run.

    def has_branches(self, *, end2end: bool) -> bool:
        """Whether the head has one-to-one branches, or one-to-many branches."""
        return getattr(self, f"{'one2one_' if end2end else ''}cv2", None) is not None

    def remove_branches(self, *, end2end: bool) -> None:
        """Remove the one-to-one or the one-to-many branches; the others run."""
        for name in self.BRANCHES:
            setattr(self, f"{'one2one_' if end2end else ''}{name}", None)
        self.end2end = not end2end

    def branch(self, name: str) -> nn.ModuleList:
        """The branch of that name that runs, one-to-one or one-to-many."""
        return getattr(self, f"{'one2one_' if self.end2end else ''}{name}")  # type: ignore[no-any-return]

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """The weights of the branches that do not run."""
        for name in self.BRANCHES:
            branches = getattr(self, f"{'' if self.end2end else 'one2one_'}{name}", None)
            yield from branches.parameters() if branches is not None else ()

    # From feature maps to boxes and scores.

    def concat_branches(self, branches: nn.ModuleList, x: Sequence[Tensor], values: int) -> Tensor:
        """The branches' outputs of all feature maps, (B, values, A)."""
        return torch.cat([reshape(branch(y), 0, values, -1) for branch, y in zip(branches, x, strict=True)], 2)

    def distances(self, x: Sequence[Tensor]) -> Tensor:
        """Distances (B, 4, A) from the cell center to the left, top, right and bottom side, in cells."""
        distances = self.concat_branches(self.branch("cv2"), x, 4 * self.bins)
        return distances if self.dfl is None else self.dfl(distances)

    def scores(self, x: Sequence[Tensor]) -> Tensor:
        """Class probabilities (B, nc, A)."""
        return self.concat_branches(self.branch("cv3"), x, self.nc).sigmoid()

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
        """Boxes (B, 4, A) in pixels: center and size, or corners for rows."""
        # Shifting the center by half a difference would be one operation less, but would differ from Ultralytics'
        # rounding by 6e-5 pixels.
        near, far = torch.split(distances, [2, 2], 1)
        low, high = centers - near, centers + far
        return torch.cat((low, high) if self.end2end else ((low + high) / 2, high - low), 1) * strides

    def decode(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Boxes (B, 4, A), scores (B, nc, A) and, by the task, further values (B, extra, A)."""
        return self.decode_boxes(self.distances(x), *self.anchors(x)), self.scores(x)

    def detect(self, x: Sequence[Tensor]) -> Tensor:
        """Values per anchor (B, 4 + nc + extra, A), or the rows (B, max_det, 6 + extra) of the highest scores."""
        decoded = self.decode(x)
        return self.select_rows(*decoded) if self.end2end else torch.cat(decoded, 1)

    def select_rows(self, boxes: Tensor, scores: Tensor, *extra: Tensor) -> Tensor:
        """The highest scores of all anchors and classes in descending order: box, score, class, further values.

        An anchor may have several rows, of different classes. As in YOLOv10, the anchors of the highest scores are
        selected first and then the highest scores of these anchors.

        Args:
            boxes: (B, 4, A).
            scores: (B, nc, A).
            extra: (B, extra, A), if the task has further values.

        Returns:
            (B, rows, 6 + extra); at most as many rows as anchors, except that a `dynamic` head fills up with score 0.
        """
        best = scores.amax(1)
        count = self.max_det if self.dynamic else min(self.max_det, int(best.shape[1]))
        if self.dynamic:
            best = nn.functional.pad(best, (0, count), value=-1.0)
        best, anchors = torch.topk(best, count, 1)
        if self.dynamic:
            # A place beyond the anchors reads the first anchor, at score 0.
            exists = best > -0.5
            anchors = anchors * exists.to(anchors.dtype)
        rows = gather_rows(torch.cat((scores, boxes, *extra), 1).transpose(1, 2), anchors)
        candidates, values = rows[:, :, : self.nc], rows[:, :, self.nc :]
        if self.dynamic:
            candidates = candidates * exists.to(candidates.dtype).unsqueeze(2)
        top, places = torch.topk(reshape(candidates, 0, -1), count, 1)
        # Both are positive, so that truncation is the floor, as a single node.
        chosen = torch.div(places, self.nc, rounding_mode="trunc")
        classes = (places - chosen * self.nc).to(top.dtype)
        values = gather_rows(values, chosen)
        return torch.cat((values[:, :, :4], top.unsqueeze(2), classes.unsqueeze(2), values[:, :, 4:]), 2)

    def forward(self, x: Sequence[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """Boxes and scores, (B, 4 + nc, A), or rows (B, max_det, 6)."""
        return self.detect(x)


class v10Detect(Detect):  # noqa: N801 - the name in checkpoints
    """`Detect` of YOLOv10: always with one-to-one branches, distributions of 16 bins and the depthwise class branch."""

    def __init__(self, nc: int, channels: Sequence[int], strides: Sequence[int], *_: Any) -> None:
        super().__init__(nc, channels, strides, one_to_one=True)


class Segment(Detect):
    """`Detect` with mask coefficients and mask prototypes.

    Args:
        nc: Number of classes.
        masks: Number of mask coefficients and prototypes.
        hidden: Channels inside the prototypes' branch.
        channels: As in `Detect`, like all further arguments.
        *options: As in `Detect`.
    """

    BRANCHES: tuple[str, ...] = ("cv2", "cv3", "cv4")

    def __init__(
        self, nc: int, masks: int, hidden: int, channels: Sequence[int], strides: Sequence[int], *options: Any
    ) -> None:
        # Set before the modules, which are built from it.
        self.masks = masks
        super().__init__(nc, channels, strides, *options)
        self.proto: nn.Module = self.build_proto(channels, hidden)

    def build_further_branches(self, channels: Sequence[int]) -> None:
        """Build the branch of mask coefficients."""
        self.cv4 = self.build_branches(channels, self.masks)

    def build_proto(self, channels: Sequence[int], hidden: int) -> nn.Module:
        """Build the branch of mask prototypes."""
        return Proto(channels[0], hidden, self.masks)

    def prototypes(self, x: Sequence[Tensor]) -> Tensor:
        """Mask prototypes (B, masks, H / 4, W / 4)."""
        return self.proto(x[0])  # type: ignore[no-any-return]

    def decode(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Boxes, scores and mask coefficients."""
        return (*super().decode(x), self.concat_branches(self.branch("cv4"), x, self.masks))

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes, scores and coefficients, (B, 4 + nc + masks, A), or rows; and the prototypes."""
        return self.detect(x), self.prototypes(x)


class Segment26(Segment):
    """`Segment` with prototypes from all feature maps."""

    TRAINING_ONLY = ("proto.semseg",)

    def build_proto(self, channels: Sequence[int], hidden: int) -> nn.Module:
        """Build the branch of mask prototypes."""
        return Proto26(channels, hidden, self.masks)

    def prototypes(self, x: Sequence[Tensor]) -> Tensor:
        """Mask prototypes (B, masks, H / 4, W / 4)."""
        return self.proto(x)  # type: ignore[no-any-return]


class Pose(Detect):
    """`Detect` with keypoints.

    Args:
        nc: Number of classes.
        kpt_shape: Keypoints per box and values per keypoint: 2 for x and y, 3 with visibility.
        channels: As in `Detect`, like all further arguments.
        *options: As in `Detect`.
    """

    BRANCHES: tuple[str, ...] = ("cv2", "cv3", "cv4")

    def __init__(
        self, nc: int, kpt_shape: Sequence[int], channels: Sequence[int], strides: Sequence[int], *options: Any
    ) -> None:
        self.points, self.values = kpt_shape
        if self.values not in (2, 3):
            raise ValueError(f"{self.values} values per keypoint")
        super().__init__(nc, channels, strides, *options)

    def build_further_branches(self, channels: Sequence[int]) -> None:
        """Build the branch of keypoints."""
        self.cv4 = self.build_branches(channels, self.points * self.values)

    def raw_keypoints(self, x: Sequence[Tensor]) -> Tensor:
        """Keypoints before decoding, (B, points * values, A)."""
        return self.concat_branches(self.branch("cv4"), x, self.points * self.values)

    def shift_keypoints(self, x: Tensor, centers: Tensor) -> Tensor:
        """Keypoints in cells from the branch's values (B, points, 2, A)."""
        return x * 2 + (centers - 0.5)

    def decode_keypoints(self, x: Tensor, centers: Tensor, strides: Tensor) -> Tensor:
        """Keypoints (B, points * values, A): pixels, and visibility after the sigmoid."""
        x = reshape(x, 0, self.points, self.values, -1)
        decoded = self.shift_keypoints(x[:, :, :2], centers) * strides
        if self.values == 3:
            decoded = torch.cat((decoded, x[:, :, 2:].sigmoid()), 2)
        return reshape(decoded, 0, self.points * self.values, -1)

    def decode(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Boxes, scores and keypoints."""
        centers, strides = self.anchors(x)
        keypoints = self.decode_keypoints(self.raw_keypoints(x), centers, strides)
        return self.decode_boxes(self.distances(x), centers, strides), self.scores(x), keypoints


class Pose26(Pose):
    """`Pose` whose keypoints are offsets from the cell's center; their spread is predicted in training only."""

    BRANCHES: tuple[str, ...] = ("cv2", "cv3", "cv4", "cv4_kpts")
    TRAINING_ONLY = ("flow_model", "cv4_sigma", "one2one_cv4_sigma")

    def build_further_branches(self, channels: Sequence[int]) -> None:
        """Build the branch of keypoints."""
        hidden = max(channels[0] // 4, self.points * (self.values + 2))
        self.cv4 = nn.ModuleList(nn.Sequential(Conv(c, hidden, 3), Conv(hidden, hidden, 3)) for c in channels)
        self.cv4_kpts = nn.ModuleList(nn.Conv2d(hidden, self.points * self.values, 1) for _ in channels)

    def raw_keypoints(self, x: Sequence[Tensor]) -> Tensor:
        """Keypoints before decoding, (B, points * values, A)."""
        features = [branch(y) for branch, y in zip(self.branch("cv4"), x, strict=True)]
        return self.concat_branches(self.branch("cv4_kpts"), features, self.points * self.values)

    def shift_keypoints(self, x: Tensor, centers: Tensor) -> Tensor:
        """Keypoints in cells from the branch's values (B, points, 2, A)."""
        return x + centers


class OBB(Detect):
    """`Detect` with oriented boxes, at angles between -45 and 135 degrees.

    Args:
        nc: Number of classes.
        angles: Angles per box, 1.
        channels: As in `Detect`, like all further arguments.
        *options: As in `Detect`.
    """

    BRANCHES: tuple[str, ...] = ("cv2", "cv3", "cv4")

    def __init__(self, nc: int, angles: int, channels: Sequence[int], strides: Sequence[int], *options: Any) -> None:
        self.angles = angles
        if angles != 1:
            raise ValueError(f"{angles} angles per box")
        super().__init__(nc, channels, strides, *options)

    def build_further_branches(self, channels: Sequence[int]) -> None:
        """Build the branch of angles."""
        self.cv4 = self.build_branches(channels, self.angles)

    def angle(self, x: Sequence[Tensor]) -> Tensor:
        """Angles in radians, (B, 1, A)."""
        return (self.concat_branches(self.branch("cv4"), x, self.angles).sigmoid() - 0.25) * math.pi

    def decode_oriented_boxes(self, distances: Tensor, angle: Tensor, centers: Tensor, strides: Tensor) -> Tensor:
        """Boxes (B, 4, A) in pixels, from distances along the rotated axes."""
        near, far = torch.split(distances, [2, 2], 1)
        x, y = torch.split((far - near) / 2, [1, 1], 1)
        cos, sin = angle.cos(), angle.sin()
        shift = torch.cat((x * cos - y * sin, x * sin + y * cos), 1)
        return torch.cat((centers + shift, near + far), 1) * strides

    def decode(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Boxes as center and size, scores, and angles in radians."""
        angle = self.angle(x)
        return self.decode_oriented_boxes(self.distances(x), angle, *self.anchors(x)), self.scores(x), angle


class OBB26(OBB):
    """`OBB` whose branch gives the angle in radians itself."""

    def angle(self, x: Sequence[Tensor]) -> Tensor:
        """Angles in radians, (B, 1, A)."""
        return self.concat_branches(self.branch("cv4"), x, self.angles)


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

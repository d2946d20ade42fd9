"""verify(): an engine against ONNX Runtime on the same images, every output, at every batch of its profile."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from trtkit import backends
from trtkit.backends.base import HasPath, Runner
from trtkit.data import open_dataset, resize_to_input, to_input
from trtkit.data.images import sample_images
from trtkit.errors import EngineError
from trtkit.models.model import CLASS_SCORES, DENSE, ModelInfo
from trtkit.models.output_shapes import find_main_output
from trtkit.results import Provenance, Result
from trtkit.tasks import PostprocessSettings, get_task
from trtkit.tasks.base import BoxLayout, Detections, RawDetections, decode_outputs
from trtkit.tasks.nms import box_iou, rotated_iou, xywh_to_xyxy

if TYPE_CHECKING:
    import onnx
    import plotly.graph_objects as go
    import polars as pl
    from numpy.typing import NDArray

    from trtkit.data import DataSource, ImageTransform

__all__ = ["LIMITS", "OUTPUTS", "Limit", "Verification", "verify"]

OUTPUTS = ("scores", "logits", "probabilities", "boxes", "masks", "keypoints", "visibilities", "angles", "objects")
"""What is compared, by name in `Verification.images`:

- scores: scores of classes, absolute; probabilities: those of classify;
- logits: log(p / (1 - p)) of the highest-scoring objects or classes, which shows what a score near 0 or 1 hides;
- boxes: 1 - IoU of confident boxes, exact IoU of oriented ones;
- masks: mean absolute difference of mask probabilities within the box;
- keypoints: distance divided by the square root of the box's area; visibilities: absolute;
- angles: radians;
- objects: share of confident objects that the other side lacks, of outputs that are rows of selected objects.
"""


class Limit(NamedTuple):
    """The largest differences of a healthy engine in one output of one image.

    Attributes:
        largest: Of any value.
        mean: Of the mean over the compared objects.
    """

    largest: float
    mean: float


LIMITS: Mapping[str, Mapping[str, Limit]] = {
    "fp32": {
        "scores": Limit(0.02, 0.005),
        "logits": Limit(1.0, 0.2),
        "probabilities": Limit(0.01, 0.004),
        "boxes": Limit(0.1, 0.03),
        "masks": Limit(0.03, 0.01),
        "keypoints": Limit(0.05, 0.02),
        "visibilities": Limit(0.05, 0.02),
        "angles": Limit(0.05, 0.02),
    },
    "fp16": {
        "scores": Limit(0.03, 0.01),
        "logits": Limit(1.0, 0.2),
        "probabilities": Limit(0.015, 0.006),
        "boxes": Limit(0.2, 0.05),
        "masks": Limit(0.05, 0.02),
        "keypoints": Limit(0.1, 0.03),
        "visibilities": Limit(0.1, 0.03),
        "angles": Limit(0.1, 0.03),
    },
    "int8": {
        "scores": Limit(0.12, 0.05),
        "logits": Limit(3.0, 0.8),
        "probabilities": Limit(0.12, 0.05),
        "boxes": Limit(0.3, 0.1),
        "masks": Limit(0.15, 0.05),
        "keypoints": Limit(0.2, 0.08),
        "visibilities": Limit(0.2, 0.08),
        "angles": Limit(0.2, 0.08),
    },
}
"""By precision and output. Provisional: scores are what `tests/gpu` holds engines of TensorRT 8.6 on H100 and H200 to
(TF32, FP16, and INT8 that rounds at other places than ONNX Runtime), the rest is above what rounding on a CPU moves
(`tests/test_verification.py`); `benchmarks/verification.py` measures healthy engines on a GPU."""

LOST_OBJECTS = 0.05
"""Largest share of a batch's confident objects without a counterpart: NMS and top-k cut between nearly equal scores."""

CONFIDENT = 0.25
"""Boxes and what belongs to them are compared from this score on; below it their position is noise."""

ROWS = 50
"""Highest-scoring objects that are compared per image."""

TOP_CLASSES = 5
"""Classes of an image whose logits are compared in classify."""

NEAR_CUT = 0.1
"""Objects whose score exceeds the lowest one that a graph keeps by less may be missing on one side."""

MATCHED = 0.5
"""IoU from which an object of the same class is the counterpart."""

_ALL = PostprocessSettings(conf=0.001, iou=0.7)
_COLUMNS = ("batch", "path", "slot", "output", "objects", "difference", "mean", "shift")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification(Result):
    """The differences between an engine and ONNX Runtime, which ran the graph that the engine was built from.

    Attributes:
        verdict: "agrees", "differs", or "can't tell" where no image has an object of score `CONFIDENT`.
        precision: Of the engine.
        images: One row per image, batch and output of `OUTPUTS`: batch, path, slot (place in the batch), output,
            objects (how many were compared), difference (the largest), mean (over the objects), shift (the mean with
            signs, of scores, logits and probabilities), limit, mean_limit, differs.
        provenance: The engine, the reference and the images.
    """

    kind: ClassVar[str] = "verification"

    verdict: str
    precision: str
    images: pl.DataFrame
    provenance: Provenance

    def frame(self) -> pl.DataFrame:
        """One row per image, batch and output."""
        return self.images

    def plot(self) -> go.Figure:
        """The largest difference of each image as a share of its limit, by output."""
        from trtkit.plotting.engine import verification_figure

        return verification_figure(self.images)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """The frame, by name."""
        return {"images": self.images}

    def facts(self) -> Mapping[str, Any]:
        """Verdict and precision."""
        return {"verdict": self.verdict, "precision": self.precision}

    @classmethod
    def restore(
        cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance
    ) -> Verification:
        """The inverse of `tables` and `facts`."""
        return cls(images=tables["images"], provenance=provenance, **facts)

    def worst(self) -> dict[str, float]:
        """The largest difference by output."""
        return {
            name: float(self.images.filter(output=name)["difference"].to_numpy().max())
            for name in OUTPUTS
            if name in self.images["output"]
        }

    def __repr__(self) -> str:
        batches = ", ".join(map(str, self.images["batch"].unique().sort()))
        gaps = ", ".join(f"{name} {value:.4f}" for name, value in self.worst().items())
        where = f"; {self.describe_differences()}" if self.images["differs"].any() else ""
        return (
            f"Verification({self.verdict}: {self.provenance.runner}, {self.precision}, batch {batches}; "
            f"largest differences: {gaps}{where})"
        )

    def describe_differences(self) -> str:
        """Which outputs differ on which images, at which batches; the images' names, at most three."""
        bad = self.images.filter("differs")
        names = [Path(path).name for path in bad["path"].unique(maintain_order=True)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        outputs = ", ".join(name for name in OUTPUTS if name in bad["output"])
        count = f"{len(names)} of {self.images['path'].n_unique()} images"
        batches = ", ".join(map(str, bad["batch"].unique().sort()))
        return f"{outputs} beyond the limits on {count} ({', '.join(names[:3])}{more}) at batch {batches}"


def verify(
    artifact: str | Path | HasPath | Runner,
    data: DataSource | None = None,
    *,
    onnx: str | Path | Runner | onnx.ModelProto | None = None,
    eval_images: int = 16,
    device: str | int | None = None,
) -> Verification:
    """Compare an engine with ONNX Runtime on images, at the smallest, optimal and largest batch of its profile.

    The reference runs the graph of the engine's own precision (typed FP16, or Q/DQ): what FP16 or INT8 itself costs is
    in both, so that limits can be close. `evaluate` and `compare` measure that cost.

    Args:
        artifact: The engine: a file, what `export` returned, or an open runner.
        data: Images, as `evaluate` or `calibrate` take them; None takes the embedded set.
        onnx: The graph that the engine was built from; None takes the `.onnx` file of the same name beside the engine.
        eval_images: Maximum number of images.
        device: Of the engine.

    Returns:
        The differences and a verdict.

    Raises:
        EngineError: There is no ONNX file, it holds another model or precision, or the run failed.
        CapabilityError: The engine does not run on this machine.
        DataError: The images can't be read.
    """
    with contextlib.ExitStack() as stack:
        engine = artifact if isinstance(artifact, Runner) else None
        if engine is None:
            graph = onnx if onnx is not None else _find_onnx(Path(getattr(artifact, "path", artifact)))  # type: ignore[arg-type]
            engine = stack.enter_context(backends.open(artifact, device=device))  # type: ignore[arg-type]
        else:
            graph = onnx if onnx is not None else _find_onnx(engine.path)
        reference = graph if isinstance(graph, Runner) else stack.enter_context(backends.open(graph))
        _check_pair(engine, reference)
        return _compare(engine, reference, data, eval_images)


def _find_onnx(path: Path | None) -> Path:
    beside = path.with_suffix(".onnx") if path is not None else None
    if beside is None or not beside.is_file():
        raise EngineError(
            f"verify {path or 'an engine'}",
            "the ONNX graph it was built from is not beside it",
            "pass onnx=, or export again with the same settings and format='onnx'",
            code="verify-onnx-missing",
            path=str(path),
        )
    return beside


def _check_pair(engine: Runner, reference: Runner) -> None:
    """Raise an error where the ONNX graph is not the one that the engine was built from."""
    asked = f"verify {engine.path or engine.name}"
    passport = engine.passport
    if passport is not None and passport.recipe.get("implicit"):
        raise EngineError(
            asked,
            "TensorRT's own calibrator chose its scales, which no ONNX graph holds",
            "measure its accuracy with evaluate instead",
            code="verify-implicit",
            path=str(engine.path),
        )
    for name, one, other in (
        ("precision", engine.precision, reference.precision),
        ("task", engine.info.task, reference.info.task),
        ("class names", dict(engine.info.names), dict(reference.info.names)),
        ("output format", engine.info.output_format.name, reference.info.output_format.name),
        ("input size", engine.imgsz, engine.imgsz if reference.dynamic else reference.imgsz),
        # Engines of others have no hash of the model, only one of the file.
        ("model hash", engine.hash if passport else reference.hash, reference.hash),
    ):
        if one != other:
            raise EngineError(
                asked,
                f"its {name} differs from that of the ONNX graph: {one}, {other}",
                "pass the ONNX graph that it was built from",
                code="verify-other-onnx",
                name=name,
            )


def _compare(engine: Runner, reference: Runner, data: DataSource | None, eval_images: int) -> Verification:
    import polars as pl

    from trtkit import demo
    from trtkit.data import read_image

    task = engine.info.task
    source = data if data is not None else demo.data_path("classify" if task == "classify" else "detect")
    # Images of the embedded set serve tasks that have none: labels are not read.
    opened = task if data is not None or task == "classify" else "detect"
    dataset = open_dataset(source, task=opened, channels=engine.info.channels, needs_labels=False)
    split = "val" if dataset.labeled else dataset.default_split
    paths = sample_images(dataset.images(split), count=eval_images)
    resized = [
        resize_to_input(read_image(path, engine.info.channels), engine.imgsz, engine.info.preprocess) for path in paths
    ]
    feeds = to_input([image for image, _ in resized], engine.info.preprocess)
    expected = [outputs for _, _, outputs in _run(reference, feeds, reference.batch or 1)][: len(paths)]
    rows: list[tuple[Any, ...]] = []
    for batch in engine.profile_batches:
        for index, slot, outputs in _run(engine, feeds, batch):
            place = (batch, str(paths[index]), slot)
            rows += ((*place, *row) for row in _measure(engine.info, outputs, expected[index], resized[index][1]))
    frame = _add_limits(pl.DataFrame(rows, schema=_COLUMNS, orient="row"), engine.precision)
    evidence = bool((frame.filter(~pl.col("output").is_in(["scores", "logits"]))["objects"] > 0).any())
    return Verification(
        verdict="differs" if frame["differs"].any() else "agrees" if evidence else "can't tell",
        precision=engine.precision,
        images=frame,
        provenance=Provenance(
            model_hash=engine.hash,
            data_hash=dataset.hash_images(paths),
            runner=engine.name,
            settings={"reference": reference.name, "eval_images": eval_images, "data": str(source)},
        ),
    )


def _add_limits(frame: pl.DataFrame, precision: str) -> pl.DataFrame:
    """The frame with the limits and whether a row is beyond them; NaN of a broken engine always is."""
    import polars as pl

    limits = {name: LIMITS[precision].get(name) for name in OUTPUTS}
    for index, column in enumerate(("limit", "mean_limit")):
        known = {name: limit[index] if limit is not None else math.inf for name, limit in limits.items()}
        frame = frame.with_columns(pl.col("output").replace_strict(known, return_dtype=pl.Float64).alias(column))
    lost = (pl.col("difference") * pl.col("objects")).sum().over("batch", "output")
    allowed = (pl.col("objects").sum().over("batch", "output") * LOST_OBJECTS).round()
    healthy = (
        pl.when(pl.col("output") == "objects")
        .then((pl.col("difference") == 0) | (lost <= allowed))
        .otherwise((pl.col("difference") <= pl.col("limit")) & (pl.col("mean") <= pl.col("mean_limit")))
    )
    # polars orders NaN above every number, so that a comparison with it is false as it should be.
    return frame.with_columns(differs=~healthy)


def _run(
    runner: Runner, feeds: NDArray[np.float32], batch: int
) -> Iterator[tuple[int, int, dict[str, NDArray[np.float32]]]]:
    """Image, place in the batch and outputs, of every place of every batch; the last is filled with the first images.

    Outputs are one row each.
    """
    count = len(feeds)
    for start in range(0, count, batch):
        indices = [index % count for index in range(start, start + batch)]
        outputs = runner.infer(feeds[indices])
        for slot, index in enumerate(indices):
            yield index, slot, {name: value[slot : slot + 1] for name, value in outputs.items()}


# What differs in one image


class _Row(NamedTuple):
    """One output of one image: its name, how many objects were compared, the largest difference, the mean, and the mean
    with signs."""

    output: str
    objects: int
    difference: float
    mean: float
    shift: float = 0.0

    @classmethod
    def of(cls, output: str, values: NDArray[np.float32] | Sequence[float]) -> _Row:
        """From signed differences, one per object."""
        gaps = np.asarray(values, np.float64)
        if not len(gaps):
            return cls(output, 0, 0.0, 0.0)
        return cls(output, len(gaps), float(np.abs(gaps).max()), float(np.abs(gaps).mean()), float(gaps.mean()))


class _Objects(NamedTuple):
    """Objects of one side: boxes (n, 4) as x1, y1, x2, y2, or (n, 5) oriented; extra values (n, k); prototypes."""

    boxes: NDArray[np.float32]
    extra: NDArray[np.float32]
    prototypes: NDArray[np.float32] | None


def _measure(
    info: ModelInfo,
    outputs: Mapping[str, NDArray[np.float32]],
    expected: Mapping[str, NDArray[np.float32]],
    transform: ImageTransform,
) -> list[_Row]:
    """Compare the outputs of one image, one row of each, with the reference's."""
    info = dataclasses.replace(info, imgsz=transform.size)
    shapes = {name: value.ndim for name, value in expected.items()}
    if info.output_format == CLASS_SCORES:
        main = find_main_output(shapes, info.task)
        ours, theirs = outputs[main][0], expected[main][0]
        top = np.argsort(-theirs, kind="stable")[:TOP_CLASSES]
        return [_Row.of("probabilities", ours - theirs), _Row.of("logits", _logits(ours[top]) - _logits(theirs[top]))]
    if info.output_format == DENSE:
        return _measure_dense(info, outputs, expected, find_main_output(shapes, info.task))
    ours, theirs = (_select_objects(info, value, transform) for value in (outputs, expected))
    return _measure_rows(info, ours, theirs)


def _measure_dense(
    info: ModelInfo,
    outputs: Mapping[str, NDArray[np.float32]],
    expected: Mapping[str, NDArray[np.float32]],
    main: str,
) -> list[_Row]:
    """Anchors correspond one to one: no matching, and no NMS that turns small differences into other boxes."""
    ours, theirs = outputs[main][0], expected[main][0]
    split = 4 + len(info.names)
    gap = ours[4:split] - theirs[4:split]
    best = theirs[4:split].max(0)
    # Objects of either side: an engine may find what is not there.
    kept = np.argsort(-np.fmax(best, ours[4:split].max(0)), kind="stable")[:ROWS]
    number = theirs[4:split, kept].argmax(0)
    scores = _Row.of("scores", gap[:, kept][number, np.arange(len(kept))])
    rows = [
        scores._replace(difference=float(np.abs(gap).max())),
        _Row.of("logits", _logits(ours[4 + number, kept]) - _logits(theirs[4 + number, kept])),
    ]
    confident = kept[best[kept] >= CONFIDENT]
    rotated = info.task == "obb"
    pair = []
    for side, all_outputs in ((ours, outputs), (theirs, expected)):
        boxes = np.ascontiguousarray(side[:4, confident].T)
        boxes = np.concatenate((boxes, side[-1:, confident].T), 1) if rotated else xywh_to_xyxy(boxes)
        extra = np.ascontiguousarray(side[split:, confident].T)
        pair.append(_Objects(boxes, extra, _find_prototypes(info, all_outputs)))
    return rows + _measure_pairs(info, *pair)


def _find_prototypes(info: ModelInfo, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32] | None:
    return next((value[0] for value in outputs.values() if value.ndim == 4), None) if info.task == "segment" else None


def _select_objects(
    info: ModelInfo, outputs: Mapping[str, NDArray[np.float32]], transform: ImageTransform
) -> tuple[RawDetections, NDArray[np.float32] | None]:
    """The objects of a graph that selects them, and its mask prototypes."""
    task = get_task(info.task)  # also registers the decoders
    prototypes = _find_prototypes(info, outputs)
    extra = {
        "detect": 0,
        "obb": 1,
        "segment": 0 if prototypes is None else len(prototypes),
        "pose": math.prod(info.kpt_shape or ()),
    }
    if info.task in extra:
        layout = BoxLayout(extra=extra[info.task], rotated=info.task == "obb")
        boxes_only = {name: value for name, value in outputs.items() if prototypes is None or value.ndim != 4}
        return next(iter(decode_outputs(boxes_only, info, layout, _ALL))), prototypes
    # A registered task: its own postprocessing says where the boxes are.
    detections = task.postprocess(outputs, info, [transform], _ALL)[0]
    assert isinstance(detections, Detections)
    none = np.zeros((len(detections), 0), np.float32)
    raw = RawDetections(boxes=detections.boxes, scores=detections.scores, classes=detections.classes, extra=none)
    return raw, None


def _measure_rows(
    info: ModelInfo,
    ours: tuple[RawDetections, NDArray[np.float32] | None],
    theirs: tuple[RawDetections, NDArray[np.float32] | None],
) -> list[_Row]:
    """Rows in any order: confident objects against the nearest of their class on the other side, if it is mutual."""
    one, two = theirs[0], ours[0]
    floor = max(CONFIDENT, float(info.row_settings.get("conf", 0.0)))
    iou = rotated_iou if one.boxes.shape[1] == 5 else box_iou
    overlap = np.where(one.classes[:, None] == two.classes, iou(one.boxes, two.boxes), 0.0)
    # A one-to-one head keeps rows of low score on top of each object: nearest in score too.
    similarity = overlap * (1 - np.abs(one.scores[:, None] - two.scores))
    pairs, matched = [], (set[int](), set[int]())
    for index in range(len(one.scores)) if len(two.scores) else ():
        match = int(similarity[index].argmax())
        mutual = overlap[index, match] >= MATCHED and similarity[:, match].argmax() == index
        if mutual and max(one.scores[index], two.scores[match]) >= CONFIDENT:
            pairs.append((index, match))
            matched[0].add(index)
            matched[1].add(match)
    # What lies close to the cut of the scores may be dropped on one side.
    lost = sum(
        index not in known
        for known, side in zip(matched, (one, two), strict=True)
        for index in np.flatnonzero(side.scores > floor + NEAR_CUT).tolist()
    )
    count = len(pairs) + lost
    first, second = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    scores = ours[0].scores[second], theirs[0].scores[first]
    rows = [
        _Row("objects", count, lost / max(count, 1), lost / max(count, 1)),
        _Row.of("scores", scores[0] - scores[1]),
        _Row.of("logits", _logits(scores[0]) - _logits(scores[1])),
    ]
    sides = (
        _Objects(raw.boxes[picked], raw.extra[picked], prototypes)
        for (raw, prototypes), picked in ((ours, second), (theirs, first))
    )
    return rows + _measure_pairs(info, *sides)


def _measure_pairs(info: ModelInfo, ours: _Objects, theirs: _Objects) -> list[_Row]:
    """Compare objects of the same row: boxes, and what the task adds to them."""
    iou = rotated_iou if ours.boxes.shape[1] == 5 else box_iou
    finite = np.asarray(np.isfinite(ours.boxes).all(axis=1, keepdims=True))
    overlaps = iou(np.where(finite, ours.boxes, 0).astype(np.float32), theirs.boxes).diagonal()
    gaps: dict[str, list[float]] = {"boxes": np.where(finite[:, 0], 1 - overlaps, np.nan).tolist()}
    if info.task == "obb":
        # A box turned by half a turn is the same box.
        turned = np.abs(ours.boxes[:, 4] - theirs.boxes[:, 4]) % np.pi
        gaps["angles"] = np.minimum(turned, np.pi - turned).tolist()
    if info.task == "pose" and info.kpt_shape is not None:
        points, visible = _compare_keypoints(info.kpt_shape, ours, theirs)
        gaps |= {"keypoints": points, "visibilities": visible} if visible else {"keypoints": points}
    if ours.prototypes is not None and theirs.prototypes is not None:
        gaps["masks"] = _compare_masks(info.imgsz, ours, theirs)
    return [_Row.of(name, values)._replace(shift=0.0) for name, values in gaps.items()]


def _logits(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores before the sigmoid, clipped where FP16 has no digits left."""
    clipped = np.clip(scores, 1e-3, 1 - 1e-2)
    logits: NDArray[np.float32] = np.log(clipped / (1 - clipped))
    return logits


def _compare_keypoints(kpt_shape: tuple[int, int], ours: _Objects, theirs: _Objects) -> tuple[list[float], list[float]]:
    """By object: the largest distance by the box's size, and the largest difference of a visibility."""
    one, two = (side.extra.reshape(-1, *kpt_shape) for side in (ours, theirs))
    sizes = np.sqrt(np.maximum(np.prod(theirs.boxes[:, 2:4] - theirs.boxes[:, :2], 1), 1))
    distances = np.linalg.norm(one[..., :2] - two[..., :2], axis=2).max(1, initial=0) / sizes
    visible = np.abs(one[..., 2:] - two[..., 2:]).reshape(len(one), -1).max(1, initial=0) if kpt_shape[1] > 2 else []
    return distances.tolist(), list(map(float, visible))


def _compare_masks(imgsz: tuple[int, int], ours: _Objects, theirs: _Objects) -> list[float]:
    """By object: the mean difference of mask probabilities within the reference's box."""
    assert ours.prototypes is not None
    assert theirs.prototypes is not None
    height, width = theirs.prototypes.shape[1:]
    scale = np.array([width / imgsz[1], height / imgsz[0]] * 2, np.float32)
    gaps = []
    for index, box in enumerate(theirs.boxes * scale):
        left, right = np.clip((math.floor(box[0]), math.ceil(box[2])), 0, width)
        top, bottom = np.clip((math.floor(box[1]), math.ceil(box[3])), 0, height)
        part = np.s_[:, min(top, height - 1) : max(bottom, 1), min(left, width - 1) : max(right, 1)]
        masks = [
            1 / (1 + np.exp(-np.clip(np.tensordot(side.extra[index], side.prototypes[part], 1), -60, 60)))
            for side in (ours, theirs)
            if side.prototypes is not None
        ]
        gaps.append(float(np.abs(masks[0] - masks[1]).mean()))
    return gaps

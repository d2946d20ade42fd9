"""verify(): an engine against ONNX Runtime on the same images, boxes and scores, at every batch of its profile."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trtkit import backends
from trtkit.backends.base import HasPath, Runner
from trtkit.data import open_dataset, resize_to_input, to_input
from trtkit.data.images import sample_images
from trtkit.errors import EngineError
from trtkit.models.model import DENSE
from trtkit.results import Provenance, Result
from trtkit.tasks import PostprocessSettings, get_task
from trtkit.tasks.base import Detections
from trtkit.tasks.nms import box_iou, xywh_to_xyxy

if TYPE_CHECKING:
    import onnx
    import plotly.graph_objects as go
    import polars as pl
    from numpy.typing import NDArray

    from trtkit.data import DataSource

__all__ = ["LIMITS", "Verification", "verify"]

LIMITS = {"fp32": 0.02, "fp16": 0.03, "int8": 0.12}
"""Largest score difference of a healthy engine by precision: those that `tests/gpu` holds engines of TensorRT 8.6 on an
H100 and H200 to (TF32, FP16, and INT8 that rounds at other places than ONNX Runtime)."""

BOX_LIMIT = 0.2
"""Largest 1 - IoU of a confident box, the same in every precision."""

CONFIDENT = 0.25
"""Boxes are compared from this score on; below it their position is noise."""

ROWS = 50
"""Highest-scoring boxes of the reference that are compared per image."""

_ALL = PostprocessSettings(conf=0.001, iou=0.7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification(Result):
    """The differences between an engine and ONNX Runtime, which ran the graph that the engine was built from.

    Attributes:
        verdict: "agrees", "differs", or "can't tell" where no image has an object of score `CONFIDENT`.
        precision: Of the engine.
        images: One row per image and batch: batch, path, slot (place in the batch), score (largest score of the
            reference), score_difference, box_difference (1 - IoU), differs.
        provenance: The engine, the reference and the images.
    """

    kind: ClassVar[str] = "verification"

    verdict: str
    precision: str
    images: pl.DataFrame
    provenance: Provenance

    def frame(self) -> pl.DataFrame:
        """One row per image and batch."""
        return self.images

    def plot(self) -> go.Figure:
        """The score difference of each image, by batch."""
        from trtkit.plotting.engine import verification_figure

        return verification_figure(self.images, limit=LIMITS[self.precision])

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

    def __repr__(self) -> str:
        batches = ", ".join(map(str, self.images["batch"].unique().sort()))
        bad = self.images.filter("differs")
        where = f"; {len(bad)} of {len(self.images)} images beyond the limits" if len(bad) else ""
        score, box = (self.images[name].to_numpy().max() for name in ("score_difference", "box_difference"))
        return (
            f"Verification({self.verdict}: {self.provenance.runner}, {self.precision}, batch {batches}{where}; "
            f"scores differ by up to {score:.4f}, boxes by up to {box:.4f})"
        )


def verify(
    artifact: str | Path | HasPath | Runner,
    data: DataSource | None = None,
    *,
    onnx: str | Path | Runner | onnx.ModelProto | None = None,
    eval_images: int = 16,
    device: str | int | None = None,
) -> Verification:
    """Compare an engine with ONNX Runtime on images, at the smallest and the largest batch of its profile.

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
    asked = f"verify {engine.path or engine.name}"
    for name, one, other in (
        ("precision", engine.precision, reference.precision),
        ("task", engine.info.task, reference.info.task),
        ("class names", dict(engine.info.names), dict(reference.info.names)),
        ("input size", engine.imgsz, engine.imgsz if reference.dynamic else reference.imgsz),
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
    expected = [row for _, row in _run(reference, feeds, reference.batch or 1)]
    rows = []
    largest = engine.batch or len(paths)
    for batch in sorted({1 if engine.dynamic else largest, largest}):
        for index, (slot, outputs) in enumerate(_run(engine, feeds, batch)):
            top, score, box = _measure(engine, outputs, expected[index], resized[index][1])
            rows.append((batch, str(paths[index]), slot, top, score, box))
    names = ("batch", "path", "slot", "score", "score_difference", "box_difference")
    frame = pl.DataFrame(rows, schema=names, orient="row")
    # NaN of a broken engine is beyond every limit.
    frame = frame.with_columns(
        differs=~((pl.col("score_difference") <= LIMITS[engine.precision]) & (pl.col("box_difference") <= BOX_LIMIT))
        | pl.col("score_difference").is_nan()
        | pl.col("box_difference").is_nan()
    )
    differs, evidence = bool(frame["differs"].any()), bool((frame["score"] >= CONFIDENT).any())
    return Verification(
        verdict="differs" if differs else "agrees" if evidence else "can't tell",
        precision=engine.precision,
        images=frame,
        provenance=Provenance(
            model_hash=engine.hash,
            data_hash=dataset.hash_images(paths),
            runner=engine.name,
            settings={"reference": reference.name, "eval_images": eval_images, "data": str(source)},
        ),
    )


def _run(
    runner: Runner, feeds: NDArray[np.float32], batch: int
) -> Iterator[tuple[int, dict[str, NDArray[np.float32]]]]:
    """Outputs of each image and its place in the batch; the last batch is filled up with the first images."""
    count = len(feeds)
    for start in range(0, count, batch):
        outputs = runner.infer(feeds[[index % count for index in range(start, start + batch)]])
        for slot in range(min(batch, count - start)):
            yield slot, {name: value[slot : slot + 1] for name, value in outputs.items()}


def _measure(
    runner: Runner,
    outputs: Mapping[str, NDArray[np.float32]],
    expected: Mapping[str, NDArray[np.float32]],
    transform: Any,
) -> tuple[float, float, float]:
    """Largest score of the reference; largest score difference; largest 1 - IoU of confident boxes."""
    info = runner.info
    main = next((name for name, value in expected.items() if value.ndim == 3), None)
    if info.output_format == DENSE and main is not None:
        # Anchors correspond one to one: no matching, and no NMS that turns small differences into other boxes.
        ours, theirs = outputs[main][0], expected[main][0]
        scores, other = (value[4 : 4 + len(info.names)] for value in (theirs, ours))
        best = scores.max(0)
        kept = np.argsort(-best, kind="stable")[:ROWS]
        confident = kept[best[kept] >= CONFIDENT]
        boxes = [xywh_to_xyxy(np.ascontiguousarray(value[:4, confident].T)) for value in (theirs, ours)]
        gaps = [1 - float(box_iou(one[None], two[None])[0, 0]) for one, two in zip(*boxes, strict=True)]
        return float(best.max()), float(np.abs(other - scores)[:, kept].max()), max(gaps, default=0.0)
    task = get_task(info.task)
    ours_, theirs_ = (task.postprocess(value, info, [transform], _ALL)[0] for value in (outputs, expected))
    if not isinstance(theirs_, Detections):
        gap = np.abs(ours_.probabilities - theirs_.probabilities)
        return float(theirs_.probabilities.max()), float(gap.max()), 0.0
    return _match(ours_, theirs_, floor=float(info.row_settings.get("conf", 0.0)))


def _match(ours: Detections, theirs: Detections, *, floor: float) -> tuple[float, float, float]:
    """`_measure` of rows, whose order may differ, both ways; an object without a match differs by what it exceeds the
    lowest score that the graph keeps."""
    score, box = 0.0, 0.0
    for one, two in ((theirs, ours), (ours, theirs)):
        kept: Sequence[int] = [index for index in range(min(len(one), ROWS)) if one.scores[index] >= CONFIDENT]
        similarity = box_iou(one.boxes, two.boxes)
        for index in kept:
            near = np.where(two.classes == one.classes[index], similarity[index], 0.0)
            match = int(near.argmax()) if len(near) else -1
            if match < 0 or near[match] < 0.5:
                score = max(score, float(one.scores[index]) - floor)
                continue
            score = max(score, abs(float(one.scores[index] - two.scores[match])))
            box = max(box, 1 - float(near[match]))
    return float(theirs.scores[0]) if len(theirs) else 0.0, score, box

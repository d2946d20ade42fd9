"""verify(): an engine against ONNX Runtime on the same images, every output, at every batch of its profile."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from trtkit import backends
from trtkit.backends.base import HasPath, Runner
from trtkit.data import open_dataset, resize_to_input, to_input
from trtkit.data.images import sample_images
from trtkit.errors import EngineError
from trtkit.evaluation.output_differences import OUTPUTS, measure_differences
from trtkit.results import Provenance, Result

if TYPE_CHECKING:
    import onnx
    import plotly.graph_objects as go
    import polars as pl
    from numpy.typing import NDArray

    from trtkit.data import DataSource

__all__ = ["EXPORT_IMAGES", "LIMITS", "Limit", "Verification", "compare_runners", "verify"]


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
        "scores": Limit(0.5, 0.2),
        "logits": Limit(3.0, 0.8),
        "probabilities": Limit(0.12, 0.05),
        "boxes": Limit(0.3, 0.1),
        "masks": Limit(0.15, 0.05),
        "keypoints": Limit(0.2, 0.08),
        "visibilities": Limit(0.2, 0.08),
        "angles": Limit(0.2, 0.08),
    },
}
"""By precision and output. Provisional, from above the largest differences of 60 graphs of ten models whose weights and
scales were moved by half a step of FP16 on a processor (`benchmarks/verification.py run --simulate`) and, in FP32 and
FP16, of `tests/gpu` on an H100 and H200 with TensorRT 8.6 (scores: TF32 0.02, FP16 0.03). INT8 rounds at other places
than ONNX Runtime, layer after layer: a fault that changes less than this rounding can't be told from it."""

LOST_OBJECTS = 0.05
"""Largest share of a batch's confident objects without a counterpart: NMS and top-k cut between nearly equal scores."""

EVAL_IMAGES, EXPORT_IMAGES = 16, 8
"""Images that `verify` and `export` compare by default: ONNX Runtime takes up to a second for one on a processor."""

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

    def summary(self) -> pl.DataFrame:
        """One row per output and batch: the largest differences, their limits, and the images beyond them."""
        import polars as pl

        largest = ("difference", "limit", "mean", "mean_limit")
        return self.images.group_by("output", "batch", maintain_order=True).agg(
            pl.col("path").n_unique().alias("images"),
            *(pl.col(name).max() for name in largest),
            pl.col("path").filter("differs").n_unique().alias("differ"),
        )

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
    eval_images: int = EVAL_IMAGES,
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
        return compare_runners(engine, reference, data, eval_images)


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
    # An engine holds the hash of the checkpoint, or of the ONNX file that was exported; one of others has none.
    known = (reference.hash, getattr(reference, "graph_hash", reference.hash))
    for name, one, other in (
        ("precision", engine.precision, reference.precision),
        ("task", engine.info.task, reference.info.task),
        ("class names", dict(engine.info.names), dict(reference.info.names)),
        ("output format", engine.info.output_format.name, reference.info.output_format.name),
        ("input size", engine.imgsz, engine.imgsz if reference.dynamic else reference.imgsz),
        ("model hash", engine.hash if passport else known[0], engine.hash if engine.hash in known else known[0]),
    ):
        if one != other:
            raise EngineError(
                asked,
                f"its {name} differs from that of the ONNX graph: {one}, {other}",
                "pass the ONNX graph that it was built from",
                code="verify-other-onnx",
                name=name,
            )


def compare_runners(
    engine: Runner, reference: Runner, data: DataSource | None = None, eval_images: int = EVAL_IMAGES
) -> Verification:
    """`verify` for an engine and its graph that are open.

    Args:
        engine: The engine.
        reference: The graph that it was built from.
        data: As in `verify`.
        eval_images: As in `verify`.

    Raises:
        EngineError: A run failed.
        DataError: The images can't be read.
    """
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
            rows += (
                (*place, *row) for row in measure_differences(engine.info, outputs, expected[index], resized[index][1])
            )
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

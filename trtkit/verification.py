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
from trtkit.backends.runner import HasPath, Runner
from trtkit.data import open_dataset, resize_to_input, to_input
from trtkit.data.images import sample_images
from trtkit.errors import EngineError
from trtkit.evaluation.output_differences import OUTPUTS, measure_differences, relative_difference
from trtkit.files import hash_parts
from trtkit.progress import CancelToken, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.results import Provenance, Result
from trtkit.writing import temporary_folder

if TYPE_CHECKING:
    import onnx
    import plotly.graph_objects as go
    import polars as pl
    from numpy.typing import NDArray

    from trtkit.data import Dataset, DataSource, ImageTransform
    from trtkit.graph.analysis import GraphIndex

__all__ = ["EXPORT_IMAGES", "LIMITS", "Limit", "Verification", "add_limits", "compare_runners", "verify"]


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
        "scores": Limit(0.03, 0.008),  # 0.0141, 0.0037
        "logits": Limit(0.45, 0.04),  # 0.218, 0.0186
        "probabilities": Limit(0.002, 0.0005),  # 0.0006, 0.0001
        "boxes": Limit(0.03, 0.01),  # 0.0035, 0.0025
        "masks": Limit(0.01, 0.004),  # 0.0017, 0.0009
        "keypoints": Limit(0.02, 0.005),  # 0.0020, 0.0005
        "visibilities": Limit(0.005, 0.002),  # 0.0005, 0.0001
        "angles": Limit(0.02, 0.005),  # 0.0015, 0.0005
        "tensors": Limit(0.02, 0.02),
    },
    "fp16": {
        "scores": Limit(0.03, 0.01),  # 0.0089, 0.0030
        "logits": Limit(0.16, 0.04),  # 0.0366, 0.0148
        "probabilities": Limit(0.006, 0.0015),  # 0.0025, 0.0005
        "boxes": Limit(0.06, 0.02),  # 0.0062, 0.0024
        "masks": Limit(0.01, 0.004),  # 0.0007, 0.0006
        "keypoints": Limit(0.03, 0.01),  # 0.0028, 0.0014
        "visibilities": Limit(0.005, 0.002),  # 0.0007, 0.0003
        "angles": Limit(0.03, 0.01),  # 0.0036, 0.0009
        "tensors": Limit(0.02, 0.02),
    },
    "int8": {
        "scores": Limit(0.5, 0.2),  # 0.246, 0.104
        "logits": Limit(2.6, 1.1),  # 1.30, 0.54
        "probabilities": Limit(0.06, 0.012),  # 0.0258, 0.0052
        "boxes": Limit(0.3, 0.12),  # 0.097, 0.040
        "masks": Limit(0.06, 0.03),  # 0.0174, 0.0104
        "keypoints": Limit(0.3, 0.12),  # 0.104, 0.050
        "visibilities": Limit(0.08, 0.02),  # 0.0207, 0.0063
        "angles": Limit(0.4, 0.08),  # 0.055, 0.031
        "tensors": Limit(0.3, 0.3),
    },
}
"""By precision and output; behind each the largest of 41 healthy engines of TensorRT 8.6 at level 0 on an H200 (nine
models of five tasks, `benchmarks/results/verification-nvidia-h200.md`). Of scores, logits and probabilities a limit is
at least twice that, and above what half a step of FP16 on every weight and scale moves on a processor (`--simulate`).
Of boxes and what lies in them it is three times or more: the smaller an object, the more a part of a pixel is of it.
Tensors were not measured. INT8 rounds at other places than ONNX Runtime, layer after layer: a fault that changes less
than this rounding can't be told from it."""

LAYER_LIMITS = {"fp32": 0.02, "fp16": 0.02, "int8": 0.3}
"""Largest relative difference of a tensor between layers, by precision: rounding adds up to less (provisional)."""

LOST_OBJECTS = 0.05
"""Largest share of a batch's confident objects without a counterpart: NMS and top-k cut between nearly equal scores."""

OUTLIERS = {"fp32": 0.0, "fp16": 0.0, "int8": 0.1}
"""Share of a batch's images on which an output may be beyond its `largest` limit. In INT8 one object of hundreds can be
decided otherwise by a value between two steps, as in one of 21 healthy engines; faults showed on a quarter of the
images or more, or moved a mean."""

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
        layers: With `verify(layers=True)` and a difference, one row per tensor between layers, of the image that
            differs most: layer (the ONNX node that computes it), tensor, difference (norm of the difference over that
            of the reference), differs, begins (it differs, and what it is computed from does not). Else None.
    """

    kind: ClassVar[str] = "verification"

    verdict: str
    precision: str
    images: pl.DataFrame
    provenance: Provenance
    layers: pl.DataFrame | None = None

    def frame(self) -> pl.DataFrame:
        """One row per image, batch and output."""
        return self.images

    def plot(self) -> go.Figure:
        """The largest difference of each image as a share of its limit, by output."""
        from trtkit.plotting.engine import verification_figure

        return verification_figure(self.images)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """The frame and the layers, by name."""
        return {"images": self.images} | ({"layers": self.layers} if self.layers is not None else {})

    def facts(self) -> Mapping[str, Any]:
        """Verdict and precision."""
        return {"verdict": self.verdict, "precision": self.precision}

    @classmethod
    def restore(
        cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance
    ) -> Verification:
        """The inverse of `tables` and `facts`."""
        return cls(images=tables["images"], layers=tables.get("layers"), provenance=provenance, **facts)

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
        text = f"{outputs} beyond the limits on {count} ({', '.join(names[:3])}{more}) at batch {batches}"
        if self.layers is None:
            return text
        begins = self.layers.filter("begins")["layer"].to_list()
        if not begins:
            return f"{text}; with further outputs, no layer differs"
        return f"{text}; it begins in {', '.join(begins[:3])}{f' and {len(begins) - 3} more' if begins[3:] else ''}"


@verb
def verify(
    artifact: str | Path | HasPath | Runner,
    data: DataSource | None = None,
    *,
    onnx: str | Path | Runner | onnx.ModelProto | None = None,
    eval_images: int = EVAL_IMAGES,
    layers: bool = False,
    device: str | int | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Verification:
    """Compare an engine with ONNX Runtime on images, at the smallest, optimal and largest batch of its profile.

    The reference runs the graph of the engine's own precision (typed FP16, or Q/DQ): what FP16 or INT8 itself costs is
    in both, so that limits can be close. `evaluate` and `compare` measure that cost.

    Args:
        artifact: The engine: a file, what `export` returned, or an open runner.
        data: Images, as `evaluate` or `calibrate` take them; None takes the embedded set.
        onnx: The graph that the engine was built from; None takes the `.onnx` file of the same name beside the engine.
        eval_images: Maximum number of images.
        layers: Build an engine that differs once more, with the results of its layers as outputs, to name the layers
            where the difference begins. Other outputs let TensorRT fuse layers in another way, which may end it.
        device: Of the engine.
        progress: Receives events.
        cancel: Checked between batches.

    Returns:
        The differences and a verdict.

    Raises:
        EngineError: It is an ONNX file, there is no ONNX file beside it, that holds another model or precision, or the
            run failed.
        CapabilityError: The engine does not run on this machine.
        DataError: The images can't be read.
        BuildError: The second build of `layers` failed.
        CancelledError: The caller cancelled.
    """
    reporter = Reporter(progress, cancel)
    with contextlib.ExitStack() as stack:
        engine = artifact if isinstance(artifact, Runner) else None
        if engine is None:
            graph = onnx if onnx is not None else _find_onnx(Path(getattr(artifact, "path", artifact)))  # type: ignore[arg-type]
            engine = stack.enter_context(backends.open(artifact, device=device))  # type: ignore[arg-type]
        else:
            graph = onnx if onnx is not None else _find_onnx(engine.path)
        reference = graph if isinstance(graph, Runner) else stack.enter_context(backends.open(graph))
        _check_pair(engine, reference)
        if layers and (isinstance(graph, Runner) or engine.passport is None):
            raise EngineError(
                f"name the layers of {engine.path or engine.name} that differ",
                "an open graph, or an engine that trtkit did not build, can't be built again",
                "pass the ONNX file or graph as onnx=, and an engine of export",
                code="verify-layers-unknown-build",
            )
        start_work(
            Plan(
                verb="verify",
                settings={"engine": engine.name, "reference": reference.name, "imgsz": tuple(engine.imgsz)},
                steps=(VERIFY, *([BUILD_LAYERS] if layers else [])),
            ),
            reporter,
        )
        reporter.begin(VERIFY)
        result = compare_runners(
            engine, reference, data, eval_images, progress=reporter.progress, cancel=reporter.cancel
        )
        if layers and result.verdict == "differs":
            reporter.begin(BUILD_LAYERS)
            differing = _compare_layers(engine, graph, result, data, eval_images, reporter)
            result = dataclasses.replace(result, layers=differing)
        reporter.finish()
        return result


VERIFY = "verify"
"""The step, and the stage of its events."""

BUILD_LAYERS = "build the engine again, with the results of its layers as outputs"


def _find_onnx(path: Path | None) -> Path:
    beside = path.with_suffix(".onnx") if path is not None else None
    if path is not None and path.suffix.lower() == ".onnx":
        raise EngineError(
            f"verify {path}",
            "it is an ONNX file, which would be compared with itself",
            "pass an engine, or name the graph to compare it with as onnx=",
            code="verify-not-engine",
            path=str(path),
        )
    if beside is None or not beside.is_file():
        raise EngineError(
            f"verify {path or 'an engine'}",
            "the ONNX graph it was built from is not beside it",
            "pass onnx=, or export again with the same settings and format='onnx'",
            code="verify-onnx-missing",
            path=None if path is None else str(path),
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
        ("calibration", *_both(passport.calibration_hash if passport else None, reference)),
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


def _both(calibration_hash: str | None, reference: Runner) -> tuple[str | None, str | None]:
    """The hashes of both calibrations, or twice the same where one is unknown."""
    other: str | None = getattr(reference, "calibration_hash", None)
    return (calibration_hash, other) if calibration_hash and other else (None, None)


def compare_runners(
    engine: Runner,
    reference: Runner,
    data: DataSource | None = None,
    eval_images: int = EVAL_IMAGES,
    *,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Verification:
    """`verify` for an engine and its graph that are open.

    Args:
        engine: The engine.
        reference: The graph that it was built from.
        data: As in `verify`.
        eval_images: As in `verify`.
        progress: Receives events.
        cancel: Checked between batches.

    Raises:
        EngineError: A run failed.
        DataError: The images can't be read.
    """
    import polars as pl

    source, dataset, paths, feeds, transforms = _read_feeds(engine, data, eval_images)
    reporter, batches = Reporter(progress, cancel), engine.profile_batches
    total = len(paths) * (1 + len(batches))
    expected: list[dict[str, NDArray[np.float32]]] = []
    for _, _, outputs in _run(reference, feeds, reference.batch or 1):
        reporter.step(VERIFY, min(len(expected), len(paths)), total)
        expected.append(outputs)
    expected = expected[: len(paths)]
    rows: list[tuple[Any, ...]] = []
    for turn, batch in enumerate(batches, 1):
        for done, (index, slot, outputs) in enumerate(_run(engine, feeds, batch), turn * len(paths)):
            reporter.step(VERIFY, min(done, (turn + 1) * len(paths)), total)
            place = (batch, str(paths[index]), slot)
            rows += (
                (*place, *row) for row in measure_differences(engine.info, outputs, expected[index], transforms[index])
            )
    frame = add_limits(pl.DataFrame(rows, schema=_COLUMNS, orient="row"), engine.precision)
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


def _read_feeds(
    engine: Runner, data: DataSource | None, eval_images: int
) -> tuple[Any, Dataset, tuple[Path, ...], NDArray[np.float32], list[ImageTransform]]:
    """Where the images are from, their data set, paths and inputs, and where each lies in its input."""
    from trtkit import demo
    from trtkit.data import read_image

    info = engine.info
    # Images of the embedded set serve tasks that have none: labels are not read.
    embedded = info.task if info.task in demo.EMBEDDED_TASKS else "detect"
    source, opened = (data, info.task) if data is not None else (demo.data_path(embedded), embedded)
    dataset = open_dataset(source, task=opened, channels=info.channels, needs_labels=False)
    split = "val" if dataset.labeled else dataset.default_split
    paths = sample_images(dataset.images(split), count=eval_images)
    resized = [resize_to_input(read_image(path, info.channels), engine.imgsz, info.preprocess) for path in paths]
    feeds = to_input([image for image, _ in resized], info.preprocess)
    return source, dataset, paths, feeds, [transform for _, transform in resized]


def add_limits(frame: pl.DataFrame, precision: str) -> pl.DataFrame:
    """The frame with the limits and whether a row is beyond them; NaN of a broken engine always is.

    Args:
        frame: `Verification.images` without limit, mean_limit and differs.
        precision: Of the engine.
    """
    import polars as pl

    limits = {name: LIMITS[precision].get(name) for name in OUTPUTS}
    for index, column in enumerate(("limit", "mean_limit")):
        known = {name: limit[index] if limit is not None else math.inf for name, limit in limits.items()}
        frame = frame.with_columns(pl.col("output").replace_strict(known, return_dtype=pl.Float64).alias(column))
    lost = (pl.col("difference") * pl.col("objects")).sum().over("batch", "output")
    allowed = (pl.col("objects").sum().over("batch", "output") * LOST_OBJECTS).round()
    beyond = pl.col("difference") > pl.col("limit")
    outliers = (pl.len().over("batch", "output") * OUTLIERS[precision]).round()
    is_outlier = pl.col("difference").is_finite() & (beyond.sum().over("batch", "output") <= outliers)
    healthy = (
        pl.when(pl.col("output") == "objects")
        .then((pl.col("difference") == 0) | (lost <= allowed))
        .otherwise((~beyond | is_outlier) & (pl.col("mean") <= pl.col("mean_limit")))
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


# Which layers differ


def _compare_layers(
    engine: Runner, graph: Any, result: Verification, data: DataSource | None, eval_images: int, reporter: Reporter
) -> pl.DataFrame:
    """`Verification.layers`, by a second build with marked outputs, on the image and batch that differ most."""
    import polars as pl

    from trtkit.backends.trt.network import fit_graph
    from trtkit.graph.analysis import GraphIndex
    from trtkit.models import load

    proto = load(graph).proto if isinstance(graph, (str, Path)) else graph
    assert engine.passport is not None
    assert proto is not None
    index = GraphIndex(proto)
    marked = _find_tensors(index)
    with_outputs = _mark_outputs(proto, marked)
    passport = engine.passport
    settings = backends.BuildSettings(
        precision=engine.precision,
        batch=engine.profile_batches[-1],
        imgsz=engine.imgsz,
        dynamic=engine.dynamic,
        device=_find_device(engine, passport),
        opt_level=passport.recipe.get("opt_level"),
        aux_streams=passport.recipe.get("aux_streams"),
    )
    fitted = fit_graph(with_outputs, backends.probe(passport.backend), precision=engine.precision)
    built = backends.build(fitted, settings, backend=passport.backend, reporter=reporter)
    worst = (
        result.images.filter("differs").sort(pl.col("difference") / pl.col("limit"), descending=True).row(0, named=True)
    )
    _, _, paths, feeds, _ = _read_feeds(engine, data, eval_images)
    image, batch, slot = list(map(str, paths)).index(worst["path"]), worst["batch"], worst["slot"]
    feed = feeds[[(image - slot + place) % len(feeds) for place in range(batch)]]
    with temporary_folder() as folder:
        metadata = engine.info.to_metadata(batch=settings.batch, imgsz=engine.imgsz, dynamic=engine.dynamic)
        file = backends.write_engine(
            folder / "layers.engine",
            built.plan,
            metadata,
            # The graph itself reads images, whatever the engine does.
            dataclasses.replace(
                passport, plan_hash=hash_parts(built.plan), plan_size=len(built.plan), layers=(), pixel_input=None
            ),
        )
        with backends.open(file, device=settings.device) as second, backends.open(with_outputs) as reference:
            ours, theirs = second.infer(feed), reference.infer(feeds[image : image + 1])
    gaps: dict[str, float] = {}
    for name in marked:
        if name in ours and len(ours[name]) == batch and len(theirs[name]) == 1:
            gaps[name] = relative_difference(ours[name][slot], theirs[name][0])
    differs = {name for name, gap in gaps.items() if not gap <= LAYER_LIMITS[engine.precision]}
    rows = []
    for name, gap in gaps.items():
        node = index.producer[name]
        before = index.upstream(node, lambda at: any(output in gaps for output in at.output))
        inherited = any(output in differs for at in before for output in at.output)
        rows.append((node.name, name, gap, name in differs, name in differs and not inherited))
    return pl.DataFrame(rows, schema=("layer", "tensor", "difference", "differs", "begins"), orient="row")


def _find_device(engine: Runner, passport: backends.Passport) -> str | int | None:
    """Where an open engine runs; it may have been built for this GPU on another machine."""
    if passport.dla is not None:
        return f"dla:{passport.dla}"
    return None if engine.gpu is None else engine.gpu.index


def _find_tensors(index: GraphIndex) -> list[str]:
    """What layers with weights read, before it is quantized, and the graph's outputs: there TensorRT's fusions end."""
    found: dict[str, None] = {}
    for node in index.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        name = next(iter(index.data_inputs(node)), "")
        while name in index.producer and index.producer[name].op_type in ("QuantizeLinear", "DequantizeLinear"):
            name = index.producer[name].input[0]
        if name in index.producer:
            found[name] = None
    return [*found, *(value.name for value in index.graph.output if value.name not in found)]


def _mark_outputs(proto: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy of the graph with tensors as further outputs, of the types and shapes that they have."""
    from onnx import TensorProto, helper, shape_inference

    marked = type(proto)()
    marked.CopyFrom(proto)
    known = {value.name: value for value in shape_inference.infer_shapes(proto).graph.value_info}
    present = {value.name for value in proto.graph.output}
    marked.graph.output.extend(
        known.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in present
    )
    return marked

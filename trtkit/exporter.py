"""export(): the rooms of the house in one line of work, from a model to a file that runs elsewhere."""

from __future__ import annotations

import dataclasses
import datetime
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.errors import OutputExistsError
from trtkit.files import atomic_write, hash_parts
from trtkit.models.model import NMS_ROWS, ModelInfo
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.recipe import Recipe, round_imgsz

if TYPE_CHECKING:
    import onnx
    import torch

    from trtkit.backends import ImplicitCalibration, Passport
    from trtkit.calibration import Calibration
    from trtkit.data import Dataset
    from trtkit.models import Model

__all__ = ["Artifact", "build_graph", "export", "export_with_graph"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file that `export` wrote.

    Attributes:
        path: The file.
        format: "engine" or "onnx".
        precision: "fp32", "fp16" or "int8".
        info: What the model does.
        recipe: The settings that made it.
        model_hash: SHA-256 of the model's weights and architecture.
        calibration_hash: SHA-256 of the calibration behind an INT8 file, None otherwise.
        passport: What an engine was built with and for, None for ONNX.
        seconds: Wall time of the whole export, s.
        build_seconds: Wall time of the engine build alone, s; None for ONNX.
        size: Bytes.
    """

    path: Path
    format: str
    precision: str
    info: ModelInfo
    recipe: Recipe
    model_hash: str
    calibration_hash: str | None = None
    passport: Passport | None = None
    seconds: float
    build_seconds: float | None = None
    size: int

    def __repr__(self) -> str:
        made = f" for {self.passport.gpu or self.passport.sm}" if self.passport is not None else ""
        size = f"{self.size / 1e6:.1f} MB"
        return f"Artifact({self.path}: {self.precision} {self.format}{made}, {size}, {self.seconds:.1f} s)"


def export(
    model: Model | str | Path | torch.nn.Module,
    format: str = "engine",
    imgsz: int | tuple[int, int] | None = None,
    half: bool = False,
    int8: bool = False,
    dynamic: bool | None = None,
    simplify: bool = True,
    workspace: float | None = None,
    nms: bool = False,
    batch: int = 1,
    data: str | Path | Dataset | None = None,
    fraction: float = 1.0,
    device: int | str | None = None,
    *,
    backend: str | None = None,
    calibration: Calibration | str | Path | None = None,
    implicit: bool = False,
    keep: Sequence[str] = (),
    opt_level: int | None = None,
    isolate: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Artifact:
    """Take a model to a TensorRT engine or an ONNX file in FP32, FP16 or INT8.

    Args:
        model: From `load`, or what `load` takes.
        format: "engine" or "onnx".
        imgsz: Image side, or (height, width), pixels; None takes the model's own. Rounded up to the stride.
        half: FP16.
        int8: INT8 by Q/DQ pairs in the graph; what is not worth INT8 runs in FP16 where TensorRT has the choice.
        dynamic: Leave batch, height and width open; None means yes for an INT8 engine and no otherwise.
        simplify: Simplify the graph with onnxslim.
        workspace: Memory the builder may use, GiB; None lets TensorRT decide.
        nms: Put non-maximum suppression into the graph.
        batch: The largest batch; engines accept smaller ones.
        data: Calibration data for INT8; None takes the task's small example set and warns. With `half`, images on
            which overflow is looked for; None leaves that out.
        fraction: Share of the calibration images to draw from, (0, 1].
        device: GPU index or name ("cuda:1"), "dla:0", or "sm89" (build for a GPU that is not here); None = first GPU.
        backend: "tensorrt" or "tensorrt_rtx"; None takes the best present.
        calibration: A `Calibration`, the folder of a saved one, or a `.cache` file of TensorRT's own calibrators, which
            can't be checked and warns; None calibrates on `data` by percentile 99.999, which costs less accuracy than
            the min-max that `calibrate` and TensorRT's own calibrator start from.
        implicit: Calibrate INT8 by TensorRT's own min-max calibrator (TensorRT up to 10) instead of Q/DQ pairs in the
            graph; its `.cache` lies beside the engine, named by what it was measured on.
        keep: fnmatch patterns of ONNX node names that stay in high precision.
        opt_level: TensorRT's optimization level, 0 (quick build) to 5 (slow build); None takes TensorRT's default, 3.
        isolate: Build in a child process, so that a crash inside TensorRT is an error here.
        output: The file to write; None puts it beside the model, its name saying the precision.
        overwrite: Replace the output if it exists.
        progress: Receives events.
        cancel: Asked between steps.

    Returns:
        The file and what made it.

    Raises:
        RecipeError: Settings out of range or at odds.
        OutputExistsError: The output exists and `overwrite` is false; nothing was computed.
        CapabilityError: This machine can't build what was asked.
        BuildError: TensorRT failed.
        ModelError, DataError, CalibrationError: From reading the model, the data or the calibration.
        CancelledError: The caller cancelled; nothing was written.
    """
    recipe = Recipe(
        model=str(model)
        if isinstance(model, (str, Path))
        else str(getattr(model, "source", None) or type(model).__name__),
        format=format,
        imgsz=imgsz,
        half=half,
        int8=int8,
        dynamic=dynamic,
        simplify=simplify,
        workspace=workspace,
        nms=nms,
        batch=batch,
        data=None if data is None else str(getattr(data, "path", data)),
        fraction=fraction,
        device=device,
        backend=backend,
        calibration=str(calibration) if isinstance(calibration, (str, Path)) else None,
        implicit=implicit,
        keep=tuple(keep) if not isinstance(keep, str) else (keep,),
        opt_level=opt_level,
        isolate=isolate,
        output=None if output is None else str(output),
        overwrite=overwrite,
    )
    return export_with_graph(model, recipe, calibration=calibration, data=data, progress=progress, cancel=cancel)[0]


def export_with_graph(
    model: Model | str | Path | torch.nn.Module,
    recipe: Recipe,
    *,
    calibration: Calibration | str | Path | None = None,
    data: str | Path | Dataset | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> tuple[Artifact, onnx.ModelProto]:
    """`export` by a recipe, with the ONNX graph that was written or built: ONNX Runtime judges by it where no GPU is.

    Args:
        model: From `load`, or what `load` takes; the recipe's model.
        recipe: The settings.
        calibration: A calibration or its folder in place of the recipe's.
        data: Calibration data in place of the recipe's.
        progress: Receives events.
        cancel: Asked between steps.

    Raises:
        TrtkitError: As `export` does.
    """
    from trtkit import backends
    from trtkit.calibration import calibrator as measurements
    from trtkit.models import Model, load

    started = time.perf_counter()
    reporter = Reporter(progress, cancel)
    calibration = recipe.calibration if calibration is None else calibration
    data = recipe.data if data is None else data
    builder = None
    # Before any slow work: an unknown backend, or a machine that can't build, raises at once.
    if recipe.backend is not None:
        backends.get_backend(recipe.backend)
    if recipe.format == "engine":
        builder = recipe.backend or backends.best("build")
        backends.require_build(builder, device=recipe.device)
    reporter.step("load", 0, 1)
    loaded = model if isinstance(model, Model) else load(model)
    path = Path(recipe.output) if recipe.output is not None else _default_path(loaded, recipe)
    if path.exists() and not recipe.overwrite:
        raise OutputExistsError(
            f"write {path}", "the file exists and was kept", "pass overwrite=True or another output"
        )
    size = _resolve_imgsz(loaded, recipe)
    ranges = None
    if recipe.int8 and not recipe.implicit:
        ranges = measurements.resolve_calibration(loaded, recipe, calibration, data, size, reporter)
    reporter.step("graph", 0, 1)
    overflow = None
    if recipe.half and data is not None:
        overflow = measurements.check_fp16_overflow(loaded, recipe, data, size, reporter)
    graph = build_graph(loaded, recipe, ranges, imgsz=size, overflow=overflow)
    calibration_hash = ranges.hash if ranges is not None else None
    info = dataclasses.replace(loaded.info, imgsz=size, output_format=NMS_ROWS if recipe.nms else loaded.output_format)
    build_seconds, passport = None, None
    if builder is None:
        import onnx

        with atomic_write(path, overwrite=recipe.overwrite) as temporary:
            onnx.save(graph, str(temporary))
    else:
        own = (
            measurements.prepare_implicit_calibration(loaded, recipe, data, size, path.parent, builder)
            if recipe.implicit
            else None
        )
        built, passport = _build_engine(graph, builder, loaded, recipe, ranges, size, reporter, own)
        build_seconds = built.seconds
        metadata = info.to_metadata(
            batch=recipe.batch, imgsz=size, dynamic=recipe.is_dynamic, half=recipe.half, int8=recipe.int8
        )
        backends.write_engine(path, built.plan, metadata, passport, overwrite=recipe.overwrite)
    reporter.step("done", 1, 1, f"wrote {path}")
    artifact = Artifact(
        path=path,
        format=recipe.format,
        precision=recipe.precision,
        info=info,
        recipe=recipe,
        model_hash=loaded.hash,
        calibration_hash=calibration_hash,
        passport=passport,
        seconds=time.perf_counter() - started,
        build_seconds=build_seconds,
        size=path.stat().st_size,
    )
    return artifact, graph


def build_graph(
    model: Model,
    recipe: Recipe,
    calibration: Calibration | None,
    *,
    imgsz: tuple[int, int],
    overflow: Mapping[str, float] | None = None,
) -> onnx.ModelProto:
    """The ONNX graph that a recipe asks for: traced, with suppression if asked, in the recipe's precision.

    Args:
        model: From `load`.
        recipe: The settings.
        calibration: Ranges, needed for INT8.
        imgsz: Height and width, multiples of the stride, pixels.
        overflow: Nodes that leave FP16's range on images, with their peaks; None where that was not looked at.
    """
    from trtkit.graph.analysis import GraphIndex
    from trtkit.graph.fp16 import convert_to_fp16
    from trtkit.graph.nms import add_nms
    from trtkit.graph.qdq import insert_qdq
    from trtkit.graph.torch_export import trace, update_metadata

    graph = trace(model, imgsz=imgsz, batch=recipe.batch, dynamic=recipe.is_dynamic, simplify=recipe.simplify)
    if recipe.nms and not model.nms:
        graph = add_nms(graph, model.info)
    if recipe.int8 and not recipe.implicit:
        assert calibration is not None
        graph = insert_qdq(graph, calibration.ranges, recipe.keep, corrections=calibration.corrections)
        update_metadata(graph, {}, {"calibration_hash": calibration.hash})
    elif recipe.int8:
        # TensorRT's calibrator would run decoding in INT8 too, where an image's width has 127 steps.
        update_metadata(graph, {}, {"fp32": sorted(GraphIndex(graph).decode_nodes())})
    elif recipe.half:
        graph = convert_to_fp16(graph, recipe.keep, keep_nodes=overflow or ())
        update_metadata(graph, {}, {"overflow": None if overflow is None else dict(overflow)})
    return update_metadata(graph, {}, {"recipe": recipe.to_dict()})


def _resolve_imgsz(model: Model, recipe: Recipe) -> tuple[int, int]:
    asked = recipe.imgsz if recipe.imgsz is not None else model.imgsz
    size = round_imgsz(asked, model.stride)
    if size != round_imgsz(asked, 1):
        warnings.warn(
            f"imgsz {asked} is no multiple of the model's stride {model.stride}: exported at {size[0]}x{size[1]}.",
            stacklevel=4,
        )
    return size


def _build_engine(
    graph: onnx.ModelProto,
    builder: str,
    model: Model,
    recipe: Recipe,
    calibration: Calibration | None,
    size: tuple[int, int],
    reporter: Reporter,
    implicit: ImplicitCalibration | None,
) -> tuple[Any, Passport]:
    from trtkit import backends
    from trtkit.graph.fp16 import convert_qdq_to_fp16
    from trtkit.graph.pad_channels import pad_channels

    if recipe.int8 and builder == "tensorrt":
        graph = pad_channels(graph)
    if calibration is not None and backends.probe(builder).strongly_typed_only:
        # Such a TensorRT takes every type from the graph: without this, what is not INT8 would run in FP32.
        graph = convert_qdq_to_fp16(graph)
    settings = backends.BuildSettings(
        precision=recipe.precision,
        batch=recipe.batch,
        imgsz=size,
        dynamic=recipe.is_dynamic,
        workspace=recipe.workspace,
        device=recipe.device,
        opt_level=recipe.opt_level,
        isolate=recipe.isolate,
        implicit=implicit,
    )
    built = backends.build(graph, settings, backend=builder, reporter=reporter)
    passport = backends.Passport.from_build(
        built,
        settings,
        backend=builder,
        model_hash=model.hash,
        recipe=recipe.to_dict(),
        data_hash=calibration.provenance.data_hash if calibration is not None else None,
        calibration_hash=calibration.hash if calibration is not None else None,
        graph_hash=hash_parts(graph.SerializeToString(deterministic=True)),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    return built, passport


def _default_path(model: Model, recipe: Recipe) -> Path:
    """`yolo11n.engine`, `yolo11n-fp16.engine`, `yolo11n-int8.onnx`, ...: precisions don't overwrite each other."""
    folder = model.source.parent if model.source is not None else Path()
    mark = "" if recipe.precision == "fp32" else f"-{recipe.precision}"
    suffix = ".engine" if recipe.format == "engine" else ".onnx"
    path = folder / f"{model.stem}{mark}{suffix}"
    # An ONNX source must not be overwritten by its own export.
    return path if model.source is None or path != model.source else folder / f"{model.stem}-trtkit{suffix}"

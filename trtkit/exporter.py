"""export(): a model to a TensorRT engine or an ONNX file."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.errors import BuildError, RecipeError, warn
from trtkit.models.model import NMS_ROWS, ModelInfo
from trtkit.progress import CancelToken, Cost, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.recipe import Recipe, round_imgsz
from trtkit.writing import check_output

if TYPE_CHECKING:
    import onnx
    import torch

    from trtkit.backends import Passport
    from trtkit.calibration import Calibration
    from trtkit.data import DataSource
    from trtkit.models import Model
    from trtkit.verification import Verification

__all__ = ["Artifact", "default_output", "export", "export_with_graph"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file that `export` wrote.

    Attributes:
        path: The file.
        format: "engine" or "onnx".
        precision: "fp32", "fp16" or "int8".
        info: Task, classes, input and output of the model.
        recipe: The settings of the export.
        model_hash: SHA-256 of the model's weights and architecture.
        calibration_hash: SHA-256 of the calibration of an INT8 file, else None.
        passport: What an engine was built with and for; None for ONNX.
        seconds: Wall time of the whole export, s.
        build_seconds: Wall time of the engine build alone, s; None for ONNX.
        build_latencies: Of several builds, median latency of each at the largest batch, ms, in their order; else ().
        verification: The engine against ONNX Runtime; None where it was not compared.
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
    build_latencies: tuple[float, ...] = ()
    verification: Verification | None = None
    size: int

    def __repr__(self) -> str:
        target = f" for {self.passport.gpu or self.passport.sm}" if self.passport is not None else ""
        size = f"{self.size / 1e6:.1f} MB"
        return f"Artifact({self.path}: {self.precision} {self.format}{target}, {size}, {self.seconds:.1f} s)"


@verb
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
    data: DataSource | None = None,
    fraction: float = 1.0,
    device: int | str | None = None,
    *,
    end2end: bool = False,
    decode: bool = True,
    conf: float = 0.25,
    iou: float = 0.7,
    max_det: int = 300,
    backend: str | None = None,
    calibration: Calibration | str | Path | None = None,
    implicit: bool = False,
    keep: Sequence[str] = (),
    compatibility: str | None = None,
    weights: str | None = None,
    opt_level: int | None = None,
    aux_streams: int | None = None,
    space_to_depth: bool = False,
    builds: int = 1,
    verify: bool = True,
    isolate: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Artifact:
    """Export a model to a TensorRT engine or an ONNX file in FP32, FP16 or INT8.

    Args:
        model: From `load`, or what `load` takes.
        format: "engine" or "onnx".
        imgsz: Image side, or (height, width), pixels; None takes the model's own. Rounded up to the stride.
        half: FP16.
        int8: INT8 by Q/DQ in the graph; layers that do not gain from INT8 run in FP16. A model that holds Q/DQ is taken
            as it is, without calibration.
        dynamic: Leave batch, height and width open; None keeps the shape of an ONNX file, and means yes for an INT8
            engine of any other model, unless `space_to_depth` is set, and no otherwise.
        simplify: Simplify the graph with onnxslim.
        workspace: Memory the builder may use, GiB; None lets TensorRT decide.
        nms: Put NMS into the graph. By default it comes after the graph, whose output is dense.
        batch: The largest batch; engines accept smaller ones.
        data: Calibration data for INT8: a data set's YAML file (or folder, for classify), a folder of images, a glob
            pattern, an image or a list of these; None takes the task's embedded example set and warns. With `half`,
            images for the overflow check; None skips it.
        fraction: Share of the split that calibration images are drawn from, in (0, 1].
        device: GPU index or name ("cuda:1"), "dla:0", or "sm89" (build for a GPU that is not here); None = first GPU.
        end2end: Take the one-to-one head of a checkpoint (YOLO26, YOLOv10), which needs no NMS. A model that was loaded
            with this head, and an ONNX file that holds its rows, keep it. Ultralytics 8.4.190 says `nms=False` for
            `end2end=True` and `nms=None` for the default.
        decode: Decode boxes and scores in the graph. False ends it with the maps of the detection head (`RAW_MAPS`):
            `predict`, `evaluate` and `verify` then decode candidates alone. Ultralytics and `deploy` do not read it.
        conf: With `nms`, the lowest score, exclusive; it is fixed in the file.
        iou: With `nms`, class-wise: of two boxes with IoU > `iou` the lower score is dropped; fixed in the file.
        max_det: Rows of NMS in the graph or of the one-to-one head.
        backend: "tensorrt" or "tensorrt_rtx"; None takes the best present.
        calibration: A `Calibration`, the folder of a saved one, or a TensorRT calibration cache (`.cache`), which can't
            be checked and warns; None calibrates on `data` with `trtkit.calibration.DEFAULTS`.
        implicit: INT8 by TensorRT's own min-max calibrator (TensorRT <= 10) instead of Q/DQ in the graph; its `.cache`
            is written beside the engine.
        keep: fnmatch patterns of ONNX node names excluded from INT8 (with FP16: kept in FP32).
        compatibility: Which other machines run the engine: "same_compute_capability" (any GPU of the builder's compute
            capability), "ampere_plus" (Ampere and newer GPUs, Jetson excluded) or "version" (later TensorRT versions;
            the file then holds a runtime of its own, see `trtkit.open`), where TensorRT has it; None for no others.
        weights: "refittable" (`backends.refit_engine` can replace them) or "stripped" (the file has none until it puts
            them in), where TensorRT has it; None for weights that stay as they are.
        opt_level: TensorRT's optimization level, 0 (fast build) to 5 (slow build); None takes TensorRT's default, 3.
        aux_streams: Streams beside the first on which TensorRT may run layers that do not depend on each other, such as
            a head's branches, 0 to 16; more can be faster and take more memory. None lets TensorRT decide.
        space_to_depth: Let an INT8 or FP16 engine of fixed shapes read pixels of its precision in blocks of 2 x 2, or
            of 4 x 4 where the first layer has few channels, instead of FP32 images: a third to two thirds of the bytes,
            and no kernel that converts them. trtkit's runner makes them of the same images; Ultralytics and `deploy`
            do not read such an engine. TensorRT on a GPU only.
        builds: Build an engine so many times, each without the timing cache, and keep the fastest that passes `verify`;
            `Artifact.build_latencies` has the latency of all of them. The GPU must be in this machine.
        verify: Compare an engine with ONNX Runtime on images of `data`, or of the embedded set, before it is written
            (`trtkit.verify`). An engine for another machine, or of `implicit`, is not compared.
        isolate: Build in a child process, so that a crash inside TensorRT is an error here.
        output: The file to write; None puts it beside the model, with the precision in its name.
        overwrite: Replace the output if it exists.
        progress: Receives events.
        cancel: Checked between steps.

    Returns:
        The file and its facts.

    Raises:
        RecipeError: A setting is out of range, or settings contradict each other or the model.
        OutputExistsError: The output exists and `overwrite` is false; nothing was computed.
        CapabilityError: This machine can't build what was asked.
        BuildError: TensorRT failed to build the engine, or the engine differs from its graph (code "engine-differs").
        OnnxError: The ONNX checker or ONNX Runtime rejects the graph; nothing was written.
        ModelError, DataError, CalibrationError: From reading the model, the data or the calibration.
        CancelledError: The caller cancelled; nothing was written.
    """
    arguments = locals()
    source = model if isinstance(model, (str, Path)) else getattr(model, "source", None) or type(model).__name__
    recipe = Recipe(
        **{
            **{field.name: arguments[field.name] for field in dataclasses.fields(Recipe)},
            "model": source,
            "end2end": end2end or getattr(model, "end2end", None) is True,
            "data": getattr(data, "source", data),
            "calibration": calibration if isinstance(calibration, (str, Path)) else None,
        }
    )
    return export_with_graph(
        model, recipe, calibration=calibration, data=data, verify=verify, progress=progress, cancel=cancel
    )[0]


def export_with_graph(
    model: Model | str | Path | torch.nn.Module,
    recipe: Recipe,
    *,
    calibration: Calibration | str | Path | None = None,
    data: DataSource | None = None,
    verify: bool = True,
    path: Path | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> tuple[Artifact, onnx.ModelProto]:
    """`export` by a recipe; also returns the ONNX graph that was written or built, for ONNX Runtime.

    Args:
        model: From `load`, or what `load` takes; the recipe's model.
        recipe: The settings.
        calibration: A calibration or its folder instead of the recipe's.
        data: Calibration data instead of the recipe's.
        verify: As in `export`.
        path: The file to write, which is moved to the recipe's output later; None writes that at once.
        progress: Receives events.
        cancel: Checked between steps.

    Returns:
        The file, and its ONNX graph.

    Raises:
        TrtkitError: As `export` does.
    """
    from trtkit import backends
    from trtkit.backends.trt.callbacks import require_calibrator
    from trtkit.calibration import DEFAULTS
    from trtkit.calibration.calibrator import (
        OVERFLOW_IMAGES,
        check_fp16_overflow,
        prepare_implicit_calibration,
        resolve_calibration,
    )
    from trtkit.calibration.sampling import count_calibration_images
    from trtkit.engine_builds import build_engines, time_builds, verify_engine
    from trtkit.graph.fp16 import match_node_names
    from trtkit.graph.prequantized import is_quantized
    from trtkit.graph.raw_maps import check_raw_maps_apply
    from trtkit.graph.recipe_graph import build_graph, cuts_decoding, trace_with_nms
    from trtkit.graph.space_to_depth import check_space_to_depth
    from trtkit.graph.torch_export import check_trace
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
        builder = backends.require_build(
            recipe.backend, device=recipe.device, compatibility=recipe.compatibility, weights=recipe.weights
        ).backend
        if recipe.implicit:
            require_calibrator(builder)
        if recipe.space_to_depth:
            _check_reads_blocks(builder, recipe)
        if recipe.builds > 1:
            backends.require_run(builder, device=recipe.device)
    reporter.step("load", 0, 1)
    loaded = model if isinstance(model, Model) else load(model)
    if recipe.dynamic is None and loaded.proto is not None:
        # An ONNX source keeps its own shape.
        recipe = dataclasses.replace(recipe, dynamic=_has_dynamic_input(loaded.proto))
    if path is None:
        path = Path(recipe.output) if recipe.output is not None else default_output(loaded, recipe)
    check_output(path, overwrite=recipe.overwrite)
    loaded = _select_outputs(loaded, recipe)
    size = _resolve_imgsz(loaded, recipe)
    quantized = is_quantized(loaded.proto)
    if quantized:
        _check_quantized_export(loaded, recipe, calibration, data)
    check_trace(loaded, imgsz=size, batch=recipe.batch, dynamic=recipe.is_dynamic)
    if recipe.keep or recipe.space_to_depth:
        traced = trace_with_nms(loaded, recipe, size)
        kept = match_node_names([node.name for node in traced.graph.node], recipe.keep)
        if recipe.space_to_depth:
            check_space_to_depth(traced, kept=kept)
    calibrates = recipe.int8 and calibration is None and not quantized
    checks_overflow = recipe.half and data is not None
    images = {}
    if calibrates or checks_overflow:
        most = DEFAULTS.calibration_images if calibrates else OVERFLOW_IMAGES
        count = count_calibration_images(data, loaded, calibration_images=most, fraction=recipe.fraction)
        images["calibration" if calibrates else "overflow check"] = count
    build_step = "write the ONNX file" if builder is None else f"build {recipe.precision} engine"
    start_work(
        Plan(
            verb="export",
            settings={
                "model": loaded.stem,
                "precision": recipe.precision,
                "imgsz": size,
                "batch": recipe.batch,
                "dynamic": recipe.is_dynamic,
                "builder": builder,
            },
            images=images,
            steps=(
                *(["calibrate"] if calibrates else []),
                *(["check for overflow in FP16"] if checks_overflow else []),
                "trace the graph and add NMS" if recipe.nms and not loaded.nms else "trace the graph",
                *([f"convert to {recipe.precision}"] if recipe.precision != "fp32" and not quantized else []),
                build_step,
                *(["time the builds"] if recipe.builds > 1 else []),
                *(["verify"] if builder is not None and verify else []),
            ),
            files=(path,),
            costs={
                "calibrate": Cost(kind="calibrate", images=images.get("calibration", 0)),
                **({} if builder is None else {build_step: Cost(kind="build")}),
            },
        ),
        reporter,
    )
    resolved = None
    if recipe.int8 and not recipe.implicit and not quantized:
        if calibrates:
            reporter.begin("calibrate")
        resolved = resolve_calibration(loaded, recipe, calibration, data, size, reporter)
    overflow = None
    if checks_overflow:
        reporter.begin("check for overflow in FP16")
        overflow = check_fp16_overflow(loaded, recipe, data, size, reporter)
    graph = build_graph(loaded, recipe, resolved, imgsz=size, overflow=overflow, reporter=reporter)
    reporter.begin(build_step)
    calibration_hash = resolved.hash if resolved is not None else None
    info = dataclasses.replace(loaded.info, imgsz=size)
    if recipe.nms and not loaded.nms:
        info = dataclasses.replace(info, output_format=NMS_ROWS, row_settings=_read_nms_settings(recipe))
    if cuts_decoding(loaded, recipe):
        info = dataclasses.replace(info, output_format=check_raw_maps_apply(loaded), row_settings={})
    build_seconds, passport, verification = None, None, None
    latencies: tuple[float, ...] = ()
    if builder is None:
        from trtkit.graph.onnx_file import write_onnx

        write_onnx(graph, path, overwrite=recipe.overwrite)
    else:
        implicit = (
            prepare_implicit_calibration(loaded, recipe, data, size, path.parent, builder) if recipe.implicit else None
        )
        builds = build_engines(graph, builder, loaded, recipe, resolved, size, reporter, implicit)
        metadata = info.to_metadata(
            batch=recipe.batch, imgsz=size, dynamic=recipe.is_dynamic, half=recipe.half, int8=recipe.int8
        )
        if recipe.builds > 1:
            reporter.begin("time the builds")
            builds = time_builds(builds, metadata, recipe, path.parent, reporter)
            latencies = tuple(build.p50_ms for build in builds if build.p50_ms is not None)
            builds.sort(key=lambda build: build.p50_ms or 0.0)

        def check(engine: Path) -> None:
            nonlocal verification
            verification = verify_engine(engine, graph, builder, recipe, data, path, reporter)

        if verify:
            reporter.begin("verify")
        differing: BuildError | None = None
        for build in builds:
            try:
                backends.write_engine(
                    path,
                    build.result.plan,
                    metadata,
                    build.passport,
                    overwrite=recipe.overwrite,
                    check=check if verify else None,
                )
            except BuildError as error:
                # The next fastest may be right.
                differing = differing or error
                continue
            build_seconds, passport = build.result.seconds, build.passport
            break
        else:
            assert differing is not None
            raise differing
    reporter.finish(f"wrote {path}")
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
        build_latencies=latencies,
        verification=verification,
        size=path.stat().st_size,
    )
    return artifact, graph


def _check_reads_blocks(builder: str, recipe: Recipe) -> None:
    from trtkit.backends.devices import parse_device

    if builder != "tensorrt" or parse_device(recipe.device).kind == "dla":
        raise RecipeError(
            f"export with space_to_depth=True for {recipe.device or builder}",
            "TensorRT on a GPU alone reads pixels in blocks",
            "leave out space_to_depth",
            code="space-to-depth-backend",
            backend=builder,
            device=recipe.device,
        )


def _check_quantized_export(model: Model, recipe: Recipe, calibration: Any, data: Any) -> None:
    """Raise an error for settings that a graph with Q/DQ of its own can't take."""
    from trtkit.graph.recipe_graph import cuts_decoding

    asked = f"export {model.stem}, which holds Q/DQ"
    if not recipe.int8 or recipe.implicit:
        requested = "TensorRT's own calibrator" if recipe.implicit else recipe.precision.upper()
        raise RecipeError(
            asked,
            f"{requested} was requested, but its scales make it INT8",
            "pass int8=True alone, or export the float model it was made from",
            code="model-already-quantized",
            precision=recipe.precision,
        )
    given = {"keep": recipe.keep, "calibration": calibration, "data": data}
    names = [name for name, value in given.items() if value is not None and value != ()]
    if cuts_decoding(model, recipe):
        raise RecipeError(
            asked,
            "decode=False finds the head by its float weights, and they are behind Q/DQ",
            "leave decode out, or export the float model it was made from",
            code="quantized-model-decode",
        )
    if names:
        raise RecipeError(
            asked,
            f"its scales and its placement are kept, so {', '.join(names)} would change nothing",
            f"leave out {', '.join(names)}",
            code="quantized-model-settings",
            names=names,
        )


def _has_dynamic_input(proto: onnx.ModelProto) -> bool:
    """Whether batch, height and width of a graph are open."""
    sides = proto.graph.input[0].type.tensor_type.shape.dim
    return all(sides[axis].dim_value <= 0 for axis in (0, 2, 3))


def _select_outputs(model: Model, recipe: Recipe) -> Model:
    """The model with the head that the recipe asks for.

    Raises:
        ModelError: It has no one-to-one head.
        RecipeError: NMS, or the number of rows, can't be had from it.
    """
    from trtkit.graph.nms import check_nms_applies
    from trtkit.graph.raw_maps import check_raw_maps_apply
    from trtkit.graph.recipe_graph import cuts_decoding

    if recipe.end2end or model.end2end:
        model = model.with_end2end(max_det=recipe.max_det)
    elif recipe.nms and not model.nms:
        check_nms_applies(model)
    if cuts_decoding(model, recipe):
        check_raw_maps_apply(model)
    # A graph from a file selects its rows by its own settings.
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    for name, value in _read_nms_settings(recipe).items():
        is_fixed = model.nms or (model.end2end and name == "max_det")
        has_none = name == "max_det" and not (recipe.decode and (recipe.nms or model.end2end))
        if value != defaults[name] and (has_none or (is_fixed and value != model.row_settings.get(name))):
            raise RecipeError(
                f"export with {name}={value}",
                "the model's graph selects no boxes" if has_none else f"the model's graph has its own {name}",
                "pass it to predict, or add nms=True or end2end=True" if has_none else "leave it out",
                code="recipe-row-settings-unused",
                name=name,
                value=value,
            )
    return model


def _read_nms_settings(recipe: Recipe) -> dict[str, float]:
    return {"conf": recipe.conf, "iou": recipe.iou, "max_det": recipe.max_det}


def _resolve_imgsz(model: Model, recipe: Recipe) -> tuple[int, int]:
    requested = recipe.imgsz if recipe.imgsz is not None else model.imgsz
    size = round_imgsz(requested, model.stride)
    if size != round_imgsz(requested, 1):
        warn(f"imgsz {requested} is not a multiple of the stride {model.stride}: exported at {size[0]}x{size[1]}.")
    return size


def default_output(model: Model, recipe: Recipe) -> Path:
    """The file that `export` writes without `output`: `yolo11n.engine`, `yolo11n-fp16.engine`, `yolo11n-int8.onnx`, ...

    Args:
        model: From `load`.
        recipe: The settings.
    """
    folder = model.source.parent if model.source is not None else Path()
    ending = "" if recipe.precision == "fp32" else f"-{recipe.precision}"
    suffix = ".engine" if recipe.format == "engine" else ".onnx"
    path = folder / f"{model.stem}{ending}{suffix}"
    # An ONNX source must not be overwritten by its own export.
    return path if model.source is None or path != model.source else folder / f"{model.stem}-trtkit{suffix}"

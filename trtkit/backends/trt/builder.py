"""Build an engine from an ONNX graph with TensorRT 8.6, 10.x, 11.x or TensorRT-RTX, as their capabilities allow."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtkit.backends.build_settings import BuildResult, BuildSettings, ImplicitCalibration
from trtkit.backends.capabilities import Capabilities, import_bindings, require_torch_cuda
from trtkit.backends.devices import Device, Gpu, is_ampere_plus, parse_device, query_free_memory
from trtkit.backends.requirements import get_build_target, require_build
from trtkit.backends.trt.callbacks import (
    PROGRESS_STEPS,
    BuildProgress,
    Messages,
    capture_messages,
    create_calibrator,
    create_monitor,
    get_logger,
    require_calibrator,
)
from trtkit.backends.trt.layer_info import parse_build_log, parse_inspector_json
from trtkit.backends.trt.network import (
    TimingCache,
    compute_profile_shapes,
    constrain_precisions,
    create_network,
    find_image_input,
    parse_onnx,
    returns_raw_maps,
    use_strong_typing,
)
from trtkit.errors import BuildError, CapabilityError, EngineError, OnnxError, RecipeError, warn
from trtkit.graph.qdq import expand_int8_weights
from trtkit.graph.space_to_depth import LANES, read_pixel_input
from trtkit.models.onnx_model import load_external_weights
from trtkit.progress import Reporter

__all__ = ["build_engine", "read_graph"]

GIB = 2**30
# Runs that each tactic timing averages; `trtexec` uses 8 too. TensorRT's default of 1 picks slower tactics.
TIMING_ITERATIONS = 8
MAX_WARNINGS = 20


def read_graph(source: str | Path | bytes | onnx.ModelProto) -> tuple[bytes, onnx.ModelProto, str]:
    """Read an ONNX model.

    Args:
        source: A file, its bytes, or the graph.

    Returns:
        Its bytes, the graph, and its path ("" for a graph in memory).

    Raises:
        OnnxError: The file is missing or not an ONNX graph.
    """
    if isinstance(source, onnx.ModelProto):
        return source.SerializeToString(), source, ""
    path = "" if isinstance(source, bytes) else str(source)
    asked = f"build {path or 'an ONNX graph'}"
    if not isinstance(source, bytes):
        if not Path(source).is_file():
            raise OnnxError(asked, "the file does not exist", "check the path", code="onnx-not-found", path=path)
        source = Path(source).read_bytes()
    try:
        proto = onnx.load_model_from_string(source)
    except Exception as error:
        # protobuf's error types differ between its versions.
        raise OnnxError(
            asked, "it is not an ONNX graph", "pass an ONNX file", code="onnx-invalid", path=path
        ) from error
    if not proto.graph.node:
        raise OnnxError(asked, "its graph has no nodes", "pass an ONNX file", code="onnx-invalid", path=path)
    return source, proto, path


def build_engine(
    source: str | Path | bytes | onnx.ModelProto, settings: BuildSettings, *, backend: str | None, reporter: Reporter
) -> BuildResult:
    """Build an engine in this process.

    Args:
        source: The ONNX graph.
        settings: Build settings.
        backend: "tensorrt" or "tensorrt_rtx"; None takes the best present.
        reporter: Progress callback and cancellation token. TensorRT 8.6 reports no progress while it builds, and can
            be stopped then only with `isolate`.

    Raises:
        CapabilityError: This machine can't build what was asked.
        RecipeError: A setting does not fit the graph or the GPU.
        BuildError: TensorRT rejected the graph or failed.
        CancelledError: The caller cancelled.
    """
    capabilities = require_build(
        backend, device=settings.device, compatibility=settings.compatibility, weights=settings.weights
    )
    if settings.implicit is not None:
        require_calibrator(capabilities.backend)
    device = parse_device(settings.device)
    gpu = capabilities.gpus[device.gpu] if capabilities.gpus and device.kind != "sm" else None
    _check_workspace(settings, gpu)
    data, proto, path = read_graph(source)
    if not capabilities.has_int8_weights:
        data, proto = _expand_int8_weights(data, proto, path)
    stage = f"build {settings.precision} engine"
    reporter.step(stage, 0, PROGRESS_STEPS)
    started = time.perf_counter()
    with capture_messages() as messages, _select_gpu(gpu):
        job = _EngineBuild(capabilities, settings, device, gpu, proto, messages)
        plan = job.run(data, path, BuildProgress(reporter, stage))
        seconds = time.perf_counter() - started
        layers = parse_build_log(messages.table) or job.inspect(plan)
    reporter.step(stage, PROGRESS_STEPS, PROGRESS_STEPS)
    gpu_sm = gpu.sm if gpu is not None else ""
    pixels = read_pixel_input(proto)
    facts = {
        "backend": capabilities.backend,
        "tensorrt": capabilities.version,
        "cuda": gpu.cuda if gpu is not None else "",
        "driver": gpu.driver if gpu is not None else "",
        "gpu": gpu.name if gpu is not None else "",
        "sm": get_build_target(capabilities, device) if capabilities.cross_build_targets else gpu_sm,
        "built_without_gpu": gpu is None,
        "strongly_typed": job.strongly_typed,
        "pixel_input": None if pixels is None else dataclasses.asdict(pixels),
        "timing_cache": str(job.cache.path) if job.cache is not None else None,
        "timing_cache_bytes": job.cache_bytes,
        "warnings": list(dict.fromkeys(messages.warnings))[:MAX_WARNINGS],
    }
    return BuildResult(plan=plan, seconds=seconds, facts=facts, layers=layers)


def _expand_int8_weights(data: bytes, proto: onnx.ModelProto, path: str) -> tuple[bytes, onnx.ModelProto]:
    """The graph with float weights behind Q/DQ pairs; as it is where it stores no weight as INT8."""
    if path:
        load_external_weights(proto, path, f"build {path}")
    expanded = expand_int8_weights(proto)
    return (data, proto) if expanded == proto else (expanded.SerializeToString(), expanded)


class _EngineBuild:
    """One build and the objects its steps share."""

    def __init__(
        self,
        capabilities: Capabilities,
        settings: BuildSettings,
        device: Device,
        gpu: Gpu | None,
        proto: onnx.ModelProto,
        messages: Messages,
    ) -> None:
        self.capabilities, self.settings, self.device, self.gpu = capabilities, settings, device, gpu
        self.proto, self.messages = proto, messages
        self.trt: Any = import_bindings(capabilities.backend)
        self.strongly_typed = use_strong_typing(capabilities, settings, proto)
        self.cache: TimingCache | None = None
        self.cache_bytes = 0
        # TensorRT calls the calibrator and the monitor while it builds, so both must stay referenced until then. A
        # retry uses the calibrator of the first try.
        self.calibrator: Any = None
        self.calibration_shape: tuple[int, ...] = ()
        self.monitor: Any = None
        if capabilities.has_timing_cache and gpu is not None:
            self.cache = TimingCache.from_setting(
                settings.timing_cache, version=capabilities.version, gpu=gpu.name, sm=gpu.sm
            )

    def run(self, data: bytes, path: str, progress: BuildProgress) -> bytes:
        plan, config = self._try_build(data, path, progress)
        first_reason = ""
        if plan is None and self.cache is not None and self._is_cache_error() and self._can_retry(progress):
            first_reason = self.messages.summary()
            self.messages.errors.clear()
            plan, config = self._try_build(data, path, progress, use_cache=False)
            if plan is not None:
                # The retry proves that the cache file broke the build; a file that did not is kept.
                self.cache.delete()
                warn(f"The timing cache {self.cache.path} broke the build: it was deleted, and the build repeated.")
        for failure in (progress.failure, getattr(self.calibrator, "failure", None)):
            if failure is not None:
                raise failure
        if plan is None:
            raise self._build_error(first_reason)
        if self.cache is not None:
            self.cache.save(config)
        return bytes(plan)

    def _try_build(self, data: bytes, path: str, progress: BuildProgress, *, use_cache: bool = True) -> tuple[Any, Any]:
        """Build once, with new objects: the state of a network after a failed build is undefined.

        Args:
            data: The ONNX graph.
            path: The ONNX file, for weights stored beside it.
            progress: Receives progress.
            use_cache: Load the timing cache's file.

        Returns:
            The plan, None where TensorRT failed, and the builder configuration.
        """
        builder = self._create_builder()
        network = create_network(builder, self.capabilities, strongly_typed=self.strongly_typed)
        parser = self.trt.OnnxParser(network, get_logger(self.capabilities.backend))
        parse_onnx(parser, data, self.proto, self.capabilities, path=path)
        config = builder.create_builder_config()
        self._configure(builder, config, network)
        self._set_precision(config, network)
        if self.capabilities.has_progress_monitor:
            self.monitor = create_monitor(self.capabilities.backend, progress)
            config.progress_monitor = self.monitor
        if self.cache is not None and use_cache:
            self.cache_bytes = self.cache.attach(config)
        elif self.cache is not None:
            self.cache.attach_empty(config)
        return builder.build_serialized_network(network, config), config

    def _can_retry(self, progress: BuildProgress) -> bool:
        """Whether a failed build may be repeated: it used a cache file, and its calibration images are not lost."""
        is_calibrated = self.calibrator is None or bool(self.calibrator.scales)
        return bool(self.cache_bytes) and progress.failure is None and is_calibrated

    def inspect(self, plan: bytes) -> tuple[Any, ...]:
        """The layer table of an engine; empty without a GPU, or where the inspector returns none."""
        if self.gpu is None:
            return ()
        runtime = self.trt.Runtime(get_logger(self.capabilities.backend))
        if self.settings.compatibility == "version":
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return ()
        text = engine.create_engine_inspector().get_engine_information(self.trt.LayerInformationFormat.JSON)
        try:
            return parse_inspector_json(text)
        except EngineError as error:
            # The engine itself is usable.
            warn(f"The engine was built, but its layer table can't be read: {error}")
            return ()

    def _create_builder(self) -> Any:
        try:
            return self.trt.Builder(get_logger(self.capabilities.backend))
        except (TypeError, RuntimeError) as error:
            # pybind11 says "factory function returned nullptr"; the reason is in the log.
            raise BuildError(
                f"start {self.capabilities.title}",
                self.messages.summary(str(error)),
                "check that the NVIDIA driver supports this TensorRT",
                code="build-start-failed",
            ) from error

    def _configure(self, builder: Any, config: Any, network: Any) -> None:
        """Set everything but precisions."""
        trt, settings, capabilities = self.trt, self.settings, self.capabilities
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.avg_timing_iterations = TIMING_ITERATIONS
        if settings.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(settings.workspace * GIB))
        if settings.opt_level is not None:
            config.builder_optimization_level = settings.opt_level
        if settings.aux_streams is not None:
            config.max_aux_streams = settings.aux_streams
        if capabilities.cross_build_targets:
            targets = [get_build_target(capabilities, self.device)]
            if settings.compatibility == "ampere_plus":
                targets = [name for name in capabilities.cross_build_targets if is_ampere_plus(name)]
            config.num_compute_capabilities = len(targets)
            for index, name in enumerate(targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)
        elif settings.compatibility == "version":
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        elif settings.compatibility is not None:
            level = getattr(trt.HardwareCompatibilityLevel, settings.compatibility.upper())
            config.hardware_compatibility_level = level
        self._set_weights(config)
        if capabilities.limit_tactics:
            config.set_tactic_sources(
                1 << int(trt.TacticSource.EDGE_MASK_CONVOLUTIONS) | 1 << int(trt.TacticSource.JIT_CONVOLUTIONS)
            )
        if self.device.kind == "dla":
            self._use_dla(builder, config)
        tensor = find_image_input(network)
        shape = tuple(tensor.shape)
        pixels = read_pixel_input(self.proto)
        if pixels is not None:
            form = trt.TensorFormat.HWC8 if pixels.scale is None else trt.TensorFormat.CHW32
            tensor.allowed_formats = 1 << int(form)
            shape = pixels.image_shape(shape, LANES)
        shapes = compute_profile_shapes(settings, shape)
        if shapes is not None:
            _add_profile(builder, config, network, tensor.name, shapes)
        if settings.implicit is not None:
            self._calibrate(builder, config, tensor, settings.implicit, has_profile=shapes is not None)

    def _set_weights(self, config: Any) -> None:
        flags = self.trt.BuilderFlag
        if self.settings.weights == "refittable":
            config.set_flag(flags.REFIT)
        elif self.settings.weights == "stripped":
            config.set_flag(flags.STRIP_PLAN)
            # The same weights come back: kernels that only fit these are allowed.
            config.set_flag(getattr(flags, "REFIT_IDENTICAL", flags.REFIT))

    def _use_dla(self, builder: Any, config: Any) -> None:
        trt = self.trt
        cores = builder.num_DLA_cores
        if self.device.index >= cores:
            raise CapabilityError(
                f"build for DLA core {self.device.index}",
                f"this machine has {cores} DLA cores",
                "pass device=0 for the GPU",
                code="dla-core",
                value=self.device.index,
                count=cores,
            )
        if self.settings.precision == "fp32":
            raise RecipeError(
                f"device='dla:{self.device.index}'",
                "DLA runs FP16 and INT8 only",
                "pass half=True or int8=True",
                code="dla-precision",
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = self.device.index
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)

    def _set_precision(self, config: Any, network: Any) -> None:
        """Set precision flags, where types do not come from the graph alone."""
        if self.strongly_typed:
            return
        flags = self.trt.BuilderFlag
        if self.settings.precision in ("fp16", "int8"):
            config.set_flag(flags.FP16)
        if self.settings.precision == "int8":
            config.set_flag(flags.INT8)
            if returns_raw_maps(self.proto):
                # Half the bytes to write and to read, where the graph's own types don't say so.
                for place in range(network.num_outputs):
                    network.get_output(place).dtype = self.trt.float16
        calibrated = self.settings.implicit is not None
        if constrain_precisions(network, self.proto, self.capabilities, calibrated=calibrated):
            config.set_flag(flags.PREFER_PRECISION_CONSTRAINTS)

    def _calibrate(
        self, builder: Any, config: Any, tensor: Any, implicit: ImplicitCalibration, *, has_profile: bool
    ) -> None:
        if self.calibrator is None:
            batches: Iterator[np.ndarray] = iter(implicit.batches)
            if not has_profile:
                # TensorRT calibrates a static network at its own batch and reads no further into a larger one.
                batches = _rebatch(batches, int(tensor.shape[0]))
            first = next(batches, None)
            whole: Iterable[np.ndarray] = batches if first is None else itertools.chain([first], batches)
            implicit = dataclasses.replace(implicit, batches=whole)
            self.calibrator = create_calibrator(self.capabilities.backend, implicit, device=self.device.gpu)
            self.calibration_shape = (
                first.shape if first is not None else (self.settings.batch, tensor.shape[1], *self.settings.imgsz)
            )
        config.int8_calibrator = self.calibrator
        if has_profile:
            profile = builder.create_optimization_profile()
            profile.set_shape(tensor.name, *3 * (self.calibration_shape,))
            config.set_calibration_profile(profile)

    def _is_cache_error(self) -> bool:
        text = " ".join(self.messages.errors).lower()
        return "timing cache" in text or "myelin" in text

    def _build_error(self, first_reason: str = "") -> BuildError:
        """Why TensorRT built nothing; `first_reason` is that of an earlier try with the timing cache."""
        asked = f"build an engine with {self.capabilities.title}"
        reason = self.messages.summary()
        if first_reason and first_reason != reason:
            reason = f"{first_reason}; again without the timing cache: {reason}"
        text = reason.lower()
        if any(mark in text for mark in ("out of memory", "outofmemory", "insufficient memory", "unsupported_state")):
            free_bytes = query_free_memory(self.gpu.index) if self.gpu is not None else None
            free = f", {free_bytes / GIB:.1f} of them free" if free_bytes is not None else ""
            total = f" (the GPU has {self.gpu.memory_gib:.1f} GiB{free})" if self.gpu is not None else ""
            return BuildError(
                asked,
                f"not enough memory{total}: {reason}",
                "lower batch, imgsz or workspace, or free memory on the GPU",
                code="build-out-of-memory",
                memory=self.gpu.memory if self.gpu is not None else None,
                free=free_bytes,
                reason=reason,
            )
        node = re.search(r"could not find any implementation for node (.+?)\.(?:\s|$)", reason, re.IGNORECASE)
        if node is not None:
            if self.settings.weights is not None:
                do = f"leave out weights={self.settings.weights!r}, which few kernels support"
            elif self.settings.dynamic:
                do = "build it for one shape with dynamic=False, or another imgsz or opt_level"
            elif self.settings.precision == "int8":
                do = f"leave it in float with keep=[{node[1]!r}], or try another imgsz or opt_level"
            else:
                do = "try another imgsz or opt_level, or replace the operator"
            return BuildError(
                asked,
                f"it has no kernel for {node[1]}",
                do,
                code="build-no-kernel",
                node=node[1],
                reason=reason,
            )
        return BuildError(
            asked, reason, "see the trtkit.tensorrt log for all messages", code="build-failed", reason=reason
        )


def _add_profile(builder: Any, config: Any, network: Any, name: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    profile = builder.create_optimization_profile()
    profile.set_shape(name, *shapes)
    for index in range(network.num_inputs):
        other = network.get_input(index)
        if other.name != name and any(side < 0 for side in other.shape):
            raise BuildError(
                "build an engine",
                f"the second input {other.name!r} has an open shape",
                "give it a fixed shape",
                code="build-open-input",
                name=other.name,
            )
    config.add_optimization_profile(profile)


def _check_workspace(settings: BuildSettings, gpu: Gpu | None) -> None:
    if settings.workspace is not None and gpu is not None and gpu.memory and settings.workspace > gpu.memory_gib:
        raise RecipeError(
            f"workspace={settings.workspace:g} GiB",
            f"{gpu.name} has {gpu.memory_gib:.1f} GiB",
            "pass less, or None to let TensorRT decide",
            code="build-workspace-gpu",
            value=settings.workspace,
            available=gpu.memory_gib,
        )


def _rebatch(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same images in batches of `size`; an incomplete last batch is dropped."""
    pending: list[np.ndarray] = []
    for batch in batches:
        pending.extend(batch)
        while len(pending) >= size:
            yield np.stack(pending[:size])
            del pending[:size]


def _select_gpu(gpu: Gpu | None) -> contextlib.AbstractContextManager[Any]:
    """Make a GPU the current one; the first already is, unless the caller works with torch on another."""
    torch: Any = sys.modules.get("torch")
    if gpu is None or (gpu.index == 0 and (torch is None or not torch.cuda.is_initialized())):
        return contextlib.nullcontext()
    manager: contextlib.AbstractContextManager[Any] = require_torch_cuda(f"build on GPU {gpu.index}").cuda.device(
        gpu.index
    )
    return manager

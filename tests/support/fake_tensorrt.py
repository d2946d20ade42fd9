"""A fake TensorRT: the Python API of 8.6, 10.x and 11.x, with ONNX Runtime inside.

Names and signatures are those of the real packages (8.6.0's wheel, the 10.13 stubs, TensorRT-RTX 1.7 for 11.x); names
missing there are missing here. A plan contains the ONNX graph, and a run reads and writes the tensor addresses that
were set, so all of the runner's code is tested.
"""

from __future__ import annotations

import enum
import json
import types
from typing import Any

import fake_cuda
import numpy as np
import onnx
import onnxruntime as ort
from fake_memory import ONNX_TYPES, SIZES, view
from onnx import numpy_helper

from trtkit.graph.raw_maps import convert_outputs_to_fp16


def make(version: str, *, dla_cores: int = 0, refuse_capture: bool = False) -> Any:
    """A module like `tensorrt` of that version ("8.6.0", "10.13.0.35", "11.4.0.106")."""
    major = int(version.split(".")[0])
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version  # type: ignore[attr-defined]
    fill: dict[str, Any] = {}

    def flags(name: str, names: str) -> Any:
        return enum.IntEnum(name, {member: value for value, member in enumerate(names.split())})  # type: ignore[misc]

    flags_until_10 = "FP16 INT8 OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS "
    fill["BuilderFlag"] = flags(
        "BuilderFlag",
        (flags_until_10 if major < 11 else "")
        + "DEBUG GPU_FALLBACK TF32 REFIT DISABLE_TIMING_CACHE VERSION_COMPATIBLE"
        + (" STRIP_PLAN REFIT_IDENTICAL" if major >= 10 else ""),
    )
    levels = "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY" if major >= 10 else "NONE AMPERE_PLUS"
    fill["HardwareCompatibilityLevel"] = flags("HardwareCompatibilityLevel", levels)
    creation = {8: "EXPLICIT_BATCH EXPLICIT_PRECISION", 10: "EXPLICIT_BATCH STRONGLY_TYPED", 11: "STRONGLY_TYPED"}[
        major
    ]
    fill["NetworkDefinitionCreationFlag"] = flags("NetworkDefinitionCreationFlag", creation)
    tactics = ("CUBLAS CUBLAS_LT CUDNN " if major < 11 else "") + "EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS"
    fill["TacticSource"] = flags("TacticSource", tactics)
    fill["DeviceType"] = flags("DeviceType", "GPU DLA")
    fill["MemoryPoolType"] = flags("MemoryPoolType", "WORKSPACE")
    fill["ProfilingVerbosity"] = flags("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
    fill["LayerInformationFormat"] = flags("LayerInformationFormat", "ONELINE JSON")
    fill["TensorIOMode"] = flags("TensorIOMode", "NONE INPUT OUTPUT")
    fill["TensorLocation"] = flags("TensorLocation", "DEVICE HOST")
    names = [name for name in SIZES if major >= 10 or name != "INT64"]
    fill["DataType"] = flags("DataType", " ".join([*names, "INT4"] if major >= 10 else names))
    fill["TensorFormat"] = flags("TensorFormat", "LINEAR CHW2 HWC8 CHW4 CHW16 CHW32")
    fill["Severity"] = flags("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
    fill["float32"], fill["float16"] = fill["DataType"].FLOAT, fill["DataType"].HALF
    state = types.SimpleNamespace(
        builds=[],
        break_build="",
        cache_breaks=False,
        refuse_plan="",
        live=0,
        calibrated=[],
        phases=True,
        crash=False,
        sized_by_run=set(),
    )
    fill["fake"] = state

    class ILogger:
        def __init__(self) -> None:
            state.logger = self

        def log(self, severity: Any, msg: str) -> None:
            raise AssertionError

    class Logger(ILogger):
        WARNING = fill["Severity"].WARNING

        def __init__(self, min_severity: Any) -> None:
            super().__init__()

        def log(self, severity: Any, msg: str) -> None:
            print(msg)

    def emit(severity: str, text: str) -> None:
        state.logger.log(fill["Severity"][severity], text)

    class ITimingCache:
        def __init__(self, data: bytes) -> None:
            self.data = data.removeprefix(b"no cache")

        def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
            self.data = b"\n".join(sorted(set(self.data.split(b"\n")) | set(input_cache.data.split(b"\n"))))
            return True

        def serialize(self) -> bytes:
            return self.data

    class Profile:
        def set_shape(self, name: str, min: Any, opt: Any, max: Any) -> None:
            self.name, self.shapes = name, (tuple(min), tuple(opt), tuple(max))

    class IBuilderConfig:
        def __init__(self) -> None:
            self.flags: set[str] = set()
            self.profiles: list[Profile] = []
            self.limits: dict[str, int] = {}
            self.cache: ITimingCache | None = None
            self.tactics: int | None = None
            self.calibration: Profile | None = None
            self.builder_optimization_level, self.avg_timing_iterations = 3, 1
            self.max_aux_streams: int | None = None
            self.int8_calibrator: Any = None
            self.hardware_compatibility_level: Any = fill["HardwareCompatibilityLevel"].NONE
            self.progress_monitor: Any = None

        def set_flag(self, flag: Any) -> None:
            self.flags.add(flag.name)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self.limits[pool.name] = pool_size

        def add_optimization_profile(self, profile: Profile) -> int:
            self.profiles.append(profile)
            return 0

        def set_tactic_sources(self, tactic_sources: int) -> bool:
            self.tactics = tactic_sources
            return True

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
            return None if serialized_timing_cache.startswith(b"broken") else ITimingCache(serialized_timing_cache)

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            self.cache = cache
            return not cache.data.startswith(b"mismatch")

        def get_timing_cache(self) -> ITimingCache | None:
            return self.cache

        if major < 11:

            def set_calibration_profile(self, profile: Profile) -> bool:
                self.calibration = profile
                return True

    class Layer:
        def __init__(self, node: onnx.NodeProto) -> None:
            self.name, self.num_outputs, self.types = node.name, len(node.output), {}
            self.precision: Any = None

        def set_output_type(self, index: int, kind: Any) -> None:
            self.types[index] = kind

    class Tensor:
        def __init__(self, value: onnx.ValueInfoProto) -> None:
            self.name = value.name
            # What the caller sets.
            self.dtype: Any = None
            self.allowed_formats = 0
            self.shape = tuple(
                side.dim_value if side.HasField("dim_value") else -1 for side in value.type.tensor_type.shape.dim
            )

    class Network:
        def __init__(self, flags: int) -> None:
            self.flags = flags
            self.proto = onnx.ModelProto()
            self.layers: list[Layer] = []
            self.inputs: dict[int, Tensor] = {}
            self.outputs: dict[int, Tensor] = {}

        num_inputs = property(lambda self: len(self.proto.graph.input))
        num_outputs = property(lambda self: len(self.proto.graph.output))
        num_layers = property(lambda self: len(self.layers))

        def get_input(self, index: int) -> Tensor:
            return self.inputs.setdefault(index, Tensor(self.proto.graph.input[index]))

        def get_output(self, index: int) -> Tensor:
            return self.outputs.setdefault(index, Tensor(self.proto.graph.output[index]))

        def get_layer(self, index: int) -> Layer:
            return self.layers[index]

    class ParserError:
        def __init__(self, index: int, node: onnx.NodeProto) -> None:
            self._index, self._node = index, node

        def node(self) -> int:
            return self._index

        def desc(self) -> str:
            return "No importer registered for op:\n Sharpen"

        def code(self) -> str:
            return "UNSUPPORTED_NODE"

        if major >= 10:

            def node_name(self) -> str:
                return self._node.name

            def node_operator(self) -> str:
                return self._node.op_type

    class OnnxParser:
        def __init__(self, network: Network, logger: Any) -> None:
            self.network, self.errors = network, []

        num_errors = property(lambda self: len(self.errors))

        def parse(self, model: bytes, path: str | None = None) -> bool:
            proto = onnx.load_model_from_string(model)
            self.errors = [ParserError(i, n) for i, n in enumerate(proto.graph.node) if n.domain == "acme"]
            self.network.proto, self.network.layers = proto, [Layer(node) for node in proto.graph.node]
            return not self.errors

        def get_error(self, index: int) -> ParserError:
            return self.errors[index]

    class Builder:
        num_DLA_cores = dla_cores  # noqa: N815 - TensorRT's name

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Network:
            assert major >= 10 or flags & 1, "TensorRT 8 reads ONNX into explicit-batch networks only"
            return Network(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: IBuilderConfig) -> bytes | None:
            state.builds.append((network, config))
            if state.break_build:
                emit("ERROR", state.break_build)
                return None
            if config.int8_calibrator is not None and not calibrate(config, network):
                emit("ERROR", "Calibration failure occurred with no scaling factors detected.")
                return None
            if state.cache_breaks and config.cache is not None and config.cache.data:
                emit("ERROR", "Myelin error from unknown graph")
                return None
            if config.progress_monitor is not None and not steps(config.progress_monitor):
                emit("ERROR", "build cancelled")
                return None
            emit("WARNING", "a warning of the builder")
            if config.cache is not None:
                config.cache.combine(ITimingCache(f"timed {network.proto.graph.name}".encode()), False)
            profile = config.profiles[0].shapes if config.profiles else None
            proto = network.proto
            if "STRIP_PLAN" in config.flags:
                proto = strip(proto)
            if any(tensor.dtype == fill["DataType"].HALF for tensor in network.outputs.values()):
                proto = convert_outputs_to_fp16(onnx.ModelProto.FromString(proto.SerializeToString()))
            header = {"version": version, "profile": profile, "host_code": "VERSION_COMPATIBLE" in config.flags}
            header |= {"refit": bool(config.flags & {"REFIT", "STRIP_PLAN"}), "stripped": "STRIP_PLAN" in config.flags}
            header["formats"] = {
                tensor.name: form.name
                for tensor in network.inputs.values()
                for form in fill["TensorFormat"]
                if tensor.allowed_formats == 1 << form
            }
            return write_plan(header, proto)

    def write_plan(header: dict[str, Any], proto: onnx.ModelProto) -> bytes:
        data = json.dumps(header).encode()
        return b"ftrt" + len(data).to_bytes(4, "little") + data + proto.SerializeToString()

    def strip(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto = onnx.ModelProto.FromString(proto.SerializeToString())
        for tensor in proto.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                # No numbers, so that a run with them is noticed.
                tensor.raw_data = b"\xff" * len(tensor.raw_data)
        return proto

    def calibrate(config: IBuilderConfig, network: Network) -> bool:
        calibrator = config.int8_calibrator
        if calibrator.read_calibration_cache():
            state.calibrated.append("cache")
            return True
        batch = calibrator.get_batch_size()
        shape = config.calibration.shapes[1] if config.calibration is not None else network.get_input(0).shape
        assert batch == shape[0]
        while pointers := calibrator.get_batch(["images"]):
            state.calibrated.append(view(pointers[0], np.float32, tuple(shape)).copy())
        calibrator.write_calibration_cache(b"TRT-8600-MinMaxCalibration")
        return bool(state.calibrated)

    def steps(monitor: Any) -> bool:
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Timing graph nodes", "Building Engine", 4)
        going = all(monitor.step_complete("Timing graph nodes", step) for step in range(4))
        monitor.phase_finish("Timing graph nodes")
        going = going and monitor.step_complete("Building Engine", 0) and monitor.step_complete("Building Engine", 1)
        monitor.phase_finish("Building Engine")
        return bool(going)

    class Context:
        def __init__(self, engine: Engine) -> None:
            self.engine, self.addresses, self.sinks = engine, {}, {}
            self.shapes = {name: shape for name, (shape, _) in engine.inputs.items()}
            self.profiler: Any = None
            state.live += 1

        def __del__(self) -> None:
            state.live -= 1

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self.engine.profile or (self.engine.inputs[name][0],) * 3
            if not all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True)):
                emit("ERROR", f"Static dimension mismatch for {name}")
                return False
            self.shapes[name] = tuple(shape)
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name in self.shapes:
                return self.shapes[name]
            if name in state.sized_by_run:
                return (self.shapes["images"][0], -1, -1)
            batch, _, height, width = self.shapes["images"]
            return tuple(
                side if side > 0 else batch if axis == 0 else height * width // 4
                for axis, side in enumerate(self.engine.outputs[name][0])
            )

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self.addresses[name] = memory
            return True

        def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
            self.sinks[name] = output_allocator
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert stream_handle == fake_cuda.Stream.cuda_stream, "the engine's own stream, never the default one"
            if state.break_build == "execute":
                emit("ERROR", "an illegal memory access was encountered")
                return False
            if fake_cuda.CAPTURING:
                if refuse_capture:
                    emit("ERROR", "operation not permitted when stream is capturing")
                    return False
                fake_cuda.CAPTURING[-1].append(self._execute)
                return True
            self._execute()
            if self.profiler is not None:
                for layer in self.engine.layers():
                    self.profiler.report_layer_time(layer["Name"], 0.25)
            return True

        def _execute(self) -> None:
            feeds = {name: self._read(name, kind) for name, (_, kind) in self.engine.inputs.items()}
            for (name, (_, kind)), value in zip(
                self.engine.outputs.items(), self.engine.session.run(None, feeds), strict=True
            ):
                address = self.addresses.get(name, 0)
                if name in self.sinks:
                    address = self.sinks[name].reallocate_output(
                        name, address, value.size * np.dtype(kind).itemsize, 256
                    )
                    self.sinks[name].notify_shape(name, value.shape)
                assert address, f"{name} has no memory"
                view(address, kind, value.shape)[...] = value

        def _read(self, name: str, kind: Any) -> np.ndarray:
            shape = self.shapes[name]
            form = self.engine.header.get("formats", {}).get(name, "LINEAR")
            if form == "LINEAR":
                return view(self.addresses[name], kind, shape).copy()
            count, channels, *sides = shape
            padded = -(-channels // 8) * 8
            together = {"CHW32": 32, "HWC8": padded}[form]
            groups = view(self.addresses[name], kind, (count, -(-channels // together), *sides, together))
            return groups.transpose(0, 1, 4, 2, 3).reshape(count, -1, *sides)[:, :channels].copy()

    class Engine:
        def __init__(self, plan: bytes) -> None:
            length = int.from_bytes(plan[4:8], "little")
            header = json.loads(plan[8 : 8 + length])
            self.header, self.profile = header, header["profile"]
            self.proto = onnx.load_model_from_string(plan[8 + length :])
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            self.session = ort.InferenceSession(plan[8 + length :], options, providers=["CPUExecutionProvider"])
            self.inputs, self.outputs = (
                {
                    value.name: (Tensor(value).shape, SIZES[ONNX_TYPES[value.type.tensor_type.elem_type]])
                    for value in values
                }
                for values in (self.proto.graph.input, self.proto.graph.output)
            )
            self.names = [*self.inputs, *self.outputs]
            state.live += 1

        def __del__(self) -> None:
            state.live -= 1

        num_io_tensors = property(lambda self: len(self.names))
        if major < 11:
            device_memory_size = 4096
        else:
            device_memory_size_v2 = 4096

        def get_tensor_name(self, index: int) -> str:
            return self.names[index]

        def get_tensor_mode(self, name: str) -> Any:
            return fill["TensorIOMode"].INPUT if name in self.inputs else fill["TensorIOMode"].OUTPUT

        def get_tensor_location(self, name: str) -> Any:
            return fill["TensorLocation"].DEVICE

        def get_tensor_dtype(self, name: str) -> Any:
            kind = (self.inputs | self.outputs)[name][1]
            return fill["DataType"][next(name for name, dtype in SIZES.items() if dtype == kind)]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (self.inputs | self.outputs)[name][0]

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            return [tuple(shape) for shape in self.profile]

        def create_execution_context(self) -> Context:
            return Context(self)

        def layers(self) -> list[dict[str, Any]]:
            fp16 = any(tensor.data_type == 10 for tensor in self.proto.graph.initializer)
            kind = "FP16" if fp16 else "FP32"
            written = f"Row major linear {kind}"
            outputs = [[{"Name": node.output[0], "Format/Datatype": written}] for node in self.proto.graph.node]
            nodes = zip(self.proto.graph.node, outputs, strict=True)
            return [{"Name": node.name, "LayerType": node.op_type, "Outputs": out} for node, out in nodes]

        if major < 10:

            def serialize(self) -> bytes:
                return write_plan(self.header, self.proto)

        else:

            def create_serialization_config(self) -> Any:
                flags = {"EXCLUDE_WEIGHTS"} if self.header["stripped"] else set()
                return types.SimpleNamespace(
                    flags=flags,
                    set_flag=lambda flag: flags.add(flag.name),
                    clear_flag=lambda flag: flags.discard(flag.name),
                )

            def serialize_with_config(self, config: Any) -> bytes:
                header = dict(self.header)
                if major >= 11:
                    header["refit"] = "INCLUDE_REFIT" in config.flags
                return write_plan(header, strip(self.proto) if "EXCLUDE_WEIGHTS" in config.flags else self.proto)

        def create_engine_inspector(self) -> Any:
            key = "Bindings" if major < 10 else "I/O Tensors"
            text = json.dumps({"Layers": self.layers(), key: self.names})
            return types.SimpleNamespace(get_engine_information=lambda form: text, execution_context=None)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.DLA_core = -1
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            if state.refuse_plan or not serialized_engine.startswith(b"ftrt"):
                emit("ERROR", state.refuse_plan or "Serialization assertion magicTagRead == kMAGIC_TAG failed.")
                return None
            engine = Engine(serialized_engine)
            if engine.header.get("host_code") and not self.engine_host_code_allowed:
                emit("ERROR", "Plan contains host executable code, which the runtime does not allow.")
                return None
            return engine

    class Weights:
        def __init__(self, a: np.ndarray) -> None:
            self.array = a

    class Refitter:
        def __init__(self, engine: Engine, logger: Any) -> None:
            assert engine.header["refit"], "the engine is not refittable"
            self.engine, self.given = engine, {}

        def get_all_weights(self) -> list[str]:
            return [tensor.name for tensor in self.engine.proto.graph.initializer]

        def get_missing_weights(self) -> list[str]:
            return [name for name in self.get_all_weights() if name not in self.given]

        def set_named_weights(self, name: str, weights: Weights) -> bool:
            sizes = {t.name: numpy_helper.to_array(t).size for t in self.engine.proto.graph.initializer}
            self.given[name] = weights.array
            return sizes.get(name) == weights.array.size

        def refit_cuda_engine(self) -> bool:
            for tensor in self.engine.proto.graph.initializer:
                tensor.raw_data = self.given[tensor.name].tobytes()
            return True

    class OnnxParserRefitter:
        def __init__(self, refitter: Refitter, logger: Any) -> None:
            self.refitter = refitter

        def refit_from_bytes(self, model: bytes) -> bool:
            stored = onnx.load_model_from_string(model).graph.initializer
            names = set(self.refitter.get_all_weights())
            return all(
                self.refitter.set_named_weights(tensor.name, Weights(numpy_helper.to_array(tensor)))
                for tensor in stored
                if tensor.name in names
            )

    def empty_class(name: str) -> Any:
        return type(name, (), {"__init__": lambda self: None})

    fill["nptype"] = lambda kind: SIZES[kind.name]
    kinds = (ILogger, Logger, ITimingCache, IBuilderConfig, OnnxParser, ParserError, Builder, Runtime)
    for kind in (*kinds, Refitter, Weights):
        fill[kind.__name__] = kind
    if major >= 10:
        fill["OnnxParserRefitter"] = OnnxParserRefitter
        names = "EXCLUDE_WEIGHTS EXCLUDE_LEAN_RUNTIME" + (" INCLUDE_REFIT" if major >= 11 else "")
        fill["SerializationFlag"] = flags("SerializationFlag", names)
    fill["IProfiler"], fill["IOutputAllocator"] = empty_class("IProfiler"), empty_class("IOutputAllocator")
    fill["init_libnvinfer_plugins"] = lambda logger, namespace: True
    if major < 11:
        fill["IInt8MinMaxCalibrator"] = empty_class("IInt8MinMaxCalibrator")
    if major >= 10:
        fill["IProgressMonitor"] = empty_class("IProgressMonitor")
    vars(trt).update(fill)
    return trt

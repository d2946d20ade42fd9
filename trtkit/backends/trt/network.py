"""What TensorRT builds from: the parsed graph, the optimization profile, precision constraints and the timing cache."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from trtkit.backends.build_settings import BuildSettings
from trtkit.backends.capabilities import Capabilities, import_bindings
from trtkit.backends.devices import parse_device
from trtkit.errors import BuildError, OutputError, RecipeError, warn
from trtkit.files import user_cache_dir
from trtkit.graph.concatenations import read_splits_whole, upsample_after_conv
from trtkit.graph.fp16 import convert_qdq_to_fp16, has_fp16
from trtkit.graph.onnx_file import read_trtkit_metadata
from trtkit.graph.pad_channels import pad_channels
from trtkit.graph.raw_maps import convert_outputs_to_fp16
from trtkit.graph.space_to_depth import use_pixel_blocks
from trtkit.models.model import RAW_MAPS
from trtkit.writing import write_bytes

__all__ = [
    "TimingCache",
    "compute_profile_shapes",
    "constrain_precisions",
    "create_network",
    "find_image_input",
    "find_kept_fp32",
    "fit_graph",
    "parse_onnx",
    "returns_raw_maps",
    "use_strong_typing",
]

# Operators that compute no float values; precision constraints do not apply to them.
NON_FLOAT_OPS = frozenset(
    ("Cast", "Constant", "ConstantOfShape", "DequantizeLinear", "Identity", "QuantizeLinear", "Shape", "Size")
)


def fit_graph(
    proto: onnx.ModelProto, capabilities: Capabilities, *, precision: str, space_to_depth: bool = False
) -> onnx.ModelProto:
    """The graph as this TensorRT builds it best; the same for an engine and for refitting it.

    Args:
        proto: The graph of an export; not modified.
        capabilities: Of the installed TensorRT.
        precision: "fp32", "fp16" or "int8".
        space_to_depth: As in `export`.

    Raises:
        RecipeError: The graph can't read blocks of pixels.
    """
    if space_to_depth:
        proto = use_pixel_blocks(proto)
    if capabilities.backend == "tensorrt" and precision == "fp16":
        proto = upsample_after_conv(proto)
    if precision != "int8":
        return proto
    if capabilities.backend == "tensorrt":
        proto = pad_channels(read_splits_whole(proto))
    if capabilities.strongly_typed_only and not has_fp16(proto):
        # This TensorRT takes all types from the graph, and has no calibrator: layers without INT8 would run in FP32.
        proto = convert_qdq_to_fp16(proto)
        if returns_raw_maps(proto):
            proto = convert_outputs_to_fp16(proto)
    return proto


def returns_raw_maps(proto: onnx.ModelProto) -> bool:
    """Whether a graph ends before decoding: its outputs then are in FP16 unless it is FP32.

    Args:
        proto: The graph of an export.
    """
    return bool(read_trtkit_metadata(proto).get("output_format", {}).get("name") == RAW_MAPS.name)


def use_strong_typing(capabilities: Capabilities, settings: BuildSettings, proto: onnx.ModelProto) -> bool:
    """Whether the network takes every type from the graph.

    Where TensorRT offers both ways, a Q/DQ graph on FP32 is built with precision flags instead, so that layers outside
    INT8 run in FP16. DLA and TensorRT's own calibrator work with flags only.

    Args:
        capabilities: Of the installed TensorRT.
        settings: Build settings.
        proto: The graph.
    """
    if capabilities.strongly_typed_only:
        return True
    if not capabilities.strongly_typed or settings.implicit is not None or parse_device(settings.device).kind == "dla":
        return False
    return settings.precision != "int8" or has_fp16(proto)


def create_network(builder: Any, capabilities: Capabilities, *, strongly_typed: bool) -> Any:
    """Create an empty network.

    Args:
        builder: TensorRT's.
        capabilities: Of the installed TensorRT.
        strongly_typed: From `use_strong_typing`.
    """
    creation = import_bindings(capabilities.backend).NetworkDefinitionCreationFlag
    flags = 0
    if capabilities.explicit_batch_flag:
        flags |= 1 << int(creation.EXPLICIT_BATCH)
    if strongly_typed:
        flags |= 1 << int(creation.STRONGLY_TYPED)
    return builder.create_network(flags)


def parse_onnx(parser: Any, data: bytes, proto: onnx.ModelProto, capabilities: Capabilities, *, path: str = "") -> None:
    """Parse a graph into the parser's network.

    Args:
        parser: TensorRT's `OnnxParser`.
        data: The graph, serialized.
        proto: The graph.
        capabilities: Of the installed TensorRT.
        path: The ONNX file, for weights stored beside it.

    Raises:
        BuildError: TensorRT does not support a node; the error names it and its operator.
    """
    if parser.parse(data, path) if path else parser.parse(data):
        return
    errors = [_read_parser_error(parser.get_error(index), proto, capabilities) for index in range(parser.num_errors)]
    reasons = "; ".join(dict.fromkeys(text for text, _, _ in errors)) or "a node, without giving a reason"
    raise BuildError(
        f"build an engine with {capabilities.title}",
        f"it does not support {reasons}",
        "replace the operator in the model, or build with a newer TensorRT",
        code="build-unsupported-node",
        nodes=list(dict.fromkeys(name for _, name, _ in errors if name)),
        operators=list(dict.fromkeys(operator for _, _, operator in errors if operator)),
    )


def find_image_input(network: Any) -> Any:
    """The network's image input: the one of four dimensions (NCHW).

    Args:
        network: After parsing.

    Raises:
        BuildError: There is none, or several.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    image_inputs = [tensor for tensor in inputs if len(tensor.shape) == 4]
    if len(image_inputs) != 1:
        raise BuildError(
            "build an engine",
            f"the graph has {len(image_inputs)} image inputs (NCHW)",
            "pass a graph with exactly one",
            code="build-image-inputs",
            count=len(image_inputs),
        )
    return image_inputs[0]


def compute_profile_shapes(settings: BuildSettings, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...] | None:
    """The min, opt and max shape of the optimization profile.

    Args:
        settings: Build settings.
        shape: The graph's input, -1 where it is open: (batch, channels, height, width).

    Returns:
        The three shapes, or None for a static graph.

    Raises:
        RecipeError: The graph is fixed at another shape than the settings ask for.
    """
    channels = shape[1] if shape[1] > 0 else 3
    opt = (settings.batch, channels, *settings.imgsz)
    low: tuple[int, ...] = opt
    high: tuple[int, ...] = opt
    if settings.dynamic:
        low = (1, channels, *settings.min_imgsz)
        high = (settings.batch, channels, *(settings.max_imgsz or settings.imgsz))
    for axis, fixed, wanted in zip(("batch", "channels", "height", "width"), shape, opt, strict=True):
        if fixed > 0 and fixed != wanted:
            raise RecipeError(
                f"build an engine with {axis} {wanted}",
                f"the graph is fixed at {fixed}",
                f"trace it with {axis} {wanted}, or dynamic",
                code="build-shape-fixed",
                axis=axis,
                value=wanted,
                fixed=fixed,
            )
    if all(side > 0 for side in shape):
        if settings.dynamic:
            raise RecipeError(
                "build a dynamic engine",
                "the graph is static",
                "trace it with dynamic=True",
                code="build-graph-static",
                shape=shape,
            )
        return None
    # A graph may leave only the batch open.
    low, high = (
        tuple(fixed if fixed > 0 else side for fixed, side in zip(shape, sides, strict=True)) for sides in (low, high)
    )
    return low, opt, high


def constrain_precisions(
    network: Any, proto: onnx.ModelProto, capabilities: Capabilities, *, calibrated: bool = False
) -> int:
    """Constrain layers to the graph's precision where TensorRT would choose a lower one (up to 10, by flags).

    With the FP16 flag alone TensorRT may run in FP16 what the graph keeps in FP32 because it would overflow; with a
    calibrator it may run the convolution that decodes boxes in INT8. Nodes with integer or boolean outputs are left
    alone.

    Args:
        network: After parsing, not strongly typed.
        proto: The graph.
        capabilities: Of the installed TensorRT.
        calibrated: TensorRT's own calibrator chooses the INT8 layers. Transposed convolutions then stay in FP16:
            TensorRT 8.6 fails to build segment's at level 2 otherwise (`refitUtils.cpp: Assertion engine failed`).

    Returns:
        Number of constrained layers.
    """
    if not capabilities.has_precision_constraints:
        return 0
    fp32 = find_kept_fp32(proto)
    fp16 = {node.name for node in proto.graph.node if calibrated and node.op_type == "ConvTranspose"} - fp32
    trt = import_bindings(capabilities.backend)
    constrained = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name in fp16:
            layer.precision = trt.float16
        elif layer.name in fp32:
            layer.precision = trt.float32
            for output in range(layer.num_outputs):
                layer.set_output_type(output, trt.float32)
        else:
            continue
        constrained += 1
    return constrained


def find_kept_fp32(proto: onnx.ModelProto) -> set[str]:
    """Names of the nodes that TensorRT must be told to keep in FP32 where flags set the precision.

    Args:
        proto: The graph.
    """
    fp32 = set(_find_fp32_nodes(proto))
    # A graph that is FP32 but for Q/DQ lists the nodes that lose accuracy in a lower precision.
    return fp32 if has_fp16(proto) else fp32 & set(read_trtkit_metadata(proto).get("fp32", ()))


def _find_fp32_nodes(proto: onnx.ModelProto) -> Iterator[str]:
    """Names of the nodes whose outputs are all FP32 in a typed graph."""
    inferred = onnx.shape_inference.infer_shapes(proto)
    values = [*inferred.graph.value_info, *inferred.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    for node in proto.graph.node:
        if node.op_type not in NON_FLOAT_OPS and all(
            types.get(name) == onnx.TensorProto.FLOAT for name in node.output if name
        ):
            yield node.name


def _read_parser_error(error: Any, proto: onnx.ModelProto, capabilities: Capabilities) -> tuple[str, str, str]:
    """A parser error as "node 'x' (operator Y): reason", with the node's name and operator."""
    index = int(error.node())
    name = operator = ""
    if capabilities.has_parser_nodes:
        name, operator = str(error.node_name()), str(error.node_operator())
    elif 0 <= index < len(proto.graph.node):
        name, operator = proto.graph.node[index].name, proto.graph.node[index].op_type
    reason = re.sub(r"\s+", " ", str(error.desc())).strip()
    if not name and not operator:
        return f"the graph ({reason})", "", ""
    return f"node {name or index!r} (operator {operator}): {reason}", name, operator


# Timing cache files: one per GPU and TensorRT version, safe for concurrent builders.


class TimingCache:
    """A timing cache file.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def from_setting(cls, setting: bool | Path, *, version: str, gpu: str, sm: str) -> TimingCache | None:
        """Choose the cache file of a build.

        Args:
            setting: `BuildSettings.timing_cache`.
            version: TensorRT's version.
            gpu: The GPU's name.
            sm: Its compute capability.

        Returns:
            The cache, or None where the setting is False.
        """
        if setting is False:
            return None
        if setting is not True:
            return cls(Path(setting))
        slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
        return cls(user_cache_dir() / "timing" / f"tensorrt-{version}-{slug}-{sm}.cache")

    def attach(self, config: Any) -> int:
        """Load the file into a builder configuration.

        A file that TensorRT does not load is deleted with a warning; the build then times all tactics.

        Args:
            config: TensorRT's `IBuilderConfig`.

        Returns:
            Bytes loaded from the file, 0 for an empty cache.
        """
        data = self._read()
        if data:
            with contextlib.suppress(TypeError, ValueError, RuntimeError):
                cache = config.create_timing_cache(data)
                if (
                    cache is not None
                    and config.set_timing_cache(cache, ignore_mismatch=False)
                    and _was_loaded(cache, config.create_timing_cache(b""), data)
                ):
                    return len(data)
            warn(f"The timing cache {self.path} does not load in this TensorRT: it was deleted.")
            self.delete()
        self.attach_empty(config)
        return 0

    def attach_empty(self, config: Any) -> None:
        """Set an empty cache in a builder configuration.

        Args:
            config: TensorRT's `IBuilderConfig`.
        """
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def save(self, config: Any) -> None:
        """Write the build's timings, merged with those that other builders wrote meanwhile.

        A file that can't be written is a warning, not an error.

        Args:
            config: TensorRT's `IBuilderConfig` after the build.
        """
        cache = config.get_timing_cache()
        if cache is None:
            return
        try:
            with self._lock():
                data = self._read()
                if data:
                    with contextlib.suppress(TypeError, ValueError, RuntimeError):
                        other = config.create_timing_cache(data)
                        if other is not None:
                            cache.combine(other, ignore_mismatch=False)
                write_bytes(self.path, bytes(cache.serialize()))
        except (OSError, OutputError) as error:
            warn(f"The timing cache {self.path} was not written: {error}")

    def delete(self) -> None:
        """Delete the file."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _read(self) -> bytes:
        # `write_bytes` replaces the file atomically, so reading needs no lock.
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the file's lock; the system releases it when a process dies."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a+b") as handle:
            if sys.platform == "win32":
                import msvcrt

                handle.seek(0)
                msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)
                try:
                    yield
                finally:
                    handle.seek(0)
                    msvcrt.locking(handle.fileno(), msvcrt.LK_UNLCK, 1)
            else:
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX)
                yield


def _was_loaded(cache: Any, empty: Any, data: bytes) -> bool:
    """Whether a cache has the file's contents: TensorRT 8.6 turns a text file into an empty cache without an error."""
    size = len(bytes(cache.serialize()))
    return size > len(bytes(empty.serialize())) or size == len(data)

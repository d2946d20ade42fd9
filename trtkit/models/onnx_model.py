"""ONNX files as `Model`: exports of Ultralytics and trtkit, and others if the task is passed."""

from __future__ import annotations

import contextlib
import dataclasses
import graphlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

from trtkit.errors import OnnxError, TrtkitError
from trtkit.files import hash_parts
from trtkit.models.model import Model, ModelInfo, OutputFormat, Preprocess, parse_trtkit_entry
from trtkit.models.model_arguments import names_mismatch, parse_imgsz, resolve_class_names, resolve_task, with_channels
from trtkit.models.output_shapes import (
    ROW_FORMATS,
    OutputShape,
    check_outputs,
    fit_output_format,
    format_shapes,
    infer_classes,
    infer_output_format,
    order_outputs,
    with_output_format,
)

__all__ = ["from_proto", "read_onnx", "refuse_damaged_graph"]

Names = Mapping[int, str] | Sequence[str] | None
AGAIN = "export or copy it again"

MAX_INPUT = 1 << 28
"""Most values of one image, 1 GiB in FP32: 30 times those of 3 x 1760 x 1760."""


def read_onnx(
    path: str | Path,
    *,
    task: str | None = None,
    names: Names = None,
    imgsz: int | tuple[int, int] | None = None,
    preprocess: Preprocess | None = None,
    output_format: OutputFormat | None = None,
) -> Model:
    """Read an ONNX file.

    Args:
        path: The file.
        task: As in `trtkit.load`, like the arguments below.
        names: Class names.
        imgsz: Height and width, pixels.
        preprocess: How an image becomes the input.
        output_format: What the graph returns.

    Raises:
        OnnxError: The file is missing, empty, damaged or of unknown task.
    """
    path = Path(path)
    asked = f"load {path}"
    if path.is_dir():
        raise OnnxError(asked, "it is a folder", "check the path", code="model-file-is-folder", path=path)
    if not path.is_file():
        raise OnnxError(asked, "the file does not exist", "check the path", code="model-file-missing", path=path)
    if path.stat().st_size == 0:
        raise OnnxError(asked, "the file is empty", AGAIN, code="model-file-empty", path=path)
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise OnnxError(asked, "it is no ONNX file, or damaged", AGAIN, code="onnx-damaged", path=path) from error
    load_external_weights(proto, path, asked)
    return from_proto(
        proto, path, task=task, names=names, imgsz=imgsz, preprocess=preprocess, output_format=output_format
    )


def load_external_weights(proto: onnx.ModelProto, path: str | Path, asked: str) -> None:
    """Put the weights that lie in files beside an ONNX file into its graph; most files have none.

    Args:
        proto: The graph, which is modified.
        path: The ONNX file.
        asked: What was asked for, for the error.

    Raises:
        OnnxError: They can't be read.
    """
    try:
        onnx.load_external_data_for_model(proto, str(Path(path).parent))
    except (
        OSError,
        ArithmeticError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
        onnx.checker.ValidationError,
    ) as error:
        raise OnnxError(
            asked,
            f"its external weights can't be read ({error})",
            "copy them with it",
            code="onnx-external-data-missing",
            path=path,
        ) from error


@contextlib.contextmanager
def refuse_damaged_graph(asked: str) -> Iterator[None]:
    """Turn any exception of a library that reads a graph into an `OnnxError`.

    onnx, protobuf, onnxslim and their C++ code raise what they happen to run into: TypeError, RuntimeError, types of
    their own, some of them no `Exception`.

    Args:
        asked: What was asked for, for the error.

    Raises:
        OnnxError: The block raised something else than trtkit's errors, SystemExit and KeyboardInterrupt.
    """
    try:
        yield
    except (TrtkitError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
        raise OnnxError(
            asked,
            f"its graph is damaged ({type(error).__name__}{': ' if cause else ''}{cause})",
            AGAIN,
            code="onnx-graph-damaged",
            cause=type(error).__name__,
        ) from error


def from_proto(
    proto: onnx.ModelProto,
    source: Path | None = None,
    *,
    task: str | None = None,
    names: Names = None,
    imgsz: int | tuple[int, int] | None = None,
    preprocess: Preprocess | None = None,
    output_format: OutputFormat | None = None,
) -> Model:
    """An ONNX graph as a model.

    The graph's metadata describes it (`ModelInfo.from_metadata`); trtkit's own entry is kept in `notes["trtkit"]`.
    Without metadata the task must be passed, and sizes, class count and output format follow from the shapes. With
    metadata the shapes must fit it.

    Args:
        proto: The graph.
        source: The file it was read from, or None.
        task: As in `trtkit.load`, like the arguments below.
        names: Class names.
        imgsz: Height and width, pixels.
        preprocess: How an image becomes the input.
        output_format: What the graph returns.

    Raises:
        OnnxError: The graph is not usable, its task is unknown, or an argument contradicts it.
    """
    asked = f"load {source}" if source is not None else "load an ONNX graph"
    with refuse_damaged_graph(asked):
        return _from_proto(proto, source, task, names, imgsz, preprocess, output_format, asked)


def _from_proto(
    proto: onnx.ModelProto,
    source: Path | None,
    task: str | None,
    names: Names,
    imgsz: int | tuple[int, int] | None,
    preprocess: Preprocess | None,
    output_format: OutputFormat | None,
    asked: str,
) -> Model:
    graph = proto.graph
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    if not graph.node or not graph.output or not inputs:
        raise OnnxError(asked, "its graph has no nodes, inputs or outputs", AGAIN, code="onnx-graph-empty")
    if len(inputs) > 1:
        names_of_inputs = [value.name for value in inputs]
        raise OnnxError(
            asked,
            f"it has {len(inputs)} inputs ({', '.join(names_of_inputs)})",
            "name a model with one image input",
            code="onnx-several-inputs",
            inputs=names_of_inputs,
        )
    shape = _read_shape(inputs[0])
    if len(shape) != 4:
        raise OnnxError(
            asked,
            f"its input {inputs[0].name} has {len(shape)} dimensions instead of 4",
            "name a vision model",
            code="onnx-input-not-an-image",
            input=inputs[0].name,
            dimensions=len(shape),
        )
    size = (shape[2], shape[3])
    if math.prod(side or 1 for side in shape[1:]) > MAX_INPUT:
        raise OnnxError(
            asked,
            f"its input is {format_shapes([shape])}",
            f"name a model whose input has at most {MAX_INPUT:,} values an image",
            code="onnx-input-too-large",
            shape=shape,
        )
    _check_graph(graph, asked)
    if imgsz is not None:
        wanted = parse_imgsz(imgsz, asked, OnnxError)
        if any(fixed not in (None, side) for fixed, side in zip(size, wanted, strict=True)):
            raise OnnxError(
                asked,
                f"imgsz={imgsz} was passed, but the graph is fixed at {size}",
                "leave imgsz= out",
                code="model-imgsz-fixed",
                value=wanted,
                expected=size,
            )
        size = wanted
    outputs = {value.name: _read_shape(value) for value in graph.output}
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if "task" in metadata and "names" in metadata:
        info = _read_info(metadata, asked)
        resolve_task(task, info.task, asked, OnnxError)
        class_names = info.names if names is None else resolve_class_names(names, len(info.names), asked, OnnxError)
        info = dataclasses.replace(info, names=class_names)
        shapes = order_outputs(outputs, info.task)
        if output_format is None:
            info = fit_output_format(info, shapes, metadata)
        elif output_format != info.output_format:
            info = with_output_format(info, output_format, metadata)
    else:
        task = resolve_task(task, metadata.get("task"), asked, OnnxError)
        shapes = order_outputs(outputs, task)
        info = _infer_info(graph, task, shapes, names, output_format, asked)
    check_outputs(info, shapes, asked, OnnxError)
    if info.output_format in ROW_FORMATS:
        classes = _count_row_classes(graph)
        if classes not in (None, len(info.names)):
            raise names_mismatch(len(info.names), classes, asked, OnnxError)
    values = {field.name: getattr(info, field.name) for field in dataclasses.fields(ModelInfo)}
    values["imgsz"] = (size[0] or info.imgsz[0], size[1] or info.imgsz[1])
    values["preprocess"] = with_channels(preprocess or info.preprocess, shape[1], asked, OnnxError)
    return Model(
        **values,
        hash=_hash_graph(proto),
        source=source,
        proto=proto if len(graph.input) == 1 else _remove_weights_from_inputs(proto, inputs[0]),
        parameters=sum(_count_weights(tensor) for tensor in graph.initializer),
    )


def _remove_weights_from_inputs(proto: onnx.ModelProto, image: onnx.ValueInfoProto) -> onnx.ModelProto:
    """A copy whose only input is the image: IR versions before 4 list weights among the inputs, in any order."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.input[:]
    result.graph.input.append(image)
    result.ir_version = max(result.ir_version, 4)
    return result


def _check_graph(graph: onnx.GraphProto, asked: str) -> None:
    """Check that weights have the bytes that their types and dimensions need, and that no node waits for itself.

    Raises:
        OnnxError: They do not.
    """
    for tensor in graph.initializer:
        expected = _count_bytes(tensor)
        if tensor.HasField("raw_data") and len(tensor.raw_data) != expected:
            raise OnnxError(
                asked,
                f"its weight {tensor.name[:80]!r} has {len(tensor.raw_data):,} bytes, and its dimensions need "
                f"{expected if expected is None else format(expected, ',')}",
                AGAIN,
                code="onnx-weight-damaged",
                name=tensor.name,
                size=len(tensor.raw_data),
                expected=expected,
            )
    # Protobuf decodes a text when it is read: one that is not UTF-8 would fail much later, in another library.
    for node in graph.node:
        _ = (node.name, node.op_type, node.domain, [attribute.name for attribute in node.attribute], *node.input)
    _ = [value.name for group in (graph.value_info, graph.input, graph.output) for value in group]
    producers = {output: index for index, node in enumerate(graph.node) for output in node.output if output}
    needs = {
        index: {producers[name] for name in node.input if name in producers} for index, node in enumerate(graph.node)
    }
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        name = graph.node[error.args[1][0]].name
        raise OnnxError(
            asked, f"its node {name[:80]!r} needs its own output", AGAIN, code="onnx-graph-cycle", name=name
        ) from error


def _count_bytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes of a tensor's elements; None if its type or its dimensions do not exist."""
    if any(size < 0 for size in tensor.dims) or tensor.data_type not in onnx.helper.get_all_tensor_dtypes():
        return None
    elements = int(math.prod(tensor.dims))
    name = str(onnx.TensorProto.DataType.Name(tensor.data_type))
    if name.endswith(("INT4", "4E2M1")):
        return (elements + 1) // 2
    if name.endswith("INT2"):
        return (elements + 3) // 4
    if name.startswith("FLOAT8"):
        return elements
    return elements * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _read_info(metadata: Mapping[str, str], asked: str) -> ModelInfo:
    """The description in `metadata_props`; the batch and trtkit's own entry go to its notes."""
    try:
        info = ModelInfo.from_metadata(metadata)
        notes: dict[str, Any] = {"batch": int(metadata["batch"])} if "batch" in metadata else {}
        if "trtkit" in metadata:
            notes["trtkit"] = parse_trtkit_entry(metadata["trtkit"])
    except (LookupError, TypeError, ValueError) as error:
        raise OnnxError(
            asked, f"its metadata does not parse ({error})", "export it again", code="onnx-metadata-invalid"
        ) from error
    return dataclasses.replace(info, notes={**info.notes, **notes})


def _infer_info(
    graph: onnx.GraphProto,
    task: str,
    shapes: Sequence[OutputShape],
    names: Names,
    output_format: OutputFormat | None,
    asked: str,
) -> ModelInfo:
    """The description of a graph without metadata, from its output shapes."""
    count = None if names is None else len(names)
    output_format = output_format or infer_output_format(task, shapes, classes=count)
    if count is None and output_format in ROW_FORMATS:
        count = _count_row_classes(graph)
    classes, kpt_shape = infer_classes(task, output_format, shapes, count, asked, OnnxError)
    return ModelInfo(
        task=task,
        names=resolve_class_names(names, classes, asked, OnnxError),
        stride=1 if task == "classify" else 32,
        kpt_shape=kpt_shape,
        architecture=graph.name if graph.name.isidentifier() and graph.name not in ("main_graph", "graph") else "",
        output_format=output_format,
    )


def _count_row_classes(graph: onnx.GraphProto) -> int | None:
    """The number of classes of an end-to-end head, or None if the graph does not show it.

    Such a head selects the highest of all anchors' class scores; a row's class is that index modulo the number of
    classes.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    indices: set[str] = set()
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
        elif node.op_type == "TopK":
            indices.add(node.output[1])
        elif node.op_type in ("Cast", "Unsqueeze", "Identity") and node.input[0] in indices:
            indices.add(node.output[0])
        elif node.op_type == "Mod" and node.input[0] in indices and node.input[1] in constants:
            return int(onnx.numpy_helper.to_array(constants[node.input[1]]).reshape(-1)[0])
    return None


def _read_shape(value: onnx.ValueInfoProto) -> list[int | None]:
    """A tensor's shape, None where a size is dynamic."""
    dimensions = value.type.tensor_type.shape.dim
    return [item.dim_value if item.HasField("dim_value") and item.dim_value > 0 else None for item in dimensions]


def _count_weights(tensor: onnx.TensorProto) -> int:
    """Elements of a weight; 0 for scalars and for the integers that describe shapes."""
    if not tensor.dims or tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return 0
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _hash_graph(proto: onnx.ModelProto) -> str:
    """SHA-256 over nodes, weights, inputs and outputs, without metadata and producer."""
    graph = proto.graph
    parts: list[bytes | str] = [f"{item.domain}:{item.version}" for item in proto.opset_import]
    for group in (graph.input, graph.output, graph.node, graph.sparse_initializer, proto.functions):
        parts += [str(len(group)), *(item.SerializeToString(deterministic=True) for item in group)]
    for tensor in graph.initializer:
        # Independent of whether a weight is stored inside the file or as external data.
        content = tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()
        parts += [tensor.name, f"{tensor.data_type}{list(tensor.dims)}", content]
    return hash_parts(*parts)

"""ONNX files as `Model`: Ultralytics' exports, ours, and anybody's when the task is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

from trtkit.errors import OnnxError
from trtkit.files import hash_parts
from trtkit.models.model import (
    Model,
    ModelInfo,
    Preprocess,
    count_classes,
    parse_trtkit_entry,
    resolve_class_names,
    resolve_task,
)

__all__ = ["from_proto", "read_onnx"]

Names = Mapping[int, str] | Sequence[str] | None


def read_onnx(
    path: str | Path, *, task: str | None = None, names: Names = None, imgsz: int | tuple[int, int] | None = None
) -> Model:
    """An ONNX file as a model; arguments as in `trtkit.load`.

    Raises:
        OnnxError: The file is missing, empty, damaged or of no known task.
    """
    path = Path(path)
    asked = f"load {path}"
    if not path.is_file():
        raise OnnxError(asked, "it is a folder" if path.is_dir() else "the file does not exist", "check the path")
    if path.stat().st_size == 0:
        raise OnnxError(asked, "the file is empty", "export or copy it again")
    try:
        proto = onnx.load(path)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise OnnxError(asked, "it is no ONNX file, or damaged", "export or copy it again") from error
    except (OSError, onnx.checker.ValidationError) as error:
        raise OnnxError(asked, f"the weights beside it can't be read ({error})", "copy them with it") from error
    return from_proto(proto, path, task=task, names=names, imgsz=imgsz)


def from_proto(
    proto: onnx.ModelProto,
    source: Path | None = None,
    *,
    task: str | None = None,
    names: Names = None,
    imgsz: int | tuple[int, int] | None = None,
) -> Model:
    """An ONNX graph as a model.

    `metadata_props` as Ultralytics and trtkit write them are understood; what trtkit adds is kept in `notes["trtkit"]`.
    Without them, the task must be named, and sizes and class count are read from the shapes.

    Raises:
        OnnxError: The graph is not usable, or its task is unknown.
    """
    from trtkit.models.torch_model import parse_imgsz

    asked = f"load {source}" if source is not None else "load an ONNX graph"
    graph = proto.graph
    initial = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initial]
    if not graph.node or not graph.output or not inputs:
        raise OnnxError(asked, "its graph has no nodes, inputs or outputs", "export or copy it again")
    shape = _read_shape(inputs[0])
    if len(shape) != 4:
        raise OnnxError(asked, f"its input {inputs[0].name} is no image of four dimensions", "name a vision model")
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    size = (shape[2], shape[3])
    if imgsz is not None:
        wanted = parse_imgsz(imgsz, asked)
        if any(fixed not in (None, side) for fixed, side in zip(size, wanted, strict=True)):
            raise OnnxError(asked, f"imgsz={imgsz} was asked but the graph is fixed at {size}", "leave imgsz= out")
        size = wanted
    if "task" in metadata and "names" in metadata:
        info = _read_info(metadata, asked)
        resolve_task(task, info.task, asked, OnnxError)
        found = info.names if names is None else resolve_class_names(names, len(info.names), asked, OnnxError)
        info = dataclasses.replace(info, names=found)
    else:
        task = resolve_task(task, metadata.get("task"), asked, OnnxError)
        given = None if names is None else len(names)
        shapes = [_read_shape(value) for value in graph.output]
        classes, kpt_shape = count_classes(task, shapes, given, asked, OnnxError)
        info = ModelInfo(
            task=task,
            names=resolve_class_names(names, classes, asked, OnnxError),
            stride=1 if task == "classify" else 32,
            kpt_shape=kpt_shape,
            architecture=graph.name if graph.name.isidentifier() and graph.name not in ("main_graph", "graph") else "",
        )
    values = {field.name: getattr(info, field.name) for field in dataclasses.fields(ModelInfo)}
    values["imgsz"] = (size[0] or info.imgsz[0], size[1] or info.imgsz[1])
    values["preprocess"] = _with_channels(info.preprocess, shape[1] or info.channels, asked)
    return Model(
        **values,
        hash=_hash_graph(proto),
        source=source,
        proto=proto,
        parameters=sum(_count_weights(t) for t in graph.initializer),
    )


def _with_channels(preprocess: Preprocess, channels: int, asked: str) -> Preprocess:
    """The preprocessing with the graph's own number of channels."""
    try:
        return dataclasses.replace(preprocess, channels=channels)
    except ValueError as error:
        raise OnnxError(
            asked,
            f"its preprocessing does not fit its input ({error})",
            "export it again",
            code="onnx-preprocess-mismatch",
            channels=channels,
        ) from error


def _read_info(metadata: Mapping[str, str], asked: str) -> ModelInfo:
    """The card in `metadata_props`, with what Ultralytics' keys and ours say beyond it in its notes."""
    try:
        info = ModelInfo.from_metadata(metadata)
        extra: dict[str, Any] = {"batch": int(metadata["batch"])} if "batch" in metadata else {}
        if "trtkit" in metadata:
            extra["trtkit"] = parse_trtkit_entry(metadata["trtkit"])
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        raise OnnxError(asked, f"its metadata does not parse ({error})", "export it again") from error
    return dataclasses.replace(info, notes={**info.notes, **extra})


def _read_shape(value: onnx.ValueInfoProto) -> list[int | None]:
    dimensions = value.type.tensor_type.shape.dim
    return [item.dim_value if item.HasField("dim_value") and item.dim_value > 0 else None for item in dimensions]


def _count_weights(tensor: onnx.TensorProto) -> int:
    """Elements of a weight; 0 for scalars and for the whole numbers that describe shapes."""
    if not tensor.dims or tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return 0
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _hash_graph(proto: onnx.ModelProto) -> str:
    """SHA-256 over nodes, weights, inputs and outputs; metadata and producer do not count."""
    graph = proto.graph
    parts: list[bytes | str] = [f"{item.domain}:{item.version}" for item in proto.opset_import]
    for group in (graph.input, graph.output, graph.node, graph.sparse_initializer, proto.functions):
        parts += [str(len(group)), *(item.SerializeToString(deterministic=True) for item in group)]
    for tensor in graph.initializer:
        # Where a weight is kept, inside the file or beside it, is no difference.
        content = tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()
        parts += [tensor.name, f"{tensor.data_type}{list(tensor.dims)}", content]
    return hash_parts(*parts)

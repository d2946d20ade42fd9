"""A model as one FP32 ONNX graph."""

from __future__ import annotations

import collections
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import onnx

from trtkit.errors import ModelError, OnnxError, TrtkitError
from trtkit.files import hash_parts
from trtkit.graph.editing import get_opset, sort_nodes
from trtkit.graph.fp16 import convert_to_fp32, match_node_names
from trtkit.graph.onnx_file import update_metadata
from trtkit.graph.passes import fold_sums, fuse_box_decoding, remove_copies
from trtkit.graph.prequantized import is_quantized
from trtkit.models.model import DETR_QUERIES, DETR_ROWS, END2END_ROWS, Model
from trtkit.models.onnx_model import refuse_damaged_graph
from trtkit.writing import temporary_folder

__all__ = ["OPSET", "check_trace", "trace"]

OPSET = 17
"""The newest operator set that TensorRT 8.6 reads; 10.x, 11.x and TensorRT-RTX read it, too."""

MINIMUM_OPSET = 13
"""The first operator set whose Q/DQ has one scale for each channel."""

_EXPORTER = threading.Lock()

TRACE_COUNT = 4
"""Most traced or simplified graphs that are kept: each verb on a model starts with one, which takes seconds."""

TRACE_BYTES = 256 << 20
"""Most memory that they take, bytes."""

_TRACES: collections.OrderedDict[tuple[Any, ...], bytes] = collections.OrderedDict()


def trace(
    model: Model,
    *,
    imgsz: tuple[int, int] | None = None,
    batch: int = 1,
    dynamic: bool = False,
    dynamic_batch: bool = False,
    simplify: bool = True,
) -> onnx.ModelProto:
    """Trace a model to an FP32 ONNX graph with input `images`, (N, C, H, W) float32.

    Args:
        model: From `trtkit.load`. A model from an ONNX file keeps its own graph, simplified, FP16 converted to FP32,
            operator sets before 13 raised to 13. A graph that holds Q/DQ is not changed otherwise.
        imgsz: Height and width, pixels; None takes the model's own.
        batch: Batch size of a static graph.
        dynamic: Make batch, height and width dynamic.
        dynamic_batch: Make only the batch dynamic.
        simplify: Fold constants and fuse nodes with onnxslim, then `remove_copies`, `fuse_box_decoding` and
            `fold_sums`.

    Returns:
        The graph, operator set 17 or that of the ONNX file, outputs `output0`, `output1`, ..., with the model's
        metadata.

    Raises:
        ModelError: The module can't be traced.
        OnnxError: An ONNX file has another static shape, or an operator set that can't be converted.
    """
    size = imgsz or model.imgsz
    settings = (size, batch, dynamic, dynamic_batch, simplify)
    if model.module is not None and model.example is None:
        from trtkit.models.torch_model import hash_weights

        # Layers and weights as they are now; a caller's own module may run other code with the same layers and weights.
        key = hash_weights(repr(model.module), model.module.state_dict())
        proto = _remember(
            (key, model.output_format, str(model.row_settings), *settings), lambda: _trace(model, *settings)
        )
    elif model.proto is not None:
        with refuse_damaged_graph(f"export {model.source or model.stem}"):
            if simplify and model.proto.ByteSize() <= TRACE_BYTES:
                # Each precision starts with the same graph, and simplifying it takes longer than what follows.
                key = hash_parts(model.proto.SerializeToString())
                proto = _remember((key, *settings), lambda: _trace(model, *settings))
            else:
                proto = _trace(model, *settings)
    else:
        proto = _trace(model, *settings)
    metadata = model.info.to_metadata(batch=batch, imgsz=size, dynamic=dynamic, simplify=simplify)
    with refuse_damaged_graph(f"export {model.source or model.stem}"):
        return update_metadata(proto, metadata, {"precision": "fp32", "model_hash": model.hash})


def check_trace(
    model: Model, keep: Sequence[str] = (), *, imgsz: tuple[int, int], batch: int = 1, dynamic: bool = False
) -> None:
    """Check before slow work that a model can be traced at a shape, and that `keep` names nodes of its graph.

    Args:
        model: From `trtkit.load`.
        keep: fnmatch patterns of node names; a checkpoint is traced only if there are any.
        imgsz: Height and width, pixels.
        batch: Batch size of a static graph.
        dynamic: Whether batch, height and width are dynamic.

    Raises:
        OnnxError: An ONNX file has another static shape.
        RecipeError: A pattern matches no node.
    """
    if model.proto is not None:
        _check_shape(model.proto, batch=batch, size=imgsz, dynamic=dynamic)
    if keep:
        graph = trace(model, imgsz=imgsz, batch=batch, dynamic=dynamic)
        match_node_names([node.name for node in graph.graph.node], keep)


def _remember(key: tuple[Any, ...], make: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
    """A copy of the graph that `make` returned for this key before, or returns now; the oldest are dropped."""
    stored = _TRACES.get(key)
    if stored is not None:
        kept: onnx.ModelProto = onnx.ModelProto.FromString(stored)
        return kept
    proto = make()
    if proto.ByteSize() <= TRACE_BYTES:
        with _EXPORTER:
            _TRACES[key] = proto.SerializeToString()
            while len(_TRACES) > TRACE_COUNT or sum(map(len, _TRACES.values())) > TRACE_BYTES:
                _TRACES.popitem(last=False)
    return proto


def _trace(
    model: Model, size: tuple[int, int], batch: int, dynamic: bool, dynamic_batch: bool, simplify: bool
) -> onnx.ModelProto:
    if model.proto is not None:
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        sort_nodes(proto.graph)
        _check_shape(proto, batch=batch, size=size, dynamic=dynamic)
        proto = _raise_opset(proto)
        if is_quantized(proto):
            # Taken as it is: folding constants or moving nodes would change what the scales were measured for.
            simplify = False
        else:
            proto = convert_to_fp32(proto)
    else:
        proto = _from_module(model, size=size, batch=batch, dynamic=dynamic, dynamic_batch=dynamic_batch)
    if simplify:
        import onnxslim

        proto = onnxslim.slim(proto)
    name_nodes(proto)
    if simplify:
        remove_copies(proto)
        fuse_box_decoding(proto)
        fold_sums(proto)
    return proto


def name_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Give every node a unique name, for `keep=` patterns and layer tables; the graph is modified and returned.

    Args:
        proto: The graph.
    """
    used: set[str] = set()
    for index, node in enumerate(proto.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        while name in used:
            name += "_"
        node.name = name
        used.add(name)
    return proto


def _from_module(
    model: Model, *, size: tuple[int, int], batch: int, dynamic: bool, dynamic_batch: bool
) -> onnx.ModelProto:
    import torch

    from trtkit.models.yolo import Yolo

    assert model.module is not None
    module = model.module
    has_rows = model.output_format in (END2END_ROWS, DETR_ROWS, DETR_QUERIES)
    if has_rows and isinstance(module, Yolo):
        module = module.with_head(dynamic=dynamic)
    example = model.example if model.example is not None else torch.zeros(batch, model.channels, *size)
    if model.example is not None and tuple(example.shape) != (batch, model.channels, *size):
        example = torch.zeros(batch, model.channels, *size, dtype=example.dtype)
    try:
        with torch.inference_mode():
            outputs = module(example)
    except Exception as error:  # a caller's module may raise anything
        shape = "x".join(map(str, example.shape))
        raise ModelError(
            f"trace {model.stem} at {shape}",
            f"the module fails on such an input ({type(error).__name__}: {_first_line(error)})",
            "export it at the shape of its example, or pass a module that takes other shapes",
            code="model-shape-fails",
            model=model.stem,
            shape=tuple(example.shape),
        ) from error
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    names = [f"output{index}" for index in range(len(outputs))]
    axes: dict[str, dict[int, str]] = {}
    if dynamic or dynamic_batch:
        axes["images"] = {0: "batch", **({2: "height", 3: "width"} if dynamic else {})}
        for name, output in zip(names, outputs, strict=True):
            axes[name] = {0: "batch"}
            if dynamic and output.ndim == 3 and not has_rows:
                axes[name][2] = "anchors"
            elif dynamic and output.ndim == 4:
                axes[name].update({2: "mask_height", 3: "mask_width"})
    try:
        # torch's exporter keeps its state in globals, so threads take turns.
        with _EXPORTER, warnings.catch_warnings(), temporary_folder() as folder:
            # The TorchScript exporter is deprecated but writes the smallest graph at operator set 17, which the
            # newer one does not write; its tracer also warns about every shape that becomes a constant.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (example,),
                folder / "model.onnx",
                opset_version=OPSET,
                input_names=["images"],
                output_names=names,
                dynamic_axes=axes or None,
                do_constant_folding=True,
                dynamo=False,
            )
            proto = onnx.load(folder / "model.onnx")
    except TrtkitError:
        raise
    except Exception as error:  # tracing runs the module's own code
        raise ModelError(
            f"trace {model.stem} to ONNX",
            f"it can't be traced ({type(error).__name__}: {_first_line(error)})",
            "pass a module that torch.onnx can trace",
            code="model-trace-failed",
            model=model.stem,
        ) from error
    if has_rows:
        # The exporter doesn't infer the number of rows of a dynamic graph.
        for dim, size in zip(proto.graph.output[0].type.tensor_type.shape.dim[1:], outputs[0].shape[1:], strict=True):
            dim.dim_value = size
    return proto


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _check_shape(proto: onnx.ModelProto, *, batch: int, size: tuple[int, int], dynamic: bool) -> None:
    """Raise an error for a shape that an ONNX file can't take; its static axes were fixed when it was exported."""
    if not proto.graph.input:
        raise OnnxError("read an ONNX graph", "it has no input", "export the model again", code="onnx-no-input")
    static = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    wanted = [batch, 0, *size]
    for index, axis in ((0, "batch"), (2, "height"), (3, "width")):
        if index < len(static) and static[index] > 0 and (dynamic or static[index] != wanted[index]):
            shape = "a dynamic shape" if dynamic else f"{axis} {wanted[index]}"
            raise OnnxError(
                f"export an ONNX file with {shape}",
                f"the file's {axis} is fixed at {static[index]}",
                "use the file's own shape or start from the .pt file",
                code="onnx-shape-fixed",
                axis=axis,
                value=static[index],
            )


def _raise_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a graph of an older operator set to `MINIMUM_OPSET`."""
    version = get_opset(proto)
    if version >= MINIMUM_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, MINIMUM_OPSET)
    except Exception as error:
        raise OnnxError(
            f"convert an ONNX graph from operator set {version} to {MINIMUM_OPSET}",
            str(error),
            f"export it again with opset {OPSET}",
            code="onnx-opset-conversion",
            opset=version,
        ) from error

"""Tensors of a graph for each batch, computed into reused memory, and nodes that overflow FP16."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from trtkit.graph.analysis import GraphIndex
from trtkit.graph.fp16 import FP16_MAX

__all__ = ["OVERFLOW_MARGIN", "BoundOutputs", "find_fixed_shapes", "find_fp16_overflows"]


class BoundOutputs:
    """Tensors of a session, bound to reused memory.

    From the second batch of a shape on, ONNX Runtime writes into the memory of the first one: a detector has some 80 MB
    of activations per image at 640 x 640.

    Args:
        session: An ONNX Runtime session with the tensors among its outputs.
        names: The tensors; the graph's input may be one of them.
        fixed: Tensors with a shape that the input shape determines; the others get new memory for each batch. Empty if
            the session does not run on the CPU.
    """

    def __init__(self, session: Any, names: Sequence[str], fixed: Iterable[str] = ()) -> None:
        self.session = session
        self.names = tuple(names)
        self.input = session.get_inputs()[0].name
        self.computed = [name for name in names if name != self.input]
        self.fixed = frozenset(fixed)
        self.shape: tuple[int, ...] | None = None
        self.binding: Any = None
        self.buffers: dict[str, NDArray[np.float32]] = {}

    def run(self, inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Compute the tensors.

        Args:
            inputs: (N, C, H, W) float32.

        Returns:
            The tensors in the order of `names`, valid until the next call.
        """
        if self.fixed and inputs.shape == self.shape:
            self.binding.bind_cpu_input(self.input, np.ascontiguousarray(inputs))
            self.session.run_with_iobinding(self.binding)
            outputs = zip(self.computed, self.binding.get_outputs(), strict=True)
            values = {name: self.buffers[name] if name in self.buffers else value.numpy() for name, value in outputs}
        else:
            values = dict(zip(self.computed, self.session.run(self.computed, {self.input: inputs}), strict=True))
            if self.fixed:
                self._bind(inputs.shape, values)
        values[self.input] = inputs
        return [values[name] for name in self.names]

    def _bind(self, shape: tuple[int, ...], values: dict[str, NDArray[np.float32]]) -> None:
        """Allocate memory for the next inputs of a shape."""
        self.shape, self.binding = shape, self.session.io_binding()
        self.buffers = {name: np.empty_like(values[name]) for name in self.computed if name in self.fixed}
        for name in self.computed:
            buffer = self.buffers.get(name)
            if buffer is None:
                self.binding.bind_output(name, "cpu")
            else:
                self.binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)


def find_fixed_shapes(proto: onnx.ModelProto, names: Iterable[str]) -> frozenset[str]:
    """Find the tensors with a shape that the input shape determines; other shapes may differ by image."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    graph_input = inferred.input[0]
    known = {dim.dim_param for dim in graph_input.type.tensor_type.shape.dim if dim.dim_param}
    shapes = {
        value.name: value.type.tensor_type.shape.dim
        for value in (graph_input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.HasField("shape")
    }
    return frozenset(
        name
        for name in names
        if name in shapes and all(dim.HasField("dim_value") or dim.dim_param in known for dim in shapes[name])
    )


OVERFLOW_MARGIN = 4.0
"""Safety margin: unseen images may exceed the measured peak, so peaks above 65504 / 4 count as overflow."""


def find_fp16_overflows(
    proto: onnx.ModelProto, batches: Iterable[np.ndarray], *, margin: float = OVERFLOW_MARGIN
) -> dict[str, float]:
    """Run an FP32 graph over images and find nodes with outputs that exceed the range of FP16.

    Args:
        proto: FP32 graph with unique node names and a dynamic batch.
        batches: (N, C, H, W) float32 in [0, 1].
        margin: Safety margin on the measured peak.

    Returns:
        Largest magnitude by node name, for nodes above `65504 / margin`, in graph order.
    """
    import onnxruntime as ort

    index = GraphIndex(proto)
    inferred = onnx.shape_inference.infer_shapes(proto)
    values = [*inferred.graph.value_info, *inferred.graph.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    # Decode nodes always stay in FP32.
    decode_nodes = index.decode_nodes()
    names = [
        name for node in proto.graph.node if node.name not in decode_nodes for name in node.output if name in floats
    ]
    monitored = copy.deepcopy(proto)
    targets: list[str] = []
    for number, name in enumerate(names):
        for operator in ("ReduceMin", "ReduceMax"):
            targets.append(f"trtkit_peak_{operator}_{number}")
            monitored.graph.node.append(helper.make_node(operator, [name], [targets[-1]], targets[-1], keepdims=0))
            monitored.graph.output.append(helper.make_tensor_value_info(targets[-1], TensorProto.FLOAT, []))
    session = ort.InferenceSession(monitored.SerializeToString(), providers=["CPUExecutionProvider"])
    input_name = session.get_inputs()[0].name
    peaks = np.zeros(len(names))
    for images in batches:
        extremes = np.array(session.run(targets, {input_name: images}), np.float64)
        batch_peaks = np.abs(extremes).reshape(-1, 2).max(axis=1)
        # NaN and infinity in FP32 count as overflow in FP16.
        peaks = np.maximum(peaks, np.where(np.isfinite(batch_peaks), batch_peaks, np.inf))
    return {
        index.producer[name].name: float(peak)
        for name, peak in zip(names, peaks, strict=True)
        if peak > FP16_MAX / margin
    }

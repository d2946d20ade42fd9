"""Tensors of a graph computed batch after batch, each time into the memory of the time before."""

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
    """What a session computes of some tensors.

    From the second batch of a shape on, tensors are written where the first one's were. A detector's activations are
    some 80 MB an image at 640; memory fresh from the system for them and a copy of each took a tenth of the pass.

    Args:
        session: An ONNX Runtime session with the tensors among its outputs.
        names: The tensors; the graph's input may be one of them.
        fixed: Those whose shape the input's shape decides; the others get new memory each time. Empty where the session
            does not run on the processor.
    """

    def __init__(self, session: Any, names: Sequence[str], fixed: Iterable[str] = ()) -> None:
        self.session = session
        self.names = tuple(names)
        self.input = session.get_inputs()[0].name
        self.computed = [name for name in names if name != self.input]
        self.fixed = frozenset(fixed)
        self.shape: tuple[int, ...] | None = None
        self.binding: Any = None
        self.places: dict[str, NDArray[np.float32]] = {}

    def run(self, fed: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The tensors for an input, in the order of `names`; good until the next call."""
        if not self.fixed:
            found = dict(zip(self.computed, self.session.run(self.computed, {self.input: fed}), strict=True))
        elif fed.shape == self.shape:
            self.binding.bind_cpu_input(self.input, np.ascontiguousarray(fed))
            self.session.run_with_iobinding(self.binding)
            outputs = zip(self.computed, self.binding.get_outputs(), strict=True)
            found = {name: self.places[name] if name in self.places else value.numpy() for name, value in outputs}
        else:
            found = dict(zip(self.computed, self.session.run(self.computed, {self.input: fed}), strict=True))
            self._bind(fed.shape, found)
        found[self.input] = fed
        return [found[name] for name in self.names]

    def _bind(self, shape: tuple[int, ...], found: dict[str, NDArray[np.float32]]) -> None:
        """Set memory aside for the next inputs of a shape."""
        self.shape, self.binding = shape, self.session.io_binding()
        self.places = {name: np.empty_like(found[name]) for name in self.computed if name in self.fixed}
        for name in self.computed:
            place = self.places.get(name)
            if place is None:
                self.binding.bind_output(name, "cpu")
            else:
                self.binding.bind_output(name, "cpu", 0, place.dtype, place.shape, place.ctypes.data)


def find_fixed_shapes(proto: onnx.ModelProto, names: Iterable[str]) -> frozenset[str]:
    """Of some tensors those whose shape the input's shape decides; others may differ from image to image."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    source = inferred.input[0]
    known = {dim.dim_param for dim in source.type.tensor_type.shape.dim if dim.dim_param}
    shapes = {
        value.name: value.type.tensor_type.shape.dim
        for value in (source, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.HasField("shape")
    }
    return frozenset(
        name
        for name in names
        if name in shapes and all(dim.HasField("dim_value") or dim.dim_param in known for dim in shapes[name])
    )


# Which nodes leave FP16's range on real images, so that they can stay in FP32 by name.


OVERFLOW_MARGIN = 4.0
"""Images of tomorrow may reach further than those measured: a peak above a quarter of FP16's range counts."""


def find_fp16_overflows(
    proto: onnx.ModelProto, batches: Iterable[np.ndarray], *, margin: float = OVERFLOW_MARGIN
) -> dict[str, float]:
    """Run an FP32 graph over images and find the nodes whose output FP16 could not hold.

    Args:
        proto: FP32 graph with unique node names; its batch is open.
        batches: (N, C, H, W) float32 in [0, 1].
        margin: How many times the largest value seen must fit under 65504.

    Returns:
        The largest magnitude seen, by node name, for each node above `65504 / margin`, in graph order.
    """
    import onnxruntime as ort

    view = GraphIndex(proto)
    inferred = onnx.shape_inference.infer_shapes(proto)
    values = [*inferred.graph.value_info, *inferred.graph.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    # The tail stays in FP32 anyway, and what only moves values is as large as what it moves.
    tail = view.decode_nodes()
    names = [name for node in proto.graph.node if node.name not in tail for name in node.output if name in floats]
    watched = copy.deepcopy(proto)
    targets: list[str] = []
    for index, name in enumerate(names):
        for operator in ("ReduceMin", "ReduceMax"):
            targets.append(f"trtkit_peak_{operator}_{index}")
            watched.graph.node.append(helper.make_node(operator, [name], [targets[-1]], targets[-1], keepdims=0))
            watched.graph.output.append(helper.make_tensor_value_info(targets[-1], TensorProto.FLOAT, []))
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    peaks = np.zeros(len(names))
    for images in batches:
        found = np.abs(np.array(session.run(targets, {source: images}), np.float64)).reshape(-1, 2).max(axis=1)
        # NaN compares false with everything; an infinity or NaN in FP32 is an overflow in FP16 all the more.
        peaks = np.maximum(peaks, np.where(np.isfinite(found), found, np.inf))
    return {
        view.producer[name].name: float(peak)
        for name, peak in zip(names, peaks, strict=True)
        if peak > FP16_MAX / margin
    }

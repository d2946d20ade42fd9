"""Tensors of a graph computed batch after batch, each time into the memory of the time before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

__all__ = ["Outputs", "fixed_shapes"]


class Outputs:
    """What a session computes of some tensors.

    From the second batch of a shape on, tensors are written where the first one's were. A detector's activations are
    some 80 MB a picture at 640; memory fresh from the system for them and a copy of each took a tenth of the pass.

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

    def of(self, fed: NDArray[np.float32]) -> list[NDArray[np.float32]]:
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


def fixed_shapes(proto: onnx.ModelProto, names: Iterable[str]) -> frozenset[str]:
    """Of some tensors those whose shape the input's shape decides; others may differ from picture to picture."""
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

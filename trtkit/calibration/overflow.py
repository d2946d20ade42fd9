"""Which nodes leave FP16's range on real pictures, so that they can stay in FP32 by name."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from trtkit.graph.half import FP16_MAX
from trtkit.graph.structure import View

__all__ = ["MARGIN", "overflowing"]

MARGIN = 4.0
"""Pictures of tomorrow may reach further than those measured: a peak above a quarter of FP16's range counts."""


def overflowing(proto: onnx.ModelProto, batches: Iterable[np.ndarray], *, margin: float = MARGIN) -> dict[str, float]:
    """Run an FP32 graph over pictures and find the nodes whose output FP16 could not hold.

    Args:
        proto: FP32 graph with unique node names; its batch is open.
        batches: (N, C, H, W) float32 in [0, 1].
        margin: How many times the largest value seen must fit under 65504.

    Returns:
        The largest magnitude seen, by node name, for each node above `65504 / margin`, in graph order.
    """
    import onnxruntime as ort

    view = View(proto)
    inferred = onnx.shape_inference.infer_shapes(proto)
    values = [*inferred.graph.value_info, *inferred.graph.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    # The tail stays in FP32 anyway, and what only moves values is as large as what it moves.
    tail = view.tail()
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
    for pictures in batches:
        found = np.abs(np.array(session.run(targets, {source: pictures}), np.float64)).reshape(-1, 2).max(axis=1)
        # NaN compares false with everything; an infinity or NaN in FP32 is an overflow in FP16 all the more.
        peaks = np.maximum(peaks, np.where(np.isfinite(found), found, np.inf))
    return {
        view.producer[name].name: float(peak)
        for name, peak in zip(names, peaks, strict=True)
        if peak > FP16_MAX / margin
    }

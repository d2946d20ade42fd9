from __future__ import annotations

import numpy as np
import onnxruntime as ort
from detector_graph import detector

from trtkit.calibration.collector import BoundOutputs, find_fixed_shapes


def test_batches_of_one_shape_share_memory() -> None:
    proto = detector()
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in proto.graph.output]
    outputs = BoundOutputs(session, [*names, "images"], find_fixed_shapes(proto, names))
    random = np.random.default_rng(0)
    addresses = []
    for size in (2, 2, 2, 1, 1, 2):
        inputs = random.random((size, 3, 32, 32), np.float32)
        *values, images = outputs.run(inputs)
        assert images is inputs
        for one, expected in zip(values, session.run(names, {"images": inputs}), strict=True):
            np.testing.assert_array_equal(one, expected)
        addresses.append(values[0].ctypes.data)
    # The first batch of a shape has memory of ONNX Runtime; later ones share ours.
    assert addresses[1] == addresses[2]


def test_shapes_that_the_input_shape_determines() -> None:
    proto = detector()
    names = [name for node in proto.graph.node for name in node.output]
    assert {"stem", "wide", "joined", "pooled"} <= find_fixed_shapes(proto, names)
    assert find_fixed_shapes(proto, ["nothing"]) == frozenset()

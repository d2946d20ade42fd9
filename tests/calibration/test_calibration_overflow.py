from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from detector_graph import detector, run
from onnx import TensorProto, helper, numpy_helper
from task_models import drawn_set, untrained

import trtkit as tk
from trtkit.calibration.calibrator import find_fp16_overflows
from trtkit.graph.fp16 import convert_to_fp16


def test_overflowing_nodes_stay_in_fp32() -> None:
    proto = detector()
    for tensor in proto.graph.initializer:
        if tensor.name == "wide.weight":  # the weights fit FP16, the activations do not
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1e6, tensor.name))
        if tensor.name == "key.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1e-6, tensor.name))
    images = np.random.default_rng(4).random((2, 3, 32, 32), np.float32)
    peaks = find_fp16_overflows(proto, [images])
    assert set(peaks) == {"wide", "wide/silu"}
    assert all(peak > 65504 / 4 for peak in peaks.values())
    # ONNX Runtime's CPU kernels compute FP16 nodes in FP32, so numpy converts to FP16 here.
    assert np.isfinite(run(proto, images)[0]).all()
    assert np.isinf(np.float32(max(peaks.values())).astype(np.float16))
    converted = onnx.shape_inference.infer_shapes(convert_to_fp16(proto, keep_nodes=peaks), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in converted.graph.value_info}
    assert types["wide"] == types["wide/silu"] == TensorProto.FLOAT
    assert types["stem"] == types["neck"] == TensorProto.FLOAT16


def test_a_graph_without_overflow() -> None:
    assert find_fp16_overflows(detector(), [np.ones((1, 3, 32, 32), np.float32)]) == {}


@pytest.mark.parametrize("place", [(0, 0), (1, 1)])
def test_nan_counts_as_overflow_wherever_it_is(place: tuple[int, int]) -> None:
    nodes = [
        helper.make_node("Log", ["images"], ["log"], "log"),
        helper.make_node("Conv", ["log", "weight"], ["conv"], "conv"),
        helper.make_node("Relu", ["conv"], ["output0"], "relu"),
    ]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in ("images", "output0")]
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight")
    graph = helper.make_graph(nodes, "log", shapes[:1], shapes[1:], [weight])
    images = np.ones((1, 1, 4, 4), np.float32)
    images[0, 0][place] = -1
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    assert find_fp16_overflows(proto, [images]) == {"log": np.inf, "conv": np.inf}


@pytest.mark.parametrize("batch", [1, 4])
def test_an_onnx_file_of_fixed_batch_is_checked(batch: int, tmp_path: Path) -> None:
    """Three images fill no batch of four."""
    data = drawn_set(tmp_path / "set", "detect", count=3)
    source = tk.export(untrained("detect"), "onnx", batch=batch, output=tmp_path / "source.onnx")
    file = tk.export(source.path, "onnx", half=True, batch=batch, data=data, output=tmp_path / "half.onnx")
    with tk.open(file) as runner:
        assert (runner.precision, runner.batch) == ("fp16", batch)

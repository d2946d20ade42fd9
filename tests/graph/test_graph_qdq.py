from __future__ import annotations

import numpy as np
import onnx
import pytest
from detector_graph import detector, run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from trtkit.calibration.collector import MinMaxCollector
from trtkit.errors import CalibrationError, RecipeError
from trtkit.graph.onnx_file import read_trtkit_metadata
from trtkit.graph.qdq import compute_weight_scales, insert_qdq, plan_qdq, quantizable_tensors


def minmax_ranges(proto: onnx.ModelProto, images: np.ndarray) -> dict[str, tuple[float, float]]:
    collector = MinMaxCollector(proto)
    collector.add(images)
    return collector.ranges()


def test_placement_of_the_example_detector(proto: onnx.ModelProto) -> None:
    placement = plan_qdq(proto)
    assert placement.layers == ("stem", "middle", "depthwise", "wide", "key", "neck", "head", "sides", "classes")
    # Nothing between a layer and its activation, and both sides of the residual sum are read as INT8.
    assert "stem" not in placement.tensors
    assert {"stem/silu", "middle/silu", "residual"} <= set(placement.tensors)
    # Concatenation, pooling, splitting and upsampling share one scale with what they read.
    assert set(placement.scale_groups["joined"]) == {"residual", "left", "right", "pooled", "joined"}
    assert set(placement.scale_groups["both"]) == {"neck/silu", "large", "depthwise/silu", "light2", "both"}
    assert placement.scale_groups["stem/silu"] == ("stem/silu",)


def test_every_layer_has_qdq_on_data_and_weight(proto: onnx.ModelProto, images: np.ndarray) -> None:
    result = insert_qdq(proto, minmax_ranges(proto, images))
    onnx.checker.check_model(result, full_check=True)
    producers = {name: node for node in result.graph.node for name in node.output}
    layers = [node for node in result.graph.node if node.name in plan_qdq(proto).layers]
    assert len(layers) == 9
    for node in layers:
        data, weight = producers[node.input[0]], producers[node.input[1]]
        assert (data.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert producers[weight.input[0]].op_type == "QuantizeLinear"
    assert read_trtkit_metadata(result)["precision"] == "int8"


def test_excluded_layers_read_floats(proto: onnx.ModelProto, images: np.ndarray) -> None:
    result = insert_qdq(proto, minmax_ranges(proto, images))
    nodes = {node.name: node for node in result.graph.node}
    assert nodes["dfl"].input[0] == "spread"
    assert nodes["proj"].input == ["square", "proj.weight", "proj.bias"]


def test_qdq_arithmetic_by_hand() -> None:
    """One quantized layer recomputed with numpy: scales, rounding and clipping are as documented."""
    proto, images = detector(), np.random.default_rng(2).random((1, 3, 32, 32), np.float32) * 2
    keep = ["middle", "wide", "neck", "head"]
    result = insert_qdq(proto, dict.fromkeys(quantizable_tensors(proto), (0.0, 1.0)), keep)
    result.graph.output.append(onnx.helper.make_tensor_value_info("stem", onnx.TensorProto.FLOAT, None))
    output = run(result, images, outputs=["stem"])[0]
    weight = next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "stem.weight")
    scale = np.float32(1 / 127)
    x = np.clip(np.rint(images / scale), -128, 127) * scale
    scales = compute_weight_scales(weight, 0).reshape(8, 1, 1, 1)
    w = np.clip(np.rint(weight / scales), -128, 127) * scales
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.zeros_like(output)
    for row in range(16):
        for column in range(16):
            patch = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected[:, :, row, column] = np.einsum("nchw,ochw->no", patch, w)
    np.testing.assert_allclose(output, expected, atol=1e-4)


def test_int8_is_close_to_fp32(proto: onnx.ModelProto, images: np.ndarray) -> None:
    fp32 = run(proto, images)[0]
    error = np.abs(run(insert_qdq(proto, minmax_ranges(proto, images)), images)[0] - fp32)
    assert 0 < error.mean() < 0.02 * np.abs(fp32).mean()


def test_keep_excludes_layers(proto: onnx.ModelProto) -> None:
    placement = plan_qdq(proto, ["wide", "nec*"])
    assert placement.layers == ("stem", "middle", "depthwise", "key", "head", "sides", "classes")
    assert placement.excluded["wide"] == placement.excluded["neck"] == "keep"
    with pytest.raises(RecipeError) as error:
        plan_qdq(proto, ["nothing"])
    assert error.value.code == "keep-no-match"


def test_a_sum_reads_the_output_of_attention_as_float(proto: onnx.ModelProto, images: np.ndarray) -> None:
    nodes = {node.name: node for node in proto.graph.node}
    nodes["neck"].input[0] = "sum"
    index = list(proto.graph.node).index(nodes["neck"])
    proto.graph.node.insert(index, onnx.helper.make_node("Add", ["proj", "wide/silu"], ["sum"], "sum"))
    placement = plan_qdq(proto)
    assert {"sum", "wide/silu"} <= set(placement.tensors)
    assert "proj" not in placement.tensors
    result = insert_qdq(proto, minmax_ranges(proto, images))
    assert next(node for node in result.graph.node if node.name == "sum").input == ["proj", "wide/silu_dq"]
    # Calibration measures it all the same, for placements that exclude nothing.
    assert "proj" in quantizable_tensors(proto)


def test_depthwise_layers_before_kept_layers_are_excluded(proto: onnx.ModelProto) -> None:
    placement = plan_qdq(proto, ["head"])
    assert placement.excluded["head"] == "keep"
    assert placement.excluded["depthwise"] == "depthwise"
    assert "depthwise" in plan_qdq(proto, ["head"], protect=False).layers


def test_a_missing_or_infinite_range_raises(proto: onnx.ModelProto, images: np.ndarray) -> None:
    ranges = minmax_ranges(proto, images)
    with pytest.raises(CalibrationError) as error:
        insert_qdq(proto, {**ranges, "stem/silu": (0.0, float("nan"))})
    assert (error.value.code, error.value.fields["name"]) == ("calibration-range-not-finite", "stem/silu")
    with pytest.raises(CalibrationError) as error:
        insert_qdq(proto, {name: bounds for name, bounds in ranges.items() if name != "images"})
    assert (error.value.code, error.value.fields["names"]) == ("calibration-range-missing", ["images"])


@pytest.mark.parametrize("values", [3, 9])
def test_a_bias_correction_of_another_length_raises(proto: onnx.ModelProto, images: np.ndarray, values: int) -> None:
    with pytest.raises(CalibrationError) as error:
        insert_qdq(proto, minmax_ranges(proto, images), corrections={"stem": [0.5] * values})
    assert error.value.code == "bias-correction-mismatch"
    assert error.value.fields == {"node": "stem", "corrections": values}


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
        elements=st.floats(-1e4, 1e4, width=32).map(lambda x: 0.0 if abs(x) < 1e-20 else x),
    ),
    st.sampled_from([0, 1]),
)
def test_weight_scales_cover_every_channel(weight: np.ndarray, axis: int) -> None:
    scales = compute_weight_scales(weight, axis)
    shaped = scales.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
    assert (np.abs(weight) <= shaped * 127 * (1 + 1e-6)).all()
    assert (scales > 0).all()


def test_computed_shapes_are_not_quantized() -> None:
    """A graph with dynamic shapes computes them; the data input of a Reshape is quantized, its shape is not."""
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "weight")
    zero = numpy_helper.from_array(np.zeros(4, np.int64), "zero")
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["first"], "first"),
        helper.make_node("Shape", ["first"], ["sides"], "sides"),
        helper.make_node("Add", ["sides", "zero"], ["shape"], "shape"),
        helper.make_node("Reshape", ["first", "shape"], ["same"], "same"),
        helper.make_node("Conv", ["same", "weight"], ["second"], "second"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in ("images", "second")
    ]
    graph = helper.make_graph(nodes, "open", values[:1], values[1:], [weight, zero])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert quantizable_tensors(proto) == ("images", "first", "same")
    result = insert_qdq(proto, dict.fromkeys(quantizable_tensors(proto), (0.0, 1.0)), protect=False)
    assert run(result, np.ones((2, 3, 4, 4), np.float32))

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detector_graph import detector, run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from networks import load_network
from onnx import TensorProto, helper, numpy_helper
from raising import raises
from task_models import untrained

import trtkit as tk
from trtkit import backends
from trtkit.backends import BuildSettings
from trtkit.calibration.collector import MinMaxCollector
from trtkit.errors import CalibrationError, RecipeError
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.onnx_file import read_trtkit_metadata
from trtkit.graph.qdq import (
    compute_weight_scales,
    expand_int8_weights,
    insert_qdq,
    plan_qdq,
    quantizable_tensors,
    quantize_weight,
)
from trtkit.graph.torch_export import trace


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
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    layers = [node for node in result.graph.node if node.name in plan_qdq(proto).layers]
    assert len(layers) == 9
    for node in layers:
        data, weight = producers[node.input[0]], producers[node.input[1]]
        assert (data.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert weight.input[0] not in producers
        assert constants[weight.input[0]].data_type == TensorProto.INT8
        assert f"{node.name}.weight" not in constants
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


def test_ranges_too_small_for_a_scale_get_one(proto: onnx.ModelProto, images: np.ndarray) -> None:
    """127 steps of the smallest floats are not representable; ONNX Runtime and TensorRT reject a scale of 0."""
    ranges = {**minmax_ranges(proto, images), "stem/silu": (0.0, 1e-45)}
    index = GraphIndex(insert_qdq(proto, ranges))
    scales = [index.array(node.input[1]) for node in index.nodes.values() if node.op_type == "QuantizeLinear"]
    assert scales
    assert all((scale > 0).all() for scale in scales)


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


# Weights stored as INT8, and the float form of them.


@functools.cache
def quantizer(axis: int) -> Any:
    """ONNX Runtime's own QuantizeLinear along an axis of a tensor of rank 4."""
    import onnxruntime as ort

    shapes = (("weight", TensorProto.FLOAT, 4), ("scales", TensorProto.FLOAT, 1), ("zeros", TensorProto.INT8, 1))
    inputs = [
        helper.make_tensor_value_info(name, kind, [f"{name}{i}" for i in range(rank)]) for name, kind, rank in shapes
    ]
    node = helper.make_node("QuantizeLinear", ["weight", "scales", "zeros"], ["integers"], "quantize", axis=axis)
    output = helper.make_tensor_value_info("integers", TensorProto.INT8, [f"out{i}" for i in range(4)])
    graph = helper.make_graph([node], "quantize", inputs, [output])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])

    def quantize(weight: np.ndarray, scales: np.ndarray) -> Any:
        feeds = {"weight": weight, "scales": scales, "zeros": np.zeros(len(scales), np.int8)}
        return session.run(None, feeds)[0]

    return quantize


@st.composite
def weights(draw: st.DrawFn) -> np.ndarray:
    """Floats of any magnitude, or halves of a power of two, where every second value lies between two integers."""
    shape = draw(hnp.array_shapes(min_dims=4, max_dims=4, max_side=4))
    if draw(st.booleans()):
        return draw(hnp.arrays(np.float32, shape, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
    step = np.float32(2.0 ** draw(st.integers(-20, 5)))
    halves = draw(hnp.arrays(np.int16, shape, elements=st.integers(-254, 254))).astype(np.float32) / 2
    halves[..., 0, 0] = 127  # with axis 0 or 1 every channel reaches 127 steps, so that its scale is the step
    return halves * step


@settings(max_examples=150, deadline=None)
@given(weights(), st.sampled_from([0, 1]))
def test_the_stored_weight_is_what_quantizelinear_computes(weight: np.ndarray, axis: int) -> None:
    scales = compute_weight_scales(weight, axis)
    assert np.array_equal(quantize_weight(weight, scales, axis), quantizer(axis)(weight, scales))


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.float32, 3, elements=st.floats(float(np.float32(1e-44)), 2.0**120, width=32)),
    st.sampled_from([0, 1]),
)
def test_an_expanded_weight_is_quantized_to_the_same_integers(scales: np.ndarray, axis: int) -> None:
    """For every INT8 value and any scale, subnormal ones included."""
    integers = np.tile(np.arange(-128, 128, dtype=np.int8), 3).reshape(3, 256, 1, 1)
    integers = integers if axis == 0 else integers.transpose(1, 0, 2, 3).copy()
    constants = [
        numpy_helper.from_array(value, name)
        for name, value in (("q", integers), ("s", scales), ("z", np.zeros(3, np.int8)))
    ]
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], "w_DequantizeLinear", axis=axis)
    graph = helper.make_graph([node], "w", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, None)], constants)
    expanded = expand_int8_weights(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).graph
    assert [(one.op_type, one.name) for one in expanded.node] == [
        ("QuantizeLinear", "w_QuantizeLinear"),
        ("DequantizeLinear", "w_DequantizeLinear"),
    ]
    weight = {tensor.name: numpy_helper.to_array(tensor) for tensor in expanded.initializer}[expanded.node[0].input[0]]
    assert weight.dtype == np.float32
    assert np.array_equal(quantizer(axis)(weight, scales), integers)


def run_at(proto: onnx.ModelProto, images: np.ndarray, level: str, *, as_written: bool) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


@pytest.mark.parametrize("as_written", [True, False])
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_both_forms_have_the_same_outputs(
    proto: onnx.ModelProto, images: np.ndarray, level: str, as_written: bool
) -> None:
    """The stored form, the expanded one, and the one with the float weights themselves, bit for bit."""
    small = insert_qdq(proto, minmax_ranges(proto, images))
    before = small.SerializeToString()
    expanded = expand_int8_weights(small)
    assert small.SerializeToString() == before
    onnx.checker.check_model(expanded, full_check=True)
    float_weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    original = onnx.ModelProto()
    original.CopyFrom(expanded)
    for node in original.graph.node:
        if node.name.endswith("_weight_QuantizeLinear"):
            weight = float_weights[node.name.replace("_weight_QuantizeLinear", ".weight")]
            assert numpy_helper.to_array(weight).dtype == np.float32
            original.graph.initializer.append(weight)
            node.input[0] = weight.name
    outputs = [run_at(one, images, level, as_written=as_written) for one in (small, expanded, original)]
    assert np.array_equal(outputs[0], outputs[1])
    assert np.array_equal(outputs[0], outputs[2])


def test_expanding_changes_weights_alone_and_once(proto: onnx.ModelProto, images: np.ndarray) -> None:
    small = insert_qdq(proto, minmax_ranges(proto, images))
    expanded = expand_int8_weights(small)
    added = [node for node in expanded.graph.node if node.name not in {one.name for one in small.graph.node}]
    assert sorted(node.name for node in added) == sorted(
        f"{name}_weight_QuantizeLinear" for name in plan_qdq(proto).layers
    )
    assert {node.op_type for node in added} == {"QuantizeLinear"}
    assert all(
        t.data_type != TensorProto.INT8 or not numpy_helper.to_array(t).any() for t in expanded.graph.initializer
    )
    assert expand_int8_weights(expanded) == expanded
    assert expand_int8_weights(proto) == proto


@pytest.mark.parametrize("zero_point", ["of each channel", "one", "none"])
def test_expanding_other_exporters_weights(zero_point: str) -> None:
    """Names that the rewriting itself might choose, scales by tensor and by channel, zero points other than 0."""
    random = np.random.default_rng(0)
    shape = () if zero_point == "one" else (4,)
    values = {
        "w_quantized": random.integers(-128, 128, (4, 3, 1, 1), dtype=np.int8),
        "w_scale": random.uniform(0.01, 0.1, shape).astype(np.float32),
        "w_zero_point": random.integers(-5, 5, shape, dtype=np.int8),
    }
    inputs = list(values)[: 2 if zero_point == "none" else 3]
    attributes = {} if zero_point == "one" else {"axis": 0}
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["steps"], "quantize"),
        helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["rounded"], "dequantize"),
        # INT8 passes through: the convolution still runs in INT8.
        helper.make_node("MaxPool", ["rounded"], ["pooled"], "pool", kernel_shape=[1, 1]),
        helper.make_node("DequantizeLinear", inputs, ["w"], "w_DequantizeLinear", **attributes),
        helper.make_node("Conv", ["pooled", "w"], ["output0"], "conv"),
    ]
    sides = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 4, 4])]
    outputs = [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 4, 4, 4])]
    values |= {"scale": np.float32(1 / 127), "zero": np.int8(0)}
    constants = [numpy_helper.from_array(np.asarray(values[name]), name) for name in (*inputs, "scale", "zero")]
    graph = helper.make_graph(nodes, "foreign", sides, outputs, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    expanded = expand_int8_weights(proto)
    onnx.checker.check_model(expanded, full_check=True)
    assert [node.name for node in expanded.graph.node if node.op_type == "QuantizeLinear"] == [
        "quantize",
        "w_QuantizeLinear",
    ]
    images = random.random((1, 3, 4, 4), np.float32)
    assert np.array_equal(run(expanded, images)[0], run(proto, images)[0])


def test_a_weight_of_two_layers_is_stored_once(images: np.ndarray) -> None:
    weight = numpy_helper.from_array(np.random.default_rng(3).normal(size=(3, 3, 1, 1)).astype(np.float32), "weight")
    value = helper.make_node("Constant", [], ["constant"], "constant", value=weight)
    nodes = [
        value,
        helper.make_node("Conv", ["images", "weight"], ["first"], "first"),
        helper.make_node("Conv", ["first", "weight"], ["second"], "second"),
        helper.make_node("Conv", ["second", "constant"], ["third"], "third"),
    ]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3, 32, 32]) for name in ("images", "third")]
    graph = helper.make_graph(nodes, "tied", sides[:1], sides[1:], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    small = insert_qdq(proto, dict.fromkeys(quantizable_tensors(proto), (-2.0, 2.0)), protect=False)
    onnx.checker.check_model(small, full_check=True)
    stored = [t.name for t in small.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4]
    # The weight of a Constant node is another one, and that node is gone.
    assert stored == ["first_weight_q", "third_weight_q"]
    assert all(node.op_type != "Constant" for node in small.graph.node)
    expanded = expand_int8_weights(small)
    assert sum(len(t.dims) == 4 for t in expanded.graph.initializer) == 2
    assert np.array_equal(run(expanded, images)[0], run(small, images)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_raises(proto: onnx.ModelProto, images: np.ndarray, value: float) -> None:
    ranges = minmax_ranges(proto, images)
    for tensor in proto.graph.initializer:
        if tensor.name == "classes.weight":
            weight = numpy_helper.to_array(tensor).copy()
            weight[1, 2] = value
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    with raises(CalibrationError, "weight-not-finite", node="classes"):
        insert_qdq(proto, ranges)


def test_a_large_output_layer_computes_in_float_with_int8_weights(tmp_path: Path) -> None:
    """The untrained classifier's last layer holds a sixth of its weights; that of yolo11n-cls with ten classes 1 %."""
    model = untrained("classify")
    graph = trace(model)
    images = np.random.default_rng(0).random((1, 3, *model.imgsz), np.float32)
    ranges = dict.fromkeys(quantizable_tensors(graph), (-3.0, 3.0))
    result = insert_qdq(graph, ranges)
    index = GraphIndex(result)
    (layer,) = (node for node in result.graph.node if node.op_type == "Gemm")
    dequantize = index.producer[layer.input[1]]
    assert dequantize.op_type == "DequantizeLinear"
    assert index.array(dequantize.input[0]).dtype == np.int8
    assert index.producer[layer.input[0]].op_type != "DequantizeLinear"
    expanded = expand_int8_weights(result)
    again = GraphIndex(expanded)
    assert again.array(again.nodes[layer.name].input[1]).dtype == np.float32
    np.testing.assert_array_equal(run(expanded, images), run(result, images))
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        onnx.save(result, tmp_path / "a.onnx")
        built = tk.export(
            tmp_path / "a.onnx", int8=True, backend="tensorrt_rtx", device="sm89", output=tmp_path / "a.engine"
        )
        assert built.precision == "int8"


@pytest.mark.parametrize(("side", "keep"), [(1, []), (3, []), (3, ["proj"])])
def test_attention_that_holds_much_of_the_file_has_int8_weights(
    proto: onnx.ModelProto, images: np.ndarray, side: int, keep: list[str]
) -> None:
    """As in YOLO12: 13 % of this graph's weights with 3 x 3 kernels, 2 % with 1 x 1, as in other YOLOs."""
    weight = np.random.default_rng(0).normal(0, 0.1, (8, 8, side, side)).astype(np.float32)
    (node,) = (node for node in proto.graph.node if node.name == "proj")
    (stored,) = (tensor for tensor in proto.graph.initializer if tensor.name == node.input[1])
    stored.CopyFrom(numpy_helper.from_array(weight, stored.name))
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(key, value) for key, value in (("pads", [side // 2] * 4), ("group", 1)))
    placement = plan_qdq(proto, keep)
    assert placement.excluded["proj"] == ("keep" if keep else "attention")
    result = insert_qdq(proto, minmax_ranges(proto, images), keep)
    onnx.checker.check_model(result, full_check=True)
    index = GraphIndex(result)
    layer = index.nodes["proj"]
    assert layer.input[0] == "square", "activations stay float"
    if side == 1 or keep:
        assert np.array_equal(index.array(layer.input[1]), weight)
        return
    dequantize = index.producer[layer.input[1]]
    integers, scales = (index.array(name) for name in dequantize.input[:2])
    assert integers.dtype == np.int8
    assert np.abs(integers * scales.reshape(-1, 1, 1, 1) - weight).max() <= scales.max() * 0.5001
    expanded = GraphIndex(expand_int8_weights(result))
    assert np.array_equal(expanded.array(expanded.nodes["proj"].input[1]), integers * scales.reshape(-1, 1, 1, 1))
    assert all(np.array_equal(a, b) for a, b in zip(run(expanded.proto, images), run(result, images), strict=True))
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        settings = BuildSettings(precision="int8", imgsz=(32, 32), batch=2, dynamic=True, device="sm89")
        assert backends.build(result, settings, backend="tensorrt_rtx").plan


def test_a_small_output_layer_keeps_float_weights() -> None:
    graph = trace(load_network("yolo11n-cls", 32))
    result = insert_qdq(graph, dict.fromkeys(quantizable_tensors(graph), (-3.0, 3.0)))
    index = GraphIndex(result)
    (layer,) = (node for node in result.graph.node if node.op_type == "Gemm")
    assert index.array(layer.input[1]).dtype == np.float32

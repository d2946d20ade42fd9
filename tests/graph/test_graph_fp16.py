from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import onnx
import pytest
import tiny_graphs
from detector_graph import run
from onnx import TensorProto, helper, numpy_helper

import trtkit as tk
from trtkit.errors import RecipeError
from trtkit.graph.fp16 import (
    convert_qdq_to_fp16,
    convert_to_fp16,
    convert_to_fp32,
    emulate_fp16,
    has_fp16,
    match_node_names,
)
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.graph.torch_export import trace


def types(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def test_inputs_outputs_and_decoding_stay_in_fp32(proto: onnx.ModelProto) -> None:
    fp16 = convert_to_fp16(proto)
    onnx.checker.check_model(fp16, full_check=True)
    elem_types = types(fp16)
    assert elem_types["images"] == elem_types["output0"] == TensorProto.FLOAT
    assert elem_types["pixels"] == elem_types["probabilities"] == elem_types["dfl"] == TensorProto.FLOAT
    assert (
        elem_types["stem"]
        == elem_types["residual"]
        == elem_types["attention"]
        == elem_types["sides"]
        == TensorProto.FLOAT16
    )


def test_fp16_agrees_with_fp32_and_does_not_modify_the_original(proto: onnx.ModelProto, images: np.ndarray) -> None:
    before = proto.SerializeToString()
    fp32, fp16 = run(proto, images)[0], run(convert_to_fp16(proto), images)[0]
    assert proto.SerializeToString() == before
    assert 0 < np.abs(fp32 - fp16).max() < 0.02


def test_keep_leaves_a_layer_in_fp32(proto: onnx.ModelProto) -> None:
    kept = convert_to_fp16(proto, ["wid*"])
    assert types(kept)["wide"] == TensorProto.FLOAT
    assert types(convert_to_fp16(proto))["wide"] == TensorProto.FLOAT16
    onnx.checker.check_model(kept, full_check=True)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("a/b", {"a/b"}), ("a/*", {"a/b", "a/[c]"}), ("a/?", {"a/b"}), ("a/[b]", {"a/b"}), ("a/[[]c]", {"a/[c]"})],
)
def test_plain_names_and_patterns_match_as_fnmatch_has_it(pattern: str, expected: set[str]) -> None:
    names = ["a/b", "a/[c]", "A/B"]
    assert match_node_names(names, [pattern]) == expected == {name for name in names if fnmatchcase(name, pattern)}


@pytest.mark.parametrize("pattern", ["a", "A/b", "a/[c]", "*z"])
def test_keep_raises_for_a_name_that_only_looks_like_a_match(pattern: str) -> None:
    with pytest.raises(RecipeError) as error:
        match_node_names(["a/b", "a/[c]"], ["a/*", pattern])
    assert (error.value.code, error.value.fields["pattern"]) == ("keep-no-match", pattern)


def test_keep_that_matches_nothing_raises(proto: onnx.ModelProto) -> None:
    with pytest.raises(RecipeError) as error:
        convert_to_fp16(proto, ["/model.99/*"])
    assert error.value.code == "keep-no-match"
    assert error.value.fields["pattern"] == "/model.99/*"


def test_a_weight_beyond_fp16_stays_in_fp32(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name == "wide.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[0, 0] = 1e5
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    fp16 = convert_to_fp16(proto)
    assert types(fp16)["wide"] == TensorProto.FLOAT
    weights = {t.name: numpy_helper.to_array(t) for t in fp16.graph.initializer}
    assert weights["wide.weight"].max() == 1e5
    assert all(np.isfinite(values).all() for values in weights.values())


def test_qdq_in_fp16_has_fp16_scales_and_the_same_integers(proto: onnx.ModelProto, images: np.ndarray) -> None:
    placement = plan_qdq(proto)
    qdq = insert_qdq(proto, dict.fromkeys(placement.tensors, (-1.0, 2.0)))
    typed = convert_qdq_to_fp16(qdq)
    onnx.checker.check_model(typed, full_check=True)
    elem_types = types(typed)
    assert elem_types["residual_dq"] == TensorProto.FLOAT16
    assert elem_types["residual_q"] == TensorProto.INT8
    assert elem_types["output0"] == TensorProto.FLOAT
    stored = {t.name: numpy_helper.to_array(t) for t in qdq.graph.initializer if t.data_type == TensorProto.INT8}
    kept = {t.name: numpy_helper.to_array(t) for t in typed.graph.initializer if t.data_type == TensorProto.INT8}
    assert set(stored) == set(kept)
    assert all(np.array_equal(stored[name], kept[name]) for name in stored)
    # FP16 between Q/DQ rounds a few values to the next integer, which moves a box side by a tenth of a pixel.
    difference = np.abs(run(typed, images)[0] - run(qdq, images)[0])
    assert np.median(difference) < 0.01
    assert difference.max() < 0.2


def test_scales_of_nearly_dead_channels_stay_positive_in_fp16(proto: onnx.ModelProto) -> None:
    """TensorRT refuses a scale of 0, and FP16 has nothing between it and 6e-8."""
    weight = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values[0] = np.sign(values[0]) * 1e-9
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    qdq = insert_qdq(proto, dict.fromkeys(plan_qdq(proto).tensors, (-1e-9, 1e-9)))
    scales = {
        graph: [
            numpy_helper.to_array(tensor)
            for node in graph_proto.graph.node
            if node.op_type in ("QuantizeLinear", "DequantizeLinear")
            for tensor in graph_proto.graph.initializer
            if tensor.name == node.input[1]
        ]
        for graph, graph_proto in (("fp32", qdq), ("fp16", convert_qdq_to_fp16(qdq)))
    }
    assert min(scale.min() for scale in scales["fp32"]) < 1e-8
    assert {scale.dtype for scale in scales["fp16"]} == {np.dtype(np.float16)}
    assert all((scale > 0).all() for scale in scales["fp16"])


@pytest.mark.parametrize("input_type", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_an_fp16_source_becomes_fp32_with_the_same_weights(input_type: int) -> None:
    source = tiny_graphs.detector("fp16")
    if input_type == TensorProto.FLOAT16:
        # As Ultralytics writes it: input and output are FP16, and no cast is left.
        casts = {node.output[0]: node.input[0] for node in source.graph.node if node.op_type == "Cast"}
        nodes = [node for node in source.graph.node if node.op_type != "Cast"]
        for node in nodes:
            node.input[:] = [casts.get(name, name) for name in node.input]
        del source.graph.node[:]
        source.graph.node.extend(nodes)
        for value in (*source.graph.input, *source.graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        reach = next(tensor for tensor in source.graph.initializer if tensor.name == "reach")
        reach.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(reach).astype(np.float16), "reach"))
    onnx.checker.check_model(source, full_check=True)
    result = convert_to_fp32(source)
    onnx.checker.check_model(result, full_check=True)
    assert not has_fp16(result)
    assert has_fp16(source)
    assert "Cast" not in {node.op_type for node in result.graph.node} or input_type == TensorProto.FLOAT
    originals = {tensor.name: numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
    for tensor in result.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), originals[tensor.name])
    images = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    kind = np.float16 if input_type == TensorProto.FLOAT16 else np.float32
    # ONNX Runtime's CPU computes FP16 graphs in FP32, rounded between nodes.
    np.testing.assert_allclose(run(result, images)[0], run(source, images.astype(kind))[0], rtol=2e-2, atol=2e-2)


def test_an_fp16_source_is_quantized_like_its_fp32_form() -> None:
    source = tiny_graphs.detector("fp16")
    graph = trace(tk.load(source))
    assert not has_fp16(graph)
    assert plan_qdq(graph).layers == ("stem", "head")
    calibration = tk.calibrate(tk.load(source), tk.demo.data_path(), calibration_images=2, imgsz=32)
    with_qdq = insert_qdq(graph, calibration.ranges)
    assert sum(node.op_type == "QuantizeLinear" for node in with_qdq.graph.node) == 2
    assert sum(node.op_type == "DequantizeLinear" for node in with_qdq.graph.node) == 4


def test_a_graph_without_fp16_is_returned_as_it_is(proto: onnx.ModelProto) -> None:
    assert convert_to_fp32(proto) is proto


def chain(operators: list[onnx.NodeProto], constants: dict[str, np.ndarray], kind: int, last: int) -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, type_, [1, 4]) for name, type_ in (("images", kind), ("output0", last))
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(operators, "chain", values[:1], values[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_an_infinite_constant_is_infinite_in_fp16_too() -> None:
    """Such as the mask of an attention: its node computes in FP16 like the others."""
    nodes = [
        helper.make_node("MatMul", ["images", "weight"], ["product"], "product"),
        helper.make_node("Add", ["product", "mask"], ["masked"], "masked"),
        helper.make_node("MatMul", ["masked", "weight"], ["output0"], "last"),
    ]
    mask = np.array([0, -np.inf, 0, 0], np.float32)
    proto = chain(nodes, {"weight": np.eye(4, dtype=np.float32), "mask": mask}, TensorProto.FLOAT, TensorProto.FLOAT)
    assert types(convert_to_fp16(proto))["masked"] == TensorProto.FLOAT16


def test_a_cast_that_computes_an_output_stays_when_an_fp16_source_becomes_fp32() -> None:
    nodes = [
        helper.make_node("Relu", ["images"], ["half"], "relu"),
        helper.make_node("Cast", ["half"], ["output0"], "cast", to=TensorProto.FLOAT),
    ]
    result = convert_to_fp32(chain(nodes, {}, TensorProto.FLOAT16, TensorProto.FLOAT))
    onnx.checker.check_model(result, full_check=True)
    images = np.array([[-1, 0, 1, 2]], np.float32)
    np.testing.assert_array_equal(run(result, images)[0], [[0, 0, 1, 2]])


def test_emulation_rounds_sums() -> None:
    nodes = [helper.make_node("Add", ["images", "one"], ["output0"], "sum")]
    proto = chain(nodes, {"one": np.ones(4, np.float16)}, TensorProto.FLOAT16, TensorProto.FLOAT16)
    images = np.array([[1, 2048, 2050, 60000]], np.float32)
    np.testing.assert_array_equal(run(emulate_fp16(proto), images)[0], [[2, 2048, 2052, 60000]])

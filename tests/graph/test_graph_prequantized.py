"""ONNX files that already hold Q/DQ: taken as they are, and compared with what TensorRT builds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_graphs
from detector_graph import run
from onnx import TensorProto, helper, numpy_helper
from raising import raises

import trtkit as tk
from trtkit.backends.capabilities import probe
from trtkit.calibration.collector import MinMaxCollector
from trtkit.errors import BuildError, CalibrationError, RecipeError
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.onnx_file import read_trtkit_metadata
from trtkit.graph.prequantized import check_qdq, is_quantized, prepare_quantized, remove_qdq
from trtkit.graph.qdq import insert_qdq


@pytest.fixture
def quantized(proto: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
    collector = MinMaxCollector(proto)
    collector.add(images)
    return insert_qdq(proto, collector.ranges())


def kinds(proto: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    return {finding.kind: finding.nodes for finding in check_qdq(proto)}


def replace_constant(proto: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def add_pair(proto: onnx.ModelProto, tensor: str, node: str) -> None:
    """A Q/DQ pair between a tensor and the node that reads it."""
    scale, zero = f"{tensor}/s", f"{tensor}/z"
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0.05, np.float32), scale))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), zero))
    nodes = []
    for reader in proto.graph.node:
        if reader.name == node:
            nodes.append(helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"{tensor}/q"], f"{tensor}/Q"))
            nodes.append(
                helper.make_node("DequantizeLinear", [f"{tensor}/q", scale, zero], [f"{tensor}/d"], f"{tensor}/D")
            )
            reader.input[:] = [f"{tensor}/d" if name == tensor else name for name in reader.input]
        nodes.append(reader)
    copied = [onnx.NodeProto.FromString(one.SerializeToString()) for one in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copied)


def test_the_float_graph_under_qdq(proto: onnx.ModelProto, quantized: onnx.ModelProto, images: np.ndarray) -> None:
    under = remove_qdq(quantized)
    onnx.checker.check_model(under, full_check=True)
    assert is_quantized(quantized)
    assert not is_quantized(under)
    assert not is_quantized(None)
    assert [node.name for node in under.graph.node] == [node.name for node in proto.graph.node]
    # Weights are stored as INT8, so their rounding stays.
    np.testing.assert_allclose(run(under, images)[0], run(proto, images)[0], atol=0.05)
    assert GraphIndex(under).decode_nodes() == GraphIndex(proto).decode_nodes()


def test_integer_weights_become_the_numbers_they_stand_for() -> None:
    quantized = tiny_graphs.detector("int8")
    under = remove_qdq(quantized)
    onnx.checker.check_model(under, full_check=True)
    index = GraphIndex(under)
    assert [node.name for node in index.weighted] == ["stem", "head"]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    expected = constants["stem.weight"] * constants["stem.scale"][:, None, None, None]
    np.testing.assert_allclose(index.array(index.nodes["stem"].input[1]), expected, rtol=1e-6)


def test_our_own_placement_suits_tensorrt(quantized: onnx.ModelProto) -> None:
    assert check_qdq(quantized) == ()


def test_layers_that_tensorrt_86_does_not_build_are_named(proto: onnx.ModelProto, images: np.ndarray) -> None:
    collector = MinMaxCollector(proto)
    collector.add(images)
    everywhere = insert_qdq(proto, collector.ranges(), protect=False)
    assert kinds(everywhere) == {"dfl": ("dfl",), "attention": ("proj",)}
    assert not any(finding.refused for finding in check_qdq(everywhere))


def test_a_pair_between_a_layer_and_its_activation_is_named(quantized: onnx.ModelProto) -> None:
    add_pair(quantized, "neck", "neck/sigmoid")
    assert kinds(quantized) == {"before_activation": ("neck",)}


@pytest.mark.parametrize(("zero", "kind"), [(np.int8(3), "zero_point"), (np.uint8(100), "uint8")])
def test_asymmetric_quantization_is_named(quantized: onnx.ModelProto, zero: np.generic, kind: str) -> None:
    replace_constant(quantized, "trtkit_zero_point", np.array(zero))
    (finding,) = check_qdq(quantized)
    assert (finding.kind, finding.refused) == (kind, True)
    assert {quantized.graph.node[0].name, quantized.graph.node[1].name} <= set(finding.nodes)


def test_operators_on_integers_are_named() -> None:
    proto = tiny_graphs.detector()
    proto.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["images"], ["q", "s", "z"], "dynamic"))
    assert is_quantized(proto)
    assert kinds(proto) == {"integer_operators": ("dynamic",)}


def test_int32_biases_become_float() -> None:
    proto = tiny_graphs.detector("int8")
    before = run(proto, np.full((1, 3, 32, 32), 0.5, np.float32))[0]
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "stem.bias")
    values = numpy_helper.to_array(bias)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(2.0**-20, np.float32), "bias_scale"))
    bias.CopyFrom(numpy_helper.from_array(np.rint(values * 2**20).astype(np.int32), "stem.integers"))
    proto.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["stem.integers", "bias_scale"], ["stem.bias"], "bias_DQ")
    )
    onnx.checker.check_model(proto, full_check=True)
    prepared = prepare_quantized(proto)
    onnx.checker.check_model(prepared, full_check=True)
    assert "bias_DQ" not in [node.name for node in prepared.graph.node]
    folded = next(tensor for tensor in prepared.graph.initializer if tensor.name == "stem.bias")
    assert folded.data_type == TensorProto.FLOAT
    np.testing.assert_allclose(numpy_helper.to_array(folded), values, atol=1e-6)
    np.testing.assert_allclose(run(prepared, np.full((1, 3, 32, 32), 0.5, np.float32))[0], before, atol=0.2)


# What other tools write, as the smallest graphs of the same structure.


def read_constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def quantize_a_factor(proto: onnx.ModelProto) -> None:
    """onnxruntime's quantize_static on all operators: INT8 constants that no layer reads as its weight."""
    values = np.rint(read_constants(proto)["reach"]).astype(np.int8)
    factor = next(tensor for tensor in proto.graph.initializer if tensor.name == "reach")
    factor.CopyFrom(numpy_helper.from_array(values, "reach_quantized"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "reach_scale"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "reach_zero"))
    inputs = ["reach_quantized", "reach_scale", "reach_zero"]
    proto.graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, ["reach"], "reach_DQ"))


def store_as_uint8(proto: onnx.ModelProto, tensor: str, zero: int) -> None:
    """NNCF's form of a range that begins at 0 (zero point 0), onnxruntime's of a symmetric one (zero point 128)."""
    replace_constant(proto, f"{tensor}_zero", np.array(zero, np.uint8))


def test_int8_constants_other_than_weights_become_float(images: np.ndarray) -> None:
    proto = tiny_graphs.detector("int8")
    quantize_a_factor(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert check_qdq(proto) == ()
    before = run(proto, images[:1])[0]
    weights = {name for name, value in read_constants(proto).items() if value.dtype == np.int8 and value.ndim == 4}
    prepared = prepare_quantized(proto)
    onnx.checker.check_model(prepared, full_check=True)
    assert "reach_DQ" not in [node.name for node in prepared.graph.node]
    constants = read_constants(prepared)
    assert constants["reach"].dtype == np.float32
    assert {name for name, value in constants.items() if value.dtype == np.int8 and value.ndim == 4} == weights != set()
    np.testing.assert_array_equal(run(prepared, images[:1])[0], before)


def test_a_weight_that_is_transposed_stays_int8(images: np.ndarray) -> None:
    proto = tiny_graphs.detector("int8")
    dequantize = next(node for node in proto.graph.node if node.name == "stem.weight_DQ")
    weight = dequantize.output[0]
    replace_constant(proto, "stem.weight", read_constants(proto)["stem.weight"].transpose(0, 2, 3, 1))
    dequantize.output[0] = "channels_last"
    position = list(proto.graph.node).index(dequantize) + 1
    proto.graph.node.insert(
        position, helper.make_node("Transpose", ["channels_last"], [weight], "move", perm=[0, 3, 1, 2])
    )
    before = run(proto, images[:1])[0]
    prepared = prepare_quantized(proto)
    assert read_constants(prepared)["stem.weight"].dtype == np.int8
    np.testing.assert_array_equal(run(prepared, images[:1])[0], before)


def test_uint8_around_128_becomes_int8_with_the_same_values(images: np.ndarray) -> None:
    proto = tiny_graphs.detector("int8")
    expected = run(proto, images[:1])[0]
    store_as_uint8(proto, "images", 128)
    weight = "stem.weight"
    values = read_constants(proto)
    replace_constant(proto, weight, (values[weight].astype(np.int16) + 128).astype(np.uint8))
    replace_constant(proto, "stem.zero", np.full_like(values["stem.zero"], 128, np.uint8))
    onnx.checker.check_model(proto, full_check=True)
    assert check_qdq(proto) == ()
    prepared = prepare_quantized(proto)
    assert TensorProto.UINT8 not in {tensor.data_type for tensor in prepared.graph.initializer}
    np.testing.assert_array_equal(run(prepared, images[:1])[0], expected)


@pytest.mark.parametrize("zero_point_of_both", [True, False])
def test_uint8_from_0_becomes_int8_with_the_same_range(images: np.ndarray, zero_point_of_both: bool) -> None:
    proto = tiny_graphs.detector("int8")
    expected = run(proto, images[:1])[0]
    # The same range, 0 to 1, in 255 steps.
    store_as_uint8(proto, "images", 0)
    replace_constant(proto, "images_scale", np.array(1 / 255, np.float32))
    if not zero_point_of_both:
        del next(node for node in proto.graph.node if node.name == "images_DQ").input[2]
    onnx.checker.check_model(proto, full_check=True)
    (finding,) = check_qdq(proto)
    assert (finding.kind, finding.refused, finding.nodes) == ("unsigned", False, ("images_Q", "images_DQ"))
    prepared = prepare_quantized(proto)
    onnx.checker.check_model(prepared, full_check=True)
    assert read_constants(prepared)["images_scale/int8"] == pytest.approx(1 / 127)
    np.testing.assert_allclose(run(prepared, images[:1])[0], expected, rtol=1e-5)
    assert check_qdq(prepared) == ()


def read_kernel_shapes(proto: onnx.ModelProto) -> dict[str, list[int]]:
    return {
        node.name: list(item.ints)
        for node in proto.graph.node
        for item in node.attribute
        if item.name == "kernel_shape"
    }


def test_convolutions_behind_qdq_name_their_kernels_shape(
    proto: onnx.ModelProto, quantized: onnx.ModelProto, images: np.ndarray
) -> None:
    shapes = read_kernel_shapes(quantized)
    index = GraphIndex(proto)
    convs = {node.name for node in index.weighted if node.op_type == "Conv"} & set(shapes)
    assert convs
    assert {name: shapes[name] for name in convs} == {
        name: list(index.constants[index.nodes[name].input[1]].dims[2:]) for name in convs
    }
    for graph in (proto, quantized):
        for node in graph.graph.node:
            kept = [item for item in node.attribute if node.op_type != "Conv" or item.name != "kernel_shape"]
            del node.attribute[:]
            node.attribute.extend(kept)
    collector = MinMaxCollector(proto)
    collector.add(images)
    for graph in (insert_qdq(proto, collector.ranges()), prepare_quantized(quantized)):
        assert shapes.items() >= read_kernel_shapes(graph).items()
        behind = {node.name for node in graph.graph.node if node.op_type == "Conv" and node.input[1].endswith("_dq")}
        assert behind
        assert behind <= set(read_kernel_shapes(graph))


def test_qdq_in_decoding_is_named(quantized: onnx.ModelProto) -> None:
    """Of boxes and scores in one tensor, whose scale is that of the boxes, all scores become 0."""
    index = GraphIndex(quantized)
    output = quantized.graph.output[0].name
    producer = index.producer[output]
    reader = helper.make_node("Identity", ["decoded"], [output], "identity")
    producer.output[0] = "decoded"
    quantized.graph.node.append(reader)
    add_pair(quantized, "decoded", "identity")
    (finding,) = check_qdq(quantized)
    assert (finding.kind, finding.refused, finding.nodes) == ("decode", False, (producer.name,))


def test_a_quantizelinear_without_zero_point_writes_uint8() -> None:
    proto = tiny_graphs.detector("int8")
    node = next(node for node in proto.graph.node if node.name == "images_Q")
    del node.input[2]
    assert kinds(proto) == {"uint8": ("images_Q",)}


# export and calibrate.


def described(proto: onnx.ModelProto) -> tk.Model:
    return tk.load(proto, task="detect", names=["a", "b", "c"])


def test_a_quantized_file_is_exported_as_it_is_without_data(
    quantized: onnx.ModelProto, images: np.ndarray, tmp_path: Path
) -> None:
    model = described(quantized)
    artifact = tk.export(model, format="onnx", int8=True, output=tmp_path / "out.onnx")
    assert (artifact.precision, artifact.calibration_hash, artifact.recipe.dynamic) == ("int8", None, False)
    written = onnx.load(artifact.path)
    constants = {tensor.name: tensor.SerializeToString() for tensor in written.graph.initializer}
    assert {tensor.name: tensor.SerializeToString() for tensor in quantized.graph.initializer} == constants
    assert [node.op_type for node in written.graph.node] == [node.op_type for node in quantized.graph.node]
    np.testing.assert_array_equal(run(written, images)[0], run(quantized, images)[0])
    metadata = read_trtkit_metadata(written)
    assert metadata["precision"] == "int8"
    assert metadata["fp32"] == sorted(GraphIndex(remove_qdq(quantized)).decode_nodes())
    with_nms = onnx.load(tk.export(model, format="onnx", int8=True, nms=True, output=tmp_path / "nms.onnx").path)
    assert run(with_nms, images)[0].shape == (2, 300, 6)
    assert set(metadata["fp32"]) < set(read_trtkit_metadata(with_nms)["fp32"])


def test_placement_that_does_not_suit_tensorrt_warns_and_names_nodes(
    quantized: onnx.ModelProto, tmp_path: Path
) -> None:
    add_pair(quantized, "neck", "neck/sigmoid")
    with pytest.warns(UserWarning, match=r"activation.*\(neck\)"):
        tk.export(described(quantized), format="onnx", int8=True, output=tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({}, "model-already-quantized"),
        ({"half": True}, "model-already-quantized"),
        ({"int8": True, "keep": ["stem"]}, "quantized-model-settings"),
        ({"int8": True, "data": tk.demo.data_path()}, "quantized-model-settings"),
    ],
)
def test_settings_that_a_quantized_file_can_t_take(settings: dict[str, object], code: str, tmp_path: Path) -> None:
    with raises(RecipeError, code):
        tk.export(tk.load(tiny_graphs.detector("int8")), format="onnx", output=tmp_path / "a.onnx", **settings)
    assert not list(tmp_path.iterdir())


def test_a_quantized_file_is_not_calibrated() -> None:
    with raises(CalibrationError, "calibration-model-quantized"):
        tk.calibrate(tk.load(tiny_graphs.detector("int8")), tk.demo.data_path())


@pytest.mark.skipif(not probe("tensorrt_rtx").present, reason="TensorRT-RTX is not installed")
def test_tensorrt_rtx_builds_a_quantized_file_and_refuses_an_asymmetric_one(tmp_path: Path) -> None:
    target = {"format": "engine", "int8": True, "backend": "tensorrt_rtx", "device": "sm89"}
    built = tk.export(tk.load(tiny_graphs.detector("int8")), output=tmp_path / "a.engine", **target)
    assert built.passport is not None
    assert (built.precision, built.passport.calibration_hash) == ("int8", None)
    others = tiny_graphs.detector("int8")
    quantize_a_factor(others)
    store_as_uint8(others, "images", 0)
    with pytest.warns(UserWarning, match=r"UINT8.*\(images_Q, images_DQ\)"):
        tk.export(tk.load(others), output=tmp_path / "a.engine", overwrite=True, **target)
    asymmetric = tiny_graphs.detector("int8")
    replace_constant(asymmetric, "images_zero", np.array(4, np.int8))
    with raises(BuildError, "qdq-not-buildable", kinds=["zero_point"], nodes=["images_Q", "images_DQ"]):
        tk.export(tk.load(asymmetric), output=tmp_path / "b.engine", **target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.engine"]


def test_an_onnx_source_keeps_its_own_shape(tmp_path: Path) -> None:
    for dynamic in (False, True):
        model = tk.load(tiny_graphs.detector(dynamic=dynamic))
        artifact = tk.export(model, format="onnx", output=tmp_path / f"{dynamic}.onnx")
        assert artifact.recipe.is_dynamic == dynamic


@pytest.mark.parametrize("block", [4, 3])
def test_weights_with_a_scale_for_each_block(block: int) -> None:
    """As ModelOpt writes them; the last block may be shorter."""
    random = np.random.default_rng(0)
    integers = random.integers(-127, 128, (8, 5)).astype(np.int8)
    scales = random.uniform(0.01, 0.1, (-(-8 // block), 5)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["w_dq"], "dq", axis=0, block_size=block),
        helper.make_node("MatMul", ["images", "w_dq"], ["output0"], "layer"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, size])
        for name, size in (("images", 8), ("output0", 5))
    ]
    constants = [numpy_helper.from_array(integers, "w"), numpy_helper.from_array(scales, "s")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    weight = numpy_helper.to_array(remove_qdq(proto).graph.initializer[0])
    np.testing.assert_array_equal(weight, integers * np.repeat(scales, block, 0)[:8])


def test_uint8_that_a_node_names_becomes_int8(images: np.ndarray) -> None:
    """Since operator set 21 QuantizeLinear may name its type beside its zero point."""
    node = helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], "q", output_dtype=TensorProto.UINT8)
    nodes = [
        node,
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], "dq"),
        helper.make_node("Conv", ["dq", "w"], ["output0"], "conv"),
    ]
    constants = {
        "s": np.array(1 / 127, np.float32),
        "z": np.array(128, np.uint8),
        "w": np.ones((2, 3, 1, 1), np.float32),
    }
    values = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 32, 32]),
        helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch", 2, 32, 32]),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    expected = run(proto, images)[0]
    prepared = prepare_quantized(proto)
    onnx.checker.check_model(prepared, full_check=True)
    np.testing.assert_allclose(run(prepared, images)[0], expected, atol=1e-6)

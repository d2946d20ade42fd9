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


@pytest.mark.parametrize(("zero", "kind"), [(np.int8(3), "zero_point"), (np.uint8(128), "uint8")])
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

"""Written ONNX files: every operator set, the checks before a file gets its name, weights beside the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_graphs
from detector_graph import run
from onnx import TensorProto, helper
from raising import raises

import trtkit as tk
from trtkit.calibration.calibrator import find_fp16_overflows
from trtkit.calibration.collector import MinMaxCollector
from trtkit.errors import OnnxError, OutputExistsError
from trtkit.graph import onnx_file
from trtkit.graph.editing import get_opset
from trtkit.graph.fp16 import convert_qdq_to_fp16, convert_to_fp16
from trtkit.graph.nms import add_nms
from trtkit.graph.onnx_file import check_onnx, write_onnx
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.graph.torch_export import trace
from trtkit.progress import Reporter
from trtkit.tuning.corrections import compute_bias_corrections

OPSETS = range(11, 23)


def detector_of_opset(opset: int, precision: str = "fp32") -> onnx.ModelProto:
    proto = tiny_graphs.detector(precision)
    proto.opset_import[0].version = opset
    return proto


@pytest.mark.parametrize("opset", OPSETS)
def test_every_graph_is_valid_in_the_operator_set_of_its_source(opset: int, tmp_path: Path) -> None:
    source = detector_of_opset(opset)
    model = tk.load(source)
    graph = trace(model)
    # Q/DQ has one scale for each channel since 13: older files are raised to it, others keep their own.
    assert get_opset(graph) == max(opset, 13)
    images = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    np.testing.assert_allclose(run(graph, images)[0], run(source, images)[0], atol=1e-5)

    collector = MinMaxCollector(graph)
    collector.add(images)
    quantized = insert_qdq(graph, collector.ranges())
    graphs = {
        "fp32": graph,
        "fp16": convert_to_fp16(graph),
        "int8": quantized,
        "nms": add_nms(graph, model.info, conf=0.1),
        "nms_fp16": convert_to_fp16(add_nms(graph, model.info)),
        "nms_int8": insert_qdq(add_nms(graph, model.info), collector.ranges()),
    }
    for name, proto in graphs.items():
        assert get_opset(onnx.load(write_onnx(proto, tmp_path / f"{name}.onnx"))) == max(opset, 13), name
    typed = onnx.load(write_onnx(convert_qdq_to_fp16(quantized), tmp_path / "typed.onnx"))
    assert get_opset(typed) == max(opset, 19)
    assert len(run(graphs["nms"], images)[0][0]) == 300
    # Measurements add reductions to the graph.
    assert find_fp16_overflows(graph, [images], margin=1e9)
    placement = plan_qdq(graph)
    corrections = compute_bias_corrections(graph, placement, collector.ranges(), [images], 1, Reporter(), threads=1)
    assert set(corrections) == set(placement.layers)


def test_the_nms_of_every_operator_set_selects_the_same_boxes() -> None:
    images = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    rows = []
    for opset in OPSETS:
        model = tk.load(detector_of_opset(opset))
        rows.append(run(add_nms(trace(model), model.info, conf=0.1), images)[0])
    assert (rows[0][0, :, 4] > 0).any()
    for other in rows[1:]:
        np.testing.assert_allclose(other, rows[0], atol=1e-5)


def invalid_graph() -> onnx.ModelProto:
    """A reduction with its axes as an attribute, which operator set 18 no longer has."""
    proto = detector_of_opset(18)
    proto.graph.node.append(helper.make_node("ReduceMax", ["output0"], ["peak"], "peak", axes=[1]))
    proto.graph.output.append(helper.make_tensor_value_info("peak", TensorProto.FLOAT, [1, 256]))
    return proto


def unopenable_graph() -> onnx.ModelProto:
    """A graph that the checker accepts and ONNX Runtime does not: the CPU has no kernel for it."""
    proto = tiny_graphs.detector()
    proto.graph.node.extend(
        [
            helper.make_node("Cast", ["output0"], ["coarse"], "coarse", to=TensorProto.BFLOAT16),
            helper.make_node("Softplus", ["coarse"], ["output1"], "softplus"),
        ]
    )
    proto.opset_import[0].version = 22
    proto.graph.output.append(helper.make_tensor_value_info("output1", TensorProto.BFLOAT16, [1, 7, 256]))
    return proto


@pytest.mark.parametrize(("make", "checker"), [(invalid_graph, "the ONNX checker"), (unopenable_graph, "ONNX Runtime")])
def test_a_graph_that_is_rejected_leaves_nothing(make, checker: str, tmp_path: Path) -> None:
    with raises(OnnxError, "onnx-invalid") as caught:
        write_onnx(make(), tmp_path / "new.onnx")
    assert caught.value.fields["checker"].startswith(checker)
    assert not list(tmp_path.iterdir())
    (tmp_path / "old.onnx").write_bytes(b"old")
    with raises(OnnxError, "onnx-invalid"):
        write_onnx(make(), tmp_path / "old.onnx")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("old.onnx", b"old")]


def test_export_writes_no_invalid_file(tmp_path: Path) -> None:
    with raises(OnnxError, "onnx-invalid"):
        tk.export(tk.load(invalid_graph()), format="onnx", simplify=False, output=tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_with_a_plug_in_is_checked_but_not_opened(tmp_path: Path) -> None:
    assert write_onnx(tiny_graphs.unsupported_op(), tmp_path / "plugin.onnx").stat().st_size > 0


def test_weights_beyond_the_limit_of_protobuf_lie_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "MAX_PROTOBUF", 1)
    proto = tiny_graphs.detector(width=64)
    for _ in range(2):
        write_onnx(proto, tmp_path / "large.onnx")
    data = [path for path in tmp_path.iterdir() if path.suffix == ".data"]
    assert len(data) == 1
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "large.onnx", *data])
    check_onnx(tmp_path / "large.onnx", asked="check")
    assert tk.load(tmp_path / "large.onnx").hash == tk.load(proto).hash
    images = np.zeros((1, 3, 32, 32), np.float32)
    with tk.open(tmp_path / "large.onnx") as runner:
        np.testing.assert_allclose(runner.infer(images)["output0"], run(proto, images)[0], atol=1e-5)
    invalid = invalid_graph()
    with raises(OnnxError, "onnx-invalid"):
        write_onnx(invalid, tmp_path / "other.onnx")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "large.onnx", *data])
    (tmp_path / "large-x-0123456789ab.data").write_bytes(b"another graph's")
    write_onnx(tiny_graphs.detector(width=32), tmp_path / "large.onnx")
    assert not data[0].exists(), "weights that no graph names any more"
    check_onnx(tmp_path / "large.onnx", asked="check")
    assert len(list(tmp_path.iterdir())) == 3
    with raises(OutputExistsError, "output-exists"):
        write_onnx(proto, tmp_path / "large.onnx", overwrite=False)

"""ONNX Runtime as a runner."""

from __future__ import annotations

import dataclasses
import sys
from collections import UserDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny_graphs
from raising import raises

from trtkit import backends
from trtkit.backends import capabilities
from trtkit.backends.ort import OrtRunner, detect_precision
from trtkit.errors import CapabilityError, EngineError, OnnxError, RecipeError, TrtkitError
from trtkit.graph.fp16 import emulate_fp16
from trtkit.graph.onnx_file import update_metadata
from trtkit.models.model import DENSE, DETR_ROWS, END2END_ROWS, NMS_ROWS, OutputFormat

RANDOM = np.random.default_rng(0)


def reference(graph: onnx.ModelProto, feed: np.ndarray) -> np.ndarray:
    """The graph as written: every optimization off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return np.asarray(ort.InferenceSession(graph.SerializeToString(), options).run(None, {"images": feed})[0])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_outputs_equal_the_unoptimized_graph(tmp_path: Path, precision: str) -> None:
    graph = tiny_graphs.detector(precision, batch=2, size=(64, 64), width=32)
    onnx.save(graph, tmp_path / "tiny.onnx")
    feed = RANDOM.random((2, 3, 64, 64), dtype=np.float32)
    with backends.open(tmp_path / "tiny.onnx") as runner:
        actual = runner.infer(feed)
        assert list(actual) == ["output0"]
        assert actual["output0"].dtype == np.float32
        # Q/DQ graphs amplify rounding to whole steps, so theirs must agree exactly; ONNX Runtime alone rounds FP16 at
        # fewer places, which is two steps of FP16 tolerance at most.
        tolerance = {"fp32": 1e-5, "fp16": 2**-9, "int8": 0}[precision]
        np.testing.assert_allclose(actual["output0"], reference(graph, feed), rtol=tolerance, atol=tolerance)
        assert runner.precision == precision
        assert runner.name == f"ONNX Runtime {ort.__version__} CPU"
        assert not runner.engine
        assert runner.hash == "ab" * 32
        assert runner.path == tmp_path / "tiny.onnx"
        assert repr(runner) == f"OrtRunner(ONNX Runtime {ort.__version__} CPU: detect, {precision}, batch 2, 64x64)"


def test_int8_does_not_saturate() -> None:
    """255 * 127 * 2 does not fit the 16 bits in which AVX2's u8 x s8 kernels add."""
    graph = tiny_graphs.detector("int8", size=(32, 32))
    for tensor in graph.graph.initializer:
        if tensor.name in ("stem.weight", "head.weight"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(tensor.dims), 127, np.int8), tensor.name))
    feed = np.ones((1, 3, 32, 32), np.float32)
    with backends.open(graph) as runner:
        assert np.array_equal(runner.infer(feed)["output0"], reference(graph, feed))
        # What keeps these kernels away, should this processor have wider ones.
        options = runner.session.get_session_options()
        assert options.get_session_config_entry("session.disable_quant_qdq") == "1"
        assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED


def test_fp16_rounds_and_overflows_as_in_the_graph() -> None:
    value, half = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT16
    node, shape = onnx.helper.make_node, [1, 3, 4, 4]
    nodes = [
        node("Cast", ["images"], ["a"], to=half),
        node("Mul", ["a", "large"], ["b"]),
        node("Transpose", ["b"], ["c"], perm=[0, 1, 2, 3]),
        node("Mul", ["c", "small"], ["output0"]),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.float16(number).reshape(1), name)
        for name, number in (("large", 60000), ("small", 0.0011))
    ]
    graph = onnx.helper.make_graph(nodes, "g", [value("images", 1, shape)], [value("output0", half, shape)], weights)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    feed = np.ones(shape, np.float32)
    feed[0, 0, 0] = [2, 1.0004, 0.3, -2]
    with np.errstate(over="ignore"):
        expected = feed.astype(np.float16) * np.float16(60000) * np.float16(0.0011)
    assert np.isinf(expected[0, 0, 0, [0, 3]]).all()
    actual = emulate_fp16(proto)
    assert proto.graph.output[0].type.tensor_type.elem_type == half
    assert np.array_equal(reference(actual, feed), expected.astype(np.float32))
    graph_of_fp32 = tiny_graphs.detector()
    assert emulate_fp16(graph_of_fp32) is graph_of_fp32


def test_every_output_of_an_fp16_graph_is_an_fp16_number() -> None:
    graph = tiny_graphs.detector("fp16")
    graph.graph.output.append(onnx.helper.make_tensor_value_info("silu_out", onnx.TensorProto.FLOAT16, [1, 8, 16, 16]))
    with backends.open(graph) as runner:
        actual = runner.infer(RANDOM.random((1, 3, 32, 32), dtype=np.float32))["silu_out"]
    assert actual.dtype == np.float32
    assert np.array_equal(actual, actual.astype(np.float16).astype(np.float32))
    assert len(np.unique(actual)) > 100


def test_batches_of_a_static_graph() -> None:
    graph = tiny_graphs.detector(batch=4)
    feed = RANDOM.random((4, 3, 32, 32), dtype=np.float32)
    with backends.open(graph) as runner:
        assert (runner.batch, runner.dynamic, runner.imgsz) == (4, False, (32, 32))
        whole = runner.infer(feed)["output0"]
        assert np.array_equal(runner.infer(feed[:3])["output0"], whole[:3])
        assert np.array_equal(runner.infer({"images": feed[:1]})["output0"], whole[:1])
        with raises(EngineError, "run-batch-too-large", value=5, limit=4):
            runner.infer(np.zeros((5, 3, 32, 32), np.float32))
        with raises(EngineError, "run-batch-empty"):
            runner.infer(feed[:0])
        assert len(runner.predict(tiny_graphs.images(9))) == 9


def test_an_output_without_a_batch_is_given_as_it_is() -> None:
    graph = tiny_graphs.detector(batch=2)
    graph.graph.node.append(onnx.helper.make_node("ReduceMax", ["output0"], ["highest"], keepdims=0))
    graph.graph.output.append(onnx.helper.make_tensor_value_info("highest", 1, []))
    with backends.open(graph) as runner:
        outputs = runner.infer(np.zeros((1, 3, 32, 32), np.float32))
    assert (outputs["output0"].shape, outputs["highest"].shape) == ((1, 7, 256), ())


def test_a_runner_that_another_process_opens_has_the_same_threads() -> None:
    """Their number may decide the order of sums; where several processes share the cores, none waits actively."""
    runner = OrtRunner(tiny_graphs.detector(), threads=3)
    assert runner.opener is not None
    other = runner.opener()
    assert isinstance(other, OrtRunner)
    for one, spins in ((runner, None), (other, "0")):
        options = one.session.get_session_options()
        assert options.intra_op_num_threads == 3
        if spins is not None:
            assert options.get_session_config_entry("session.intra_op.allow_spinning") == spins


def test_closing_while_a_run_begins() -> None:
    runner = OrtRunner(tiny_graphs.detector())

    class Feeds(UserDict[str, np.ndarray]):
        """Read before the run, while another thread closes the runner."""

        def __getitem__(self, name: str) -> np.ndarray:
            runner.close()
            return super().__getitem__(name)

    feed = np.zeros((1, 3, 32, 32), np.float32)
    assert runner.infer(Feeds(images=feed))["output0"].shape == (1, 7, 256)
    with raises(EngineError, "runner-closed"):
        runner.infer(feed)


def test_a_dynamic_graph_takes_any_batch_and_size() -> None:
    with backends.open(tiny_graphs.detector(dynamic=True)) as runner:
        assert (runner.batch, runner.dynamic) == (None, True)
        for shape in [(1, 3, 32, 32), (9, 3, 64, 32)]:
            assert runner.infer(np.zeros(shape, np.float32))["output0"].shape == (shape[0], 7, shape[2] * shape[3] // 4)


def test_predict_equals_infer_and_postprocess() -> None:
    from trtkit.data import letterbox, to_input
    from trtkit.tasks import PostprocessSettings, get_task

    images = tiny_graphs.images(3)
    with backends.open(tiny_graphs.detector(dynamic=True)) as runner:
        actual = runner.predict(images, conf=0.5, iou=0.6, max_det=7)
        prepared, fits = zip(*(letterbox(image, (32, 32)) for image in images), strict=True)
        outputs = runner.infer(to_input(list(prepared)))
        expected = get_task("detect").postprocess(
            outputs, runner.info, list(fits), PostprocessSettings(conf=0.5, iou=0.6, max_det=7)
        )
    for one, two, image in zip(actual, expected, images, strict=True):
        assert one.shape == image.shape[:2]
        assert np.array_equal(one.boxes, two.boxes)
        assert np.array_equal(one.scores, two.scores)


@pytest.mark.parametrize(
    ("output_format", "passed", "named"),
    [
        (NMS_ROWS, {"conf": 0.1, "iou": 0.5, "max_det": 200}, ["conf=0.1", "iou=0.5", "max_det=200"]),
        (NMS_ROWS, {"conf": 0.1, "iou": 0.6}, ["conf=0.1"]),
        (NMS_ROWS, {"conf": 0.3, "iou": 0.6, "max_det": 50}, []),
        (NMS_ROWS, {}, []),
        (END2END_ROWS, {"conf": 0.01, "iou": 0.5}, ["iou=0.5"]),
        (DETR_ROWS, {"iou": 0.5}, ["iou=0.5"]),
        (DENSE, {"conf": 0.01, "iou": 0.5, "max_det": 900}, []),
    ],
)
def test_thresholds_that_the_graph_has_settled_are_named_once(
    output_format: OutputFormat, passed: dict[str, float], named: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    rows = {NMS_ROWS: {"conf": 0.25, "iou": 0.6, "max_det": 100}, END2END_ROWS: {"max_det": 300}}
    with backends.open(tiny_graphs.detector()) as runner:
        runner.info = dataclasses.replace(
            runner.info, output_format=output_format, row_settings=rows.get(output_format, {})
        )
        for _ in range(2):
            runner._read_settings(**{"conf": 0.25, "iou": 0.7, "max_det": 300} | passed)
    asked = [str(warning.message).split(" was passed")[0] for warning in recwarn]
    assert asked == ([", ".join(named)] if named else [])


def test_mismatches_are_engine_errors() -> None:
    runner = backends.open(tiny_graphs.detector())
    with raises(EngineError, "run-failed", shape=(1, 3, 64, 64)):
        runner.infer(np.zeros((1, 3, 64, 64), np.float32))
    with raises(EngineError, "run-inputs-unknown", names=["wrong"], expected=["images"]):
        runner.infer({"wrong": np.zeros((1, 3, 32, 32), np.float32)})
    runner.close()
    runner.close()
    with raises(EngineError, "runner-closed"):
        runner.infer(np.zeros((1, 3, 32, 32), np.float32))


def test_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities.import_bindings.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with raises(CapabilityError, "backend-import-failed", backend="onnxruntime") as caught:
        backends.open(tiny_graphs.detector())
    assert "pip install onnxruntime" in caught.value.do
    # An empty folder, such as an uninstalled package leaves.
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with raises(CapabilityError, "backend-missing", backend="onnxruntime"):
        backends.open(tiny_graphs.detector())


def test_a_graph_that_onnx_runtime_rejects() -> None:
    with raises(EngineError, "onnx-rejected"):
        backends.open(tiny_graphs.unsupported_op(), task="detect")


def test_a_graph_without_metadata_needs_its_task() -> None:
    graph = tiny_graphs.detector(describe=False)
    with pytest.raises(OnnxError):
        backends.open(graph)
    with backends.open(graph, task="detect") as runner:
        assert len(runner.info.names) == 3
        assert len(runner.hash) == 64


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_detect_precision(precision: str) -> None:
    graph = tiny_graphs.detector(precision)
    assert detect_precision(graph) == precision
    # Without weights and Q/DQ nothing says otherwise.
    del graph.graph.initializer[:], graph.graph.node[:]
    assert detect_precision(graph) == "fp32"


def test_errors_of_open(tmp_path: Path) -> None:
    with pytest.raises(OnnxError):
        backends.open(tmp_path / "none.onnx")
    with raises(EngineError, "open-checkpoint", path=tmp_path / "model.pt"):
        backends.open(tmp_path / "model.pt")
    with raises(EngineError, "engine-not-found", path=tmp_path / "none.engine"):
        backends.open(tmp_path / "none.engine")
    for value in (None, 3, np.zeros(2), b"model.onnx", ["model.onnx"]):
        with raises(EngineError, "open-type-unknown", value=type(value).__name__):
            backends.open(value)  # type: ignore[arg-type]
    cases: list[tuple[dict[str, Any], type[TrtkitError], str]] = [
        ({"backend": "no_such_backend"}, RecipeError, "backend-unknown"),
        ({"backend": "tensorrt"}, RecipeError, "open-onnx-as-engine"),
        ({"device": 0}, CapabilityError, "device-not-cpu"),
    ]
    for arguments, error, code in cases:
        with raises(error, code):
            backends.open(tiny_graphs.detector(), **arguments)
    with raises(RecipeError, "open-engine-as-onnx", path=tmp_path / "m.engine"):
        backends.open(tmp_path / "m.engine", backend="onnxruntime")


@pytest.mark.parametrize(("batch", "limit"), [("2", 2), ("0", 1), (None, None)])
def test_a_foreign_graph_with_nms_takes_the_batch_of_its_metadata(batch: str | None, limit: int | None) -> None:
    """Ultralytics' nms=True, dynamic=True, batch=2: images after the second had no detections."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Reshape", ["images", "shape"], ["output0"])],
        "nms",
        [value("images", 1, ["batch", 3, 20, 30])],
        [value("output0", 1, ["batch", 300, 6])],
        [onnx.helper.make_tensor("shape", 7, [3], [0, 300, 6])],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    metadata = {"task": "detect", "names": "{0: 'a'}", "args": "{'nms': True}", "imgsz": "[20, 30]"}
    for key, text in {**metadata, **({} if batch is None else {"batch": batch})}.items():
        proto.metadata_props.add(key=key, value=text)
    ours = onnx.ModelProto()
    ours.CopyFrom(proto)
    with OrtRunner(update_metadata(ours, {}, {"model_hash": "ab" * 32})) as runner:
        # trtkit's own NMS takes any batch.
        assert runner.batch is None
    with OrtRunner(proto) as runner:
        assert runner.batch == limit
        if limit is not None:
            with pytest.raises(EngineError) as error:
                runner.infer(np.zeros((limit + 1, 3, 20, 30), np.float32))
            assert error.value.code == "run-batch-too-large"

from __future__ import annotations

import numpy as np
import onnx
import pytest
from detector_graph import run
from onnx import TensorProto, helper
from raising import raises

from trtkit.errors import RecipeError
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.fp16 import convert_to_fp16
from trtkit.graph.nms import TOP_K, add_nms
from trtkit.graph.qdq import plan_qdq
from trtkit.models.model import ModelInfo
from trtkit.tasks.nms import nms_rotated

INFO = ModelInfo(task="detect", names={0: "a", 1: "b"})


def identity_graph(columns: int, anchors: int, batch: int | str = "batch") -> onnx.ModelProto:
    """A graph that returns its input as a detector's dense output."""
    shape = [batch, columns, anchors]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["output0"], "identity")],
        "raw",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def greedy_nms(raw: np.ndarray, classes: int, conf: float, iou: float, max_det: int) -> list[np.ndarray]:
    """Textbook greedy NMS, one image and one box at a time."""
    results = []
    for image in raw:
        rows = []
        for column in image.T:
            label = int(np.argmax(column[4 : 4 + classes]))
            x, y, w, h = column[:4]
            rows.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2, column[4 + label], label, *column[4 + classes :]])
        rows = sorted((row for row in rows if row[4] > conf), key=lambda row: -row[4])
        kept: list[list[float]] = []
        for row in rows:
            if all(row[5] != other[5] or box_iou(row, other) <= iou for other in kept):
                kept.append(row)
        results.append(np.array(kept[:max_det], np.float32).reshape(-1, 6 + raw.shape[1] - 4 - classes))
    return results


def box_iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


@pytest.mark.parametrize("extra", [0, 5])
@pytest.mark.parametrize("anchors", [200, 1500])
@pytest.mark.parametrize("batch", ["batch", 3])
def test_nms_in_the_graph_equals_greedy_nms(batch: int | str, anchors: int, extra: int) -> None:
    random = np.random.default_rng(3)
    raw = random.random((3, 6 + extra, anchors)).astype(np.float32)
    raw[:, :2] *= 100
    raw[:, 2:4] = raw[:, 2:4] * 30 + 5
    raw[2, 4:6] = 0.0  # an image without objects
    proto = add_nms(identity_graph(6 + extra, anchors, batch), INFO, conf=0.6, iou=0.5, max_det=40)
    onnx.checker.check_model(proto, full_check=True)
    # TensorRT runs a cumulative sum as a loop: where the batch is fixed there is none.
    operators = {node.op_type for node in proto.graph.node}
    assert ("CumSum" in operators) == (batch == "batch")
    assert ("Pad" in operators) == (batch == "batch" or anchors < TOP_K)
    output = run(proto, raw)[0]
    assert output.shape == (3, 40, 6 + extra)
    for rows, expected in zip(output, greedy_nms(raw, 2, 0.6, 0.5, 40), strict=True):
        count = int((rows[:, 4] > 0).sum())
        assert count == len(expected)
        np.testing.assert_allclose(rows[:count], expected, atol=1e-3)
        assert not rows[count:].any()


def test_nms_believes_no_fixed_output_of_an_open_input() -> None:
    proto = identity_graph(6, 1500)
    raw = np.random.default_rng(3).random((3, 6, 1500)).astype(np.float32)
    expected = run(add_nms(proto, INFO), raw)[0]
    # Some exporters write the shape they have traced.
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    np.testing.assert_array_equal(run(add_nms(proto, INFO), raw)[0], expected)


def test_nms_reads_the_dense_output_wherever_it_stands_and_keeps_names() -> None:
    proto = identity_graph(6, 50, batch=1)
    expected = add_nms(proto, INFO)
    raw = np.random.default_rng(3).random((1, 6, 50)).astype(np.float32)
    # As another exporter could write it: prototypes or features first, names of its own.
    proto.graph.node[0].output[0] = proto.graph.output[0].name = "predictions"
    proto.graph.node.append(helper.make_node("Unsqueeze", ["images", "one"], ["features"], "unsqueeze"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "one"))
    proto.graph.output.insert(0, helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 1, 6, 50]))
    with_nms = add_nms(proto, INFO)
    onnx.checker.check_model(with_nms, full_check=True)
    assert [value.name for value in with_nms.graph.output] == ["features", "predictions"]
    features, rows = run(with_nms, raw)
    np.testing.assert_array_equal(features, raw[:, None])
    np.testing.assert_array_equal(rows, run(expected, raw)[0])


def test_nms_stays_in_fp32_in_an_fp16_graph(proto: onnx.ModelProto, images: np.ndarray) -> None:
    info = ModelInfo(task="detect", names={0: "a", 1: "b", 2: "c"})
    fp32 = add_nms(proto, info, conf=0.5)
    fp16 = convert_to_fp16(fp32)
    onnx.checker.check_model(fp16, full_check=True)
    before, after = (
        {node.name for node in graph.graph.node if node.name.startswith("trtkit_nms")} for graph in (fp32, fp16)
    )
    assert before <= after
    arithmetic = {node.name for node in fp32.graph.node if node.op_type in ("MatMul", "TopK")}
    assert arithmetic & before <= GraphIndex(fp32).decode_nodes()
    assert run(fp16, images)[0].shape == run(fp32, images)[0].shape == (2, 300, 6)


@pytest.mark.parametrize("anchors", [60, 1500])
def test_rotated_nms_in_the_graph_equals_the_one_outside(anchors: int) -> None:
    random = np.random.default_rng(anchors)
    raw = random.random((3, 7, anchors)).astype(np.float32)
    raw[:, :2] *= 300
    raw[:, 2:4] = raw[:, 2:4] * 60 + 4
    raw[:, 6] = raw[:, 6] * 6 - 3
    raw[2, 4:6] = 0.0  # an image without objects
    info = ModelInfo(task="obb", names={0: "a", 1: "b"})
    proto = add_nms(identity_graph(7, anchors), info, conf=0.7, iou=0.3, max_det=200)
    onnx.checker.check_model(proto, full_check=True)
    output = run(proto, raw)[0]
    assert output.shape == (3, 200, 7)
    for rows, image in zip(output, raw, strict=True):
        scores, classes = image[4:6].max(0), image[4:6].argmax(0)
        boxes = np.ascontiguousarray(image[[0, 1, 2, 3, 6]].T)
        above = np.flatnonzero(scores > 0.7)
        kept = above[nms_rotated(boxes[above], scores[above], classes[above], iou=0.3, max_det=200)]
        count = int((rows[:, 4] > 0).sum())
        assert count == len(kept)
        assert count < len(above) or not count
        np.testing.assert_allclose(rows[:count, [0, 1, 2, 3, 6]], boxes[kept], atol=1e-4)
        np.testing.assert_array_equal(rows[:count, 4], scores[kept])
        np.testing.assert_array_equal(rows[:count, 5], classes[kept])
        assert not rows[count:].any()


def test_nms_of_class_scores_raises() -> None:
    with pytest.raises(RecipeError) as error:
        add_nms(identity_graph(6, 10), ModelInfo(task="classify", names={0: "a", 1: "b"}))
    assert error.value.code == "nms-not-applicable"
    assert error.value.fields == {"task": "classify", "output_format": "class_scores"}


def test_a_graph_with_fewer_boxes_than_rows_keeps_its_rows() -> None:
    raw = np.array([[[10.0, 50.0], [10.0, 50.0], [8.0, 8.0], [8.0, 8.0], [0.9, 0.1], [0.2, 0.8]]], np.float32)
    output = run(add_nms(identity_graph(6, 2), INFO), raw)[0]
    assert output.shape == (1, 300, 6)
    np.testing.assert_allclose(output[0, :2], [[6, 6, 14, 14, 0.9, 0], [46, 46, 54, 54, 0.8, 1]], atol=1e-5)
    assert not output[0, 2:].any()


def test_a_dropped_box_drops_no_others() -> None:
    # Seven boxes in a row, each overlapping only its neighbors, highest score first: every other one is kept.
    raw = np.zeros((1, 6, 7), np.float32)
    raw[0, 0], raw[0, 1], raw[0, 2:4] = np.arange(7) * 2, 5, 10
    raw[0, 4] = np.linspace(0.9, 0.6, 7)
    output = run(add_nms(identity_graph(6, 7), INFO, iou=0.6), raw)[0]
    assert (output[0, :, 4] > 0).sum() == 4
    np.testing.assert_allclose(output[0, :4, 0], [-5, -1, 3, 7], atol=1e-5)


def test_nms_does_not_change_the_qdq_placement(proto: onnx.ModelProto) -> None:
    info = ModelInfo(task="detect", names={0: "a", 1: "b", 2: "c"})
    with_nms, without_nms = plan_qdq(add_nms(proto, info)), plan_qdq(proto)
    assert with_nms.layers == without_nms.layers
    assert with_nms.tensors == without_nms.tensors
    assert with_nms.excluded == without_nms.excluded


def open_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """As exporters write outputs whose shapes they do not infer."""
    for value in proto.graph.output:
        for side in value.type.tensor_type.shape.dim:
            side.Clear()
    return proto


def test_nms_where_the_shape_of_the_output_is_open() -> None:
    raw = np.random.default_rng(3).random((1, 6 + 6, 50)).astype(np.float32)
    for info, columns in ((INFO, 6), (ModelInfo(task="pose", names=INFO.names, kpt_shape=(3, 2)), 12)):
        expected = run(add_nms(identity_graph(columns, 50, batch=1), info), raw[:, :columns])
        with_nms = add_nms(open_shapes(identity_graph(columns, 50, batch=1)), info)
        onnx.checker.check_model(with_nms, full_check=True)
        np.testing.assert_array_equal(run(with_nms, raw[:, :columns])[0], expected[0])


def test_nms_where_nothing_says_how_many_values_a_box_has() -> None:
    with raises(RecipeError, "nms-values-unknown", task="pose"):
        add_nms(open_shapes(identity_graph(12, 50)), ModelInfo(task="pose", names=INFO.names))


def test_more_rows_than_boxes_that_nms_considers() -> None:
    """All of them are considered then."""
    count = 1500
    raw = np.zeros((1, 6, count), np.float32)
    raw[0, 0], raw[0, 1], raw[0, 2:4], raw[0, 4] = np.arange(count) * 20, 5, 10, np.linspace(0.9, 0.6, count)
    output = run(add_nms(identity_graph(6, count), INFO, max_det=count), raw)[0]
    assert output.shape == (1, count, 6)
    np.testing.assert_array_equal(output[0, :, 4], raw[0, 4])


def test_rotated_nms_at_an_iou_of_0_drops_what_overlaps_alone() -> None:
    raw = np.zeros((1, 7, 3), np.float32)
    raw[0, 0], raw[0, 1], raw[0, 2:4] = [10, 14, 400], 50, 10
    raw[0, 4] = [0.9, 0.8, 0.7]
    info = ModelInfo(task="obb", names=INFO.names)
    output = run(add_nms(identity_graph(7, 3), info, iou=0.0), raw)[0]
    boxes = np.ascontiguousarray(raw[0, [0, 1, 2, 3, 6]].T)
    kept = nms_rotated(boxes, raw[0, 4], np.zeros(3, int), iou=0.0, max_det=300)
    assert kept.tolist() == [0, 2]
    np.testing.assert_array_equal(output[0, :3, 4], np.array([0.9, 0.7, 0], np.float32))

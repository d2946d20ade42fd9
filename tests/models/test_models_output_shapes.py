"""What a file returns is read from its metadata or its shapes, and must fit its task and its names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from raising import raises
from torch import nn

from trtkit.errors import ModelError, OnnxError
from trtkit.models import Preprocess, load
from trtkit.models.model import (
    CLASS_SCORES,
    DENSE,
    DETR_QUERIES,
    DETR_ROWS,
    END2END_ROWS,
    NMS_ROWS,
    ModelInfo,
    OutputFormat,
)
from trtkit.models.output_shapes import check_outputs, find_main_output, infer_output_format, order_outputs

MASKS = (1, 32, 16, 16)


def graph(shapes: Sequence[Sequence[int | str]], **metadata: Any) -> onnx.ModelProto:
    """A graph with these output shapes, whose computation is arbitrary, and with metadata as Ultralytics writes it."""
    outputs = [
        helper.make_tensor_value_info(f"output{index}", TensorProto.FLOAT, shape) for index, shape in enumerate(shapes)
    ]
    nodes = [helper.make_node("Relu", ["images"], [value.name]) for value in outputs]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 64, 64))
    made = helper.make_model(helper.make_graph(nodes, "main_graph", [images], outputs))
    helper.set_model_props(made, {key: str(value) for key, value in metadata.items()})
    return made


def described(task: str = "detect", classes: int = 3, **metadata: Any) -> dict[str, Any]:
    names = {index: f"class {index}" for index in range(classes)}
    kpt_shape = {"kpt_shape": [17, 3]} if task == "pose" else {}
    return {"task": task, "names": names, "stride": 32, "imgsz": [64, 64], **kpt_shape, **metadata}


ONE_TO_ONE = {"end2end": True, "args": {"nms": False}}
NMS = {"end2end": False, "args": {"nms": True}}
DEFAULT = {"end2end": False, "args": {"nms": None}}
OLD: dict[str, Any] = {}
"""YOLOv10 of Ultralytics 8.2: neither `end2end` nor `args`."""


@pytest.mark.parametrize("settings", [ONE_TO_ONE, NMS, DEFAULT, OLD])
@pytest.mark.parametrize(
    ("task", "dense", "rows"),
    [
        ("detect", [(1, 7, 84)], [(1, 300, 6)]),
        ("segment", [(1, 39, 84), MASKS], [(1, 300, 38), MASKS]),
        ("pose", [(1, 58, 84)], [(1, 300, 57)]),
        ("obb", [(1, 8, 84)], [(1, 300, 7)]),
    ],
)
def test_metadata_of_ultralytics(task: str, dense: list[Any], rows: list[Any], settings: dict[str, Any]) -> None:
    if settings in (DEFAULT, OLD):
        assert load(graph(dense, **described(task, **settings))).output_format == DENSE
    stated = {True: NMS_ROWS, False: END2END_ROWS}[settings is NMS]
    model = load(graph(rows, **described(task, **settings)))
    assert model.output_format == stated
    assert model.preprocess == Preprocess()


@pytest.mark.parametrize("name", ["rtdetr-l", "RT-DETR"])
def test_an_rtdetr_of_an_older_ultralytics_gets_queries_and_stretched_images(name: str) -> None:
    """Its metadata says nothing of its output; with two classes queries have as many columns as rows."""
    for classes, shape in ((80, (1, 300, 84)), (2, (1, 300, 6)), (80, ("batch", 300, "anchors"))):
        proto = graph([shape], **described(classes=classes, **DEFAULT, description=f"Ultralytics {name} model"))
        model = load(proto)
        assert model.output_format == DETR_QUERIES
        assert model.preprocess == Preprocess(kind="stretch")


@pytest.mark.parametrize("classes", [1, 2, 5, 80])
@pytest.mark.parametrize("nms", [None, False])
def test_an_rtdetr_of_ultralytics_gets_rows_and_stretched_images(classes: int, nms: bool | None) -> None:
    """Metadata as 8.4.190 writes it; `nms=True` is `None` there."""
    metadata = described(classes=classes, description="Ultralytics rtdetr-l model", end2end=False, head="RTDETRDecoder")
    metadata["args"] = {"batch": 1, "nms": nms, "dynamic": False}
    for shape in ((1, 300, 6), ("batch", 300, 6), ("batch", 300, "anchors")):
        model = load(graph([shape], **metadata))
        assert model.output_format == DETR_ROWS
        assert model.preprocess == Preprocess(kind="stretch")
        assert model.to_metadata()["head"] == "RTDETRDecoder"
    # Without the head, the columns tell rows from queries, except for two classes.
    del metadata["head"]
    expected = DETR_QUERIES if classes == 2 else DETR_ROWS
    assert load(graph([(1, 300, 6)], **metadata)).output_format == expected


def test_trtkits_own_entry_comes_first() -> None:
    info = load(graph([(1, 300, 6)]), task="detect", names=["a", "b"], output_format=DETR_QUERIES).info
    again = load(graph([(1, 300, 6)], **info.to_metadata()))
    assert (again.output_format, again.preprocess) == (DETR_QUERIES, Preprocess(kind="stretch"))


@pytest.mark.parametrize(
    ("task", "shapes", "settings", "value", "expected"),
    [
        ("detect", [(1, 300, 38)], ONE_TO_ONE, 38, 6),  # rows of another task
        ("segment", [(1, 300, 6), MASKS], ONE_TO_ONE, 6, 38),
        ("pose", [(1, 300, 9)], ONE_TO_ONE, 9, 57),
        ("obb", [(1, 300, 6)], NMS, 6, 7),
        ("detect", [(1, 7, 84)], ONE_TO_ONE, 84, 6),  # dense boxes that are called end-to-end
        ("detect", [(1, 84, 8400)], DEFAULT, 84, 7),  # other names
        ("obb", [(1, 84, 8400)], DEFAULT, 84, 8),
        ("classify", [(1, 5)], DEFAULT, 5, 3),
        ("detect", [(1, 25200, 8)], DEFAULT, 25200, 7),  # YOLOv5 of 2020: objectness, and its columns last
    ],
)
def test_outputs_that_contradict_the_metadata(
    task: str, shapes: list[Any], settings: dict[str, Any], value: int, expected: int
) -> None:
    with raises(OnnxError, "model-outputs-mismatch", task=task, names=3, value=value, expected=expected):
        load(graph(shapes, **described(task, **settings)))


@pytest.mark.parametrize(
    ("task", "shapes"),
    [
        ("detect", [(1, 3)]),  # a classifier as detector
        ("classify", [(1, 7, 84)]),  # a detector as classifier
        ("segment", [(1, 39, 84)]),  # no mask prototypes
        ("detect", [(1, 3, 16, 16)]),
        ("detect", [()]),
    ],
)
def test_outputs_of_another_form(task: str, shapes: list[Any]) -> None:
    with raises(OnnxError, "model-outputs-mismatch", task=task, shapes=[list(shape) for shape in shapes]):
        load(graph(shapes, **described(task, **DEFAULT)))


def test_an_output_format_that_is_passed_replaces_the_metadata_s() -> None:
    proto = graph([(1, 7, 84)], **described(**ONE_TO_ONE))
    assert load(proto, output_format=DENSE).output_format == DENSE
    with raises(OnnxError, "model-outputs-mismatch", output_format="class_scores"):
        load(proto, output_format=CLASS_SCORES)


def test_preprocessing_follows_an_output_format_that_is_passed() -> None:
    """An RT-DETR that its file does not name, of two classes: its six columns may be queries or rows."""
    proto = graph([(1, 300, 6)], **described(classes=2, **DEFAULT))
    assert load(proto).preprocess.kind == "letterbox"
    assert load(proto, output_format=DETR_QUERIES).preprocess == Preprocess(kind="stretch")
    own = Preprocess(scale=1.0)
    assert load(proto, output_format=DETR_QUERIES, preprocess=own).preprocess == own


def test_two_image_inputs() -> None:
    proto = graph([(1, 7, 84)], **described())
    proto.graph.input.append(helper.make_tensor_value_info("depth", TensorProto.FLOAT, (1, 1, 64, 64)))
    with raises(OnnxError, "onnx-several-inputs", inputs=["images", "depth"]):
        load(proto)


# Files without metadata.


@pytest.mark.parametrize(
    ("task", "shapes", "expected"),
    [
        ("detect", [(1, 84, 8400)], DENSE),
        ("detect", [(1, 300, 6)], END2END_ROWS),
        ("detect", [(1, 300, 84)], DETR_QUERIES),
        ("segment", [(1, 300, 38), MASKS], END2END_ROWS),
        ("obb", [(1, 300, 7)], END2END_ROWS),
        ("pose", [(1, 300, 57)], END2END_ROWS),
        ("classify", [(1, 10)], CLASS_SCORES),
        ("detect", [("b", 7, "a")], DENSE),
    ],
)
def test_format_from_the_shapes_alone(task: str, shapes: list[Any], expected: OutputFormat) -> None:
    names = ["a"] if task == "pose" else None
    if expected == END2END_ROWS and names is None:
        # Rows hold a class index, not one column per class.
        with raises(OnnxError, "model-names-missing", output_format="end2end_rows"):
            load(graph(shapes), task=task)
        names = ["a", "b"]
    model = load(graph(shapes), task=task, names=names)
    assert model.output_format == expected
    assert model.preprocess.kind == {DETR_QUERIES: "stretch", CLASS_SCORES: "center_crop"}.get(expected, "letterbox")
    assert model.kpt_shape == ((17, 3) if task == "pose" else None)
    if expected == DETR_QUERIES:
        assert len(model.names) == 80


def test_queries_tell_the_number_of_classes() -> None:
    with raises(OnnxError, "model-names-mismatch", names=2, classes=80):
        load(graph([(1, 300, 84)]), task="detect", names=["a", "b"], output_format=DETR_QUERIES)


def end2end_head(classes: int, **metadata: Any) -> onnx.ModelProto:
    """The end of a one-to-one head: a class is the index of a score modulo the number of classes."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["scores"]),
        helper.make_node("TopK", ["scores", "count"], ["top", "index"]),
        helper.make_node("Mod", ["index", "classes"], ["class"]),
        helper.make_node("Cast", ["class"], ["class_float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["class_float", "axis"], ["column"]),
        helper.make_node("Concat", ["column"] * 6, ["output0"], axis=2),
    ]
    constants = [
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in (("count", [20]), ("classes", classes), ("axis", [2]))
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 8, 8))
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, (1, 20, 6))
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [images], [output], constants), opset_imports=[helper.make_opsetid("", 17)]
    )
    onnx.checker.check_model(proto, full_check=True)
    helper.set_model_props(proto, {key: str(value) for key, value in metadata.items()})
    return proto


def test_the_classes_of_a_one_to_one_head_are_read_from_its_graph() -> None:
    assert len(load(end2end_head(7), task="detect").names) == 7
    assert len(load(end2end_head(7, **described(classes=7, **ONE_TO_ONE))).names) == 7
    with raises(OnnxError, "model-names-mismatch", names=3, classes=7):
        load(end2end_head(7, **described(classes=3, **ONE_TO_ONE)))
    with raises(OnnxError, "model-names-mismatch", names=2, classes=7):
        load(end2end_head(7), task="detect", names=["a", "b"])


# Modules.


class Rows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1, :1, :6].flatten(1, 2).expand(-1, 300, -1)


def test_a_module_that_returns_rows() -> None:
    image = torch.zeros(1, 3, 32, 32)
    assert load(Rows(), task="detect", names=["a"], example=image).output_format == END2END_ROWS
    with raises(ModelError, "model-outputs-mismatch", task="obb", expected=7, value=6):
        load(Rows(), task="obb", names=["a"], example=image, output_format=END2END_ROWS)


# Properties.


def layouts(task: str, classes: int, points: int, anchors: int) -> dict[str, list[list[int]]]:
    """Shapes of each output format of a task."""
    extra = {"detect": 0, "segment": 32, "pose": 3 * points, "obb": 1}[task]
    masks = [list(MASKS)] if task == "segment" else []
    return {
        DENSE.name: [[1, 4 + classes + extra, anchors], *masks],
        END2END_ROWS.name: [[1, 300, 6 + extra], *masks],
    }


@given(
    task=st.sampled_from(["detect", "segment", "pose", "obb"]),
    classes=st.integers(1, 290),
    points=st.integers(1, 30),
    cells=st.integers(16, 1600),
)
def test_every_format_is_told_from_the_others_by_its_shapes(task: str, classes: int, points: int, cells: int) -> None:
    kpt_shape = (points, 3) if task == "pose" else None
    for name, shapes in layouts(task, classes, points, 21 * cells).items():
        dense_twin = name != DENSE.name and shapes[0][1] == layouts(task, classes, points, 1)[DENSE.name][0][1]
        output_format = infer_output_format(task, shapes, classes=classes, kpt_shape=kpt_shape)
        assert output_format.name == (DENSE.name if dense_twin else name)
        names = {index: str(index) for index in range(classes)}
        info = ModelInfo(task=task, names=names, kpt_shape=kpt_shape, output_format=output_format)
        if not dense_twin:
            check_outputs(info, shapes, "check", ModelError)
        with raises(ModelError, "model-outputs-mismatch", names=classes):
            check_outputs(info, [[*shapes[0][:-1]], *shapes[1:]], "check", ModelError)


@pytest.mark.parametrize(
    ("dimensions", "task", "expected"),
    [
        ({"a": 3}, "detect", "a"),
        ({"masks": 4, "boxes": 3}, "segment", "boxes"),
        ({"boxes": 3, "output0": 3}, "detect", "output0"),
        ({"output0": 4, "output1": 3}, "segment", "output1"),
        ({"features": 4, "scores": 2}, "classify", "scores"),
        ({"a": 2, "b": 1}, "detect", "a"),
        ({"a": 1, "output0": 1}, "detect", "output0"),
        ({"a": 1, "b": 3}, "a task of the caller's", "a"),
    ],
)
def test_the_main_output_is_found_by_name_or_dimensions(dimensions: dict[str, int], task: str, expected: str) -> None:
    assert find_main_output(dimensions, task) == expected
    shapes = {name: [None] * count for name, count in dimensions.items()}
    assert order_outputs(shapes, task)[0] is shapes[expected]
    assert len(order_outputs(shapes, task)) == len(shapes)

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_graphs
from onnx import TensorProto, helper, numpy_helper
from raising import raises

import trtkit as tk
from trtkit.errors import ModelError, OnnxError, TrtkitError
from trtkit.graph.onnx_file import read_trtkit_metadata
from trtkit.graph.torch_export import trace
from trtkit.models import OutputFormat, Preprocess, load
from trtkit.models.model import DENSE, DETR_QUERIES, NMS_ROWS

ULTRALYTICS = {
    "description": "Ultralytics YOLO11n-pose model trained on coco-pose.yaml",
    "author": "Ultralytics",
    "date": "2026-01-02T03:04:05",
    "version": "8.4.190",
    "license": "AGPL-3.0 License (https://ultralytics.com/license)",
    "docs": "https://docs.ultralytics.com",
    "stride": "32",
    "task": "pose",
    "batch": "8",
    "imgsz": "[480, 640]",
    "names": "{0: 'person', 1: \"bird's eye\"}",
    "args": "{'batch': 8, 'half': False, 'dynamic': False, 'simplify': True, 'opset': None, 'nms': False}",
    "channels": "3",
    "end2end": "False",
    "kpt_shape": "[17, 3]",
}


def graph(
    shapes: Sequence[Sequence[int | str]], image: Sequence[int | str] = (1, 3, 64, 96), **metadata: str
) -> onnx.ModelProto:
    """A graph with these input and output shapes; its computation is arbitrary."""
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "weight")
    nodes = [helper.make_node("Relu", ["images"], [f"output{index}"]) for index in range(len(shapes))]
    outputs = [
        helper.make_tensor_value_info(f"output{index}", TensorProto.FLOAT, shape) for index, shape in enumerate(shapes)
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, image)]
    made = helper.make_model(helper.make_graph(nodes, "main_graph", inputs, outputs, [weight]))
    helper.set_model_props(made, metadata)
    return made


def write(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def test_metadata_of_ultralytics(tmp_path: Path) -> None:
    path = write(tmp_path / "yolo11n-pose.onnx", graph([(8, 57, 6300)], (8, 3, 480, 640), **ULTRALYTICS))
    model = load(path)
    assert (model.task, model.stride, model.imgsz, model.kpt_shape) == ("pose", 32, (480, 640), (17, 3))
    assert model.names == {0: "person", 1: "bird's eye"}
    assert model.notes["batch"] == 8
    assert model.notes["author"] == "Ultralytics"
    assert (model.source, model.stem, model.parameters, model.nms) == (path, "yolo11n-pose", 6, False)
    assert model.module is None
    assert model.proto is not None


def test_nms_in_the_graph_is_read_from_the_metadata() -> None:
    model = load(graph([(1, 300, 6)], **{**ULTRALYTICS, "task": "detect", "args": "{'nms': True}"}))
    assert model.nms
    assert model.output_format == NMS_ROWS


def test_metadata_of_trtkit(tmp_path: Path) -> None:
    model = load(graph([(1, 7, 100)]), task="detect", names=["a", "b", "c"])
    metadata = {key: str(value) for key, value in model.info.to_metadata(batch=4).items()}
    metadata["trtkit"] = json.dumps({"precision": "int8", "model_hash": "0" * 64, "keep": None})
    again = load(write(tmp_path / "x.onnx", graph([(1, 7, 100)], **metadata)))
    assert again.names == model.names
    assert again.task == "detect"
    assert again.notes["trtkit"] == {"precision": "int8", "model_hash": "0" * 64, "keep": None}
    assert again.hash == model.hash


@pytest.mark.parametrize(
    ("task", "shapes", "classes"),
    [
        ("detect", [(1, 84, 8400)], 80),
        ("obb", [(1, 20, 8400)], 15),
        ("segment", [(1, 116, 8400), (1, 32, 160, 160)], 80),
        ("classify", [(1, 1000)], 1000),
        ("detect", [("batch", 5, "anchors")], 1),
    ],
)
def test_classes_from_the_shapes(task: str, shapes: list[tuple[int | str, ...]], classes: int) -> None:
    model = load(graph(shapes), task=task)
    assert model.names == {index: str(index) for index in range(classes)}
    assert model.imgsz == (64, 96)
    assert model.stride == (1 if task == "classify" else 32)
    assert model.kpt_shape is None


@pytest.mark.parametrize(("values", "kpt_shape"), [(56, (17, 3)), (39, (17, 2)), (17, (4, 3))])
def test_keypoints_from_the_shapes(values: int, kpt_shape: tuple[int, int]) -> None:
    assert load(graph([(1, values, 100)]), task="pose", names=["person"]).kpt_shape == kpt_shape


def test_dynamic_sizes() -> None:
    proto = graph([("b", 7, "a")], ("b", 3, "h", "w"))
    assert load(proto, task="detect").imgsz == (640, 640)
    assert load(proto, task="detect", imgsz=(320, 416)).imgsz == (320, 416)


def test_the_graph_s_shape_takes_precedence_over_its_metadata() -> None:
    assert load(graph([(1, 57, 100)], (1, 3, 96, 64), **ULTRALYTICS)).imgsz == (96, 64)


def test_hash_covers_graph_and_weights(tmp_path: Path) -> None:
    plain = load(graph([(1, 7, 100)]), task="detect")
    proto = graph([(1, 7, 100)], date="yesterday")
    proto.producer_version = "other"
    assert load(write(tmp_path / "other.onnx", proto), task="detect", names=["x", "y", "z"]).hash == plain.hash
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((2, 3), np.float32), "weight"))
    assert load(proto, task="detect").hash != plain.hash
    other = graph([(1, 7, 100)])
    other.graph.node[0].op_type = "Abs"
    assert load(other, task="detect").hash != plain.hash


def test_external_weights(tmp_path: Path) -> None:
    proto = graph([(1, 7, 100)])
    plain = load(proto, task="detect").hash
    onnx.save(proto, tmp_path / "x.onnx", save_as_external_data=True, location="x.data", size_threshold=0)
    assert load(tmp_path / "x.onnx", task="detect").hash == plain
    for damage in (lambda path: path.write_bytes(b"short"), Path.unlink):
        damage(tmp_path / "x.data")
        with pytest.raises(OnnxError) as error:
            load(tmp_path / "x.onnx", task="detect")
        assert error.value.code == "onnx-external-data-missing"


def test_unknown_task(tmp_path: Path) -> None:
    with pytest.raises(OnnxError) as error:
        load(write(tmp_path / "x.onnx", graph([(1, 7, 100)])))
    assert error.value.code == "model-task-missing"


def test_task_that_does_not_exist() -> None:
    with pytest.raises(OnnxError) as error:
        load(graph([(1, 7, 100)]), task="depth")
    assert error.value.code == "model-task-unknown"
    assert error.value.fields["value"] == "depth"
    with pytest.raises(OnnxError) as error:
        load(graph([(1, 57, 100)], **{**ULTRALYTICS, "task": "semantic"}))
    assert error.value.code == "model-task-unknown"
    assert error.value.fields["value"] == "semantic"


def test_task_that_contradicts_the_metadata() -> None:
    with pytest.raises(OnnxError) as error:
        load(graph([(1, 57, 100)], **ULTRALYTICS), task="detect")
    assert error.value.code == "model-task-mismatch"
    assert error.value.fields["value"] == "detect"
    assert error.value.fields["expected"] == "pose"


@pytest.mark.parametrize(
    ("task", "shapes", "code"),
    [
        ("classify", [(1, 84, 8400)], "model-outputs-mismatch"),
        ("detect", [(1, 84)], "model-outputs-mismatch"),
        ("segment", [(1, 116, 8400)], "model-outputs-mismatch"),
        ("detect", [(1, 4, 100)], "model-names-mismatch"),
        ("detect", [(1, "c", 100)], "model-names-missing"),
        ("pose", [(1, 56, 100)], "model-names-missing"),
    ],
)
def test_outputs_that_do_not_fit(task: str, shapes: list[tuple[int | str, ...]], code: str) -> None:
    with pytest.raises(OnnxError) as error:
        load(graph(shapes), task=task)
    assert error.value.code == code


def test_names_that_do_not_fit() -> None:
    with pytest.raises(OnnxError) as error:
        load(graph([(1, 7, 100)]), task="detect", names=["a", "b"])
    assert error.value.code == "model-names-mismatch"
    assert error.value.fields["names"] == 2
    assert error.value.fields["classes"] == 3
    with pytest.raises(OnnxError) as error:
        load(graph([(1, 56, 100)]), task="pose", names=[str(index) for index in range(60)])
    assert error.value.code == "model-names-mismatch"
    assert error.value.fields["names"] == 60
    with pytest.raises(OnnxError) as error:
        load(graph([(1, 57, 100)], **ULTRALYTICS), names={1: "a", 2: "b"})
    assert error.value.code == "model-names-mismatch"


def test_size_that_contradicts_a_static_graph() -> None:
    with pytest.raises(OnnxError) as error:
        load(graph([(1, 7, 100)]), task="detect", imgsz=320)
    assert error.value.code == "model-imgsz-fixed"
    assert error.value.fields["value"] == (320, 320)
    assert error.value.fields["expected"] == (64, 96)
    assert load(graph([(1, 7, 100)]), task="detect", imgsz=(64, 96)).imgsz == (64, 96)


@pytest.mark.parametrize(
    ("key", "value"),
    [("names", "{0: 'a'"), ("imgsz", "[1, 2, 3]"), ("stride", "wide"), ("trtkit", "{"), ("kpt_shape", "[17]")],
)
def test_metadata_that_does_not_parse(key: str, value: str) -> None:
    with pytest.raises(OnnxError) as error:
        load(graph([(1, 57, 100)], **{**ULTRALYTICS, key: value}))
    assert error.value.code == "onnx-metadata-invalid"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(OnnxError) as error:
        load(tmp_path / "absent.onnx")
    assert error.value.code == "model-file-missing"


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").mkdir()
    with pytest.raises(OnnxError) as error:
        load(tmp_path / "x.onnx")
    assert error.value.code == "model-file-is-folder"


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").touch()
    with pytest.raises(OnnxError) as error:
        load(tmp_path / "x.onnx")
    assert error.value.code == "model-file-empty"


@pytest.mark.parametrize("data", [b"version https://git-lfs.github.com/spec/v1\noid", b"\xff" * 300, b"{}" * 20])
def test_foreign_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(OnnxError) as error:
        load(tmp_path / "x.onnx", task="detect")
    assert error.value.code in ("onnx-damaged", "onnx-graph-empty")


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_truncated_file(tmp_path: Path, part: float) -> None:
    data = graph([(1, 57, 100)], **ULTRALYTICS).SerializeToString()
    (tmp_path / "x.onnx").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(OnnxError):
        load(tmp_path / "x.onnx")


def test_graph_without_an_image_input() -> None:
    with pytest.raises(OnnxError) as error:
        load(graph([(1, 7, 100)], (1, 10)), task="detect")
    assert error.value.code == "onnx-input-not-an-image"
    assert error.value.fields["dimensions"] == 2
    with pytest.raises(OnnxError) as error:
        load(onnx.ModelProto(), task="detect")
    assert error.value.code == "onnx-graph-empty"


def test_errors_are_model_errors() -> None:
    assert issubclass(OnnxError, ModelError)


def test_metadata_of_an_export_describes_the_checkpoint(checkpoint: Path) -> None:
    info: Any = load(checkpoint).info
    metadata = {key: str(value) for key, value in info.to_metadata().items()}
    again = load(graph([(1, 7, 480)], (1, 3, 96, 96), **metadata))
    assert again.info.names == info.names
    assert (again.task, again.stride, again.imgsz, again.architecture) == (
        info.task,
        info.stride,
        info.imgsz,
        "yolov8n",
    )


END2END = OutputFormat(name="end2end")


def test_another_output_format_needs_names(tmp_path: Path) -> None:
    rows = graph([(1, 300, 6)])
    model = load(rows, task="detect", names=["a", "b"], output_format=END2END)
    assert (model.output_format, model.names, model.nms) == (END2END, {0: "a", 1: "b"}, False)
    with pytest.raises(OnnxError) as error:
        load(rows, task="detect", output_format=END2END)
    assert error.value.code == "model-names-missing"
    helper.set_model_props(rows, {key: str(value) for key, value in model.info.to_metadata().items()})
    again = load(write(tmp_path / "rows.onnx", rows))
    assert again.info == dataclasses.replace(model.info, notes=again.notes)


def test_preprocessing_can_be_passed_and_must_fit_the_input() -> None:
    stretch = Preprocess(kind="stretch", mean=(0.5,) * 3, std=(0.2,) * 3)
    assert load(graph([(1, 7, 100)]), task="detect", preprocess=stretch).preprocess == stretch
    gray = load(graph([(1, 7, 100)], (1, 1, 64, 96)), task="detect")
    assert gray.preprocess == Preprocess(channels=1)
    with pytest.raises(OnnxError) as error:
        load(graph([(1, 7, 100)], (1, 1, 64, 96)), task="detect", preprocess=stretch)
    assert (error.value.code, error.value.fields["channels"]) == ("model-preprocess-mismatch", 1)


def test_outputs_of_other_names_are_read_in_every_verb(tmp_path: Path) -> None:
    """Files without metadata, whose boxes come second and are not called `output0`."""
    plain, other = tiny_graphs.detector(), tiny_graphs.detector(describe=False)
    other.graph.output[0].name = next(node for node in other.graph.node if node.name == "scale").output[0] = "boxes"
    other.graph.output.insert(0, helper.make_tensor_value_info("stem_out", TensorProto.FLOAT, [1, 8, 16, 16]))
    names = list(tiny_graphs.NAMES.values())
    model = tk.load(other, task="detect", names=names)
    assert (model.output_format.name, list(model.names.values())) == ("dense", names)
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    for nms in (False, True):
        written = [
            tk.export(tk.load(one, task="detect", names=names), format="onnx", nms=nms, output=tmp_path / name)
            for one, name in ((plain, f"plain{nms}.onnx"), (other, f"other{nms}.onnx"))
        ]
        assert [value.name for value in onnx.load(written[1].path).graph.output] == ["stem_out", "boxes"]
        predictions = []
        for artifact in written:
            with tk.open(artifact.path) as runner:
                predictions.append(runner.predict([image])[0])
        assert len(predictions[0]) > 0
        np.testing.assert_array_equal(predictions[0].boxes, predictions[1].boxes)
        np.testing.assert_array_equal(predictions[0].scores, predictions[1].scores)


def change_dims(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] += 1


def change_type(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].data_type = 99


def cut_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-1]


def close_cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = proto.graph.node[2].output[0]


def need_itself(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].input[0] = proto.graph.node[1].output[0]


def grow_input(proto: onnx.ModelProto) -> None:
    for side in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_value = 100_000


def grow_channels(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 10**6


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (change_dims, "onnx-weight-damaged"),
        (change_type, "onnx-weight-damaged"),
        (cut_weight, "onnx-weight-damaged"),
        (close_cycle, "onnx-graph-cycle"),
        (need_itself, "onnx-graph-cycle"),
        (grow_input, "onnx-input-too-large"),
        (grow_channels, "onnx-input-too-large"),
    ],
)
def test_graphs_that_contradict_themselves(change: Any, code: str) -> None:
    proto = tiny_graphs.detector()
    change(proto)
    with raises(OnnxError, code):
        load(proto)


@pytest.mark.parametrize("name", [b"stem", b"head", b"images", b"output0", b"Sigmoid"])
def test_names_that_are_not_utf8(name: bytes, tmp_path: Path) -> None:
    data = tiny_graphs.detector().SerializeToString().replace(name, b"\xff\xfe" + name[2:])
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(TrtkitError):
        trace(load(tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stride", "0"),
        ("stride", "-32"),
        ("stride", "1e999"),
        ("imgsz", "[0, 32]"),
        ("imgsz", "[1e999, 32]"),
        ("imgsz", "(" * 1000),
        ("batch", "1e999"),
        ("batch", "[1]"),
        ("names", "[" * 100_000),
        ("kpt_shape", "[17, 4]"),
        ("trtkit", "{" * 100_000),
        ("trtkit", '{"output_format": 5}'),
        ("trtkit", '{"preprocess": {"kind": "warp"}}'),
        ("trtkit", '{"preprocess": [1]}'),
    ],
)
def test_metadata_that_no_model_has(key: str, value: str) -> None:
    proto = tiny_graphs.detector()
    for entry in proto.metadata_props:
        if entry.key == key:
            entry.value = value
            break
    else:
        proto.metadata_props.add(key=key, value=value)
    with raises(OnnxError, "onnx-metadata-invalid"):
        load(proto)


@pytest.mark.parametrize("value", ["[1]", "5", "null", '"text"'])
def test_an_entry_of_ours_that_is_no_object_is_ignored(value: str) -> None:
    proto = tiny_graphs.detector()
    next(entry for entry in proto.metadata_props if entry.key == "trtkit").value = value
    assert read_trtkit_metadata(proto) == {}
    assert read_trtkit_metadata(trace(load(proto)))["precision"] == "fp32"


def test_a_task_of_5000_letters_is_not_repeated() -> None:
    proto = tiny_graphs.detector()
    next(entry for entry in proto.metadata_props if entry.key == "task").value = "x" * 5000
    with raises(OnnxError, "model-task-unknown", value="x" * 5000) as error:
        load(proto)
    assert len(str(error.value)) < 500


def test_weights_among_the_inputs(tmp_path: Path) -> None:
    """IR versions before 4 list weights among the inputs, here before the image."""
    proto = tiny_graphs.detector()
    expected = load(proto)
    listed = onnx.ModelProto()
    listed.CopyFrom(proto)
    listed.ir_version = 3
    weights = [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in proto.graph.initializer]
    del listed.graph.input[:]
    listed.graph.input.extend([*weights, *proto.graph.input])
    path = write(tmp_path / "old.onnx", listed)
    before = listed.SerializeToString()
    model = load(listed)
    assert listed.SerializeToString() == before
    assert (model.info, model.parameters) == (expected.info, expected.parameters)
    exported = tk.export(path, "onnx", output=tmp_path / "new.onnx", overwrite=True)
    image = tiny_graphs.images(1)
    with tk.open(exported) as runner, tk.open(proto) as reference:
        np.testing.assert_array_equal(runner.predict(image)[0].boxes, reference.predict(image)[0].boxes)


@pytest.mark.parametrize(("kind", "size", "data"), [("INT4", 3, b"\x21\x03"), ("UINT4", 4, b"\x21\x43")])
def test_weights_of_4_bits_lie_two_in_a_byte(kind: str, size: int, data: bytes) -> None:
    proto = tiny_graphs.detector()
    expected = load(proto).parameters
    proto.graph.initializer.append(helper.make_tensor("w4", getattr(TensorProto, kind), [size], data, raw=True))
    assert load(proto).parameters == expected + size
    proto.graph.initializer[-1].raw_data += b"\x00"
    with raises(OnnxError, "onnx-weight-damaged", expected=2, size=3):
        load(proto)


def test_integers_that_describe_shapes_are_no_parameters() -> None:
    proto = tiny_graphs.detector()
    expected = load(proto)
    for kind in (np.int32, np.int64):
        proto.graph.initializer.append(numpy_helper.from_array(np.arange(4, dtype=kind), kind.__name__))
    assert load(proto).parameters == expected.parameters
    assert load(proto).hash != expected.hash


def test_the_hash_covers_functions() -> None:
    proto = tiny_graphs.detector()
    expected = load(proto).hash
    node = helper.make_node("Relu", ["x"], ["y"])
    proto.functions.append(helper.make_function("own", "F", ["x"], ["y"], [node], [helper.make_opsetid("", 17)]))
    assert load(proto).hash != expected


def test_values_that_are_no_keypoints_are_named() -> None:
    """Five values after box and score are neither pairs nor triples."""
    with raises(OnnxError, "model-names-mismatch", names=1):
        load(graph([(1, 4 + 1 + 5, 84)]), task="pose", names=["person"])


@pytest.mark.parametrize(("rows", "expected"), [(900, DETR_QUERIES), (1000, DETR_QUERIES), (1001, DENSE)])
def test_outputs_of_up_to_1000_rows_are_queries(rows: int, expected: OutputFormat) -> None:
    assert load(graph([(1, rows, 84)]), task="detect").output_format == expected

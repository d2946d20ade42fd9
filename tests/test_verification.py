"""verify(): simulated engines, healthy and miscompiled, against ONNX Runtime."""

from __future__ import annotations

import dataclasses
import math
import zlib
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
import tiny_graphs
from planted_faults import FAULTS, STRONG_FAULTS, add_rounding
from raising import raises
from task_models import drawn_set

import trtkit as tk
from trtkit import backends, demo
from trtkit.backends.ort import OrtRunner
from trtkit.backends.runner import Runner
from trtkit.data.labels import LABEL_FORMATS
from trtkit.errors import EngineError
from trtkit.graph.onnx_file import update_metadata
from trtkit.models.model import CLASS_SCORES, DENSE, DETR_ROWS, END2END_ROWS, NMS_ROWS, ModelInfo, OutputFormat
from trtkit.tasks import get_task
from trtkit.verification import _run as run_batches
from trtkit.verification import add_limits

SIZE = (64, 64)
EXTRA = {"detect": 0, "segment": 4, "pose": 6, "obb": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_graphs.write_images(tmp_path_factory.mktemp("images"), 6)


# Engines that are sessions of changed graphs


def copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    return other


def verify_graph(built, graph, images, *, batch=4, eval_images=6):
    with OrtRunner(built, threads=1) as engine, OrtRunner(graph, threads=1) as reference:
        engine.batch = batch
        return tk.verify(engine, images, onnx=reference, eval_images=eval_images)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_differs(images, precision, fault):
    graph = tiny_graphs.detector(precision, dynamic=True)
    built = copy(graph)
    (STRONG_FAULTS if precision == "int8" else FAULTS)[fault](built)
    result = verify_graph(built, graph, images)
    assert result.verdict == "differs"
    # Right at batch 1, and in the first place of every batch.
    assert set(result.frame().filter("differs")["batch"]) == ({4} if fault == "batch" else {1, 4})
    if fault == "batch":
        assert 0 not in result.frame().filter("differs")["slot"]
    assert "boxes" in result.describe_differences()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_healthy_engines_agree(images, precision):
    """18 graphs of each precision, with every weight and scale moved by half a step of FP16 and TF32."""
    for seed in range(18):
        graph = tiny_graphs.detector(precision, dynamic=True, seed=seed)
        built = copy(graph)
        add_rounding(built, seed)
        result = verify_graph(built, graph, images, batch=1 + seed % 4, eval_images=3)
        assert result.verdict == "agrees", (seed, result)


def test_saved_and_loaded(images, tmp_path):
    graph = tiny_graphs.detector(dynamic=True)
    with backends.open(graph) as engine:
        result = tk.verify(engine, images, onnx=graph)
    loaded = tk.Verification.load(result.save(tmp_path))
    assert loaded.frame().equals(result.frame())
    assert repr(loaded) == repr(result)
    assert loaded.plot().data


def test_the_graph_must_be_there_and_be_the_same(images, tmp_path):
    graph = tiny_graphs.detector(dynamic=True)
    with raises(EngineError, "verify-onnx-missing"):
        tk.verify(tmp_path / "a.engine", images)
    onnx.save(graph, tmp_path / "a.onnx")
    with raises(EngineError, "verify-not-engine", path=str(tmp_path / "a.onnx")):
        tk.verify(tmp_path / "a.onnx", images)
    onnx.save(graph, tmp_path / "b.ONNX")
    with raises(EngineError, "verify-not-engine", path=str(tmp_path / "b.ONNX")):
        tk.verify(tmp_path / "b.ONNX", images)
    with backends.open(tmp_path / "a.onnx") as engine, raises(EngineError, "verify-not-engine"):
        tk.verify(engine, images)
    assert tk.verify(tmp_path / "a.onnx", images, onnx=graph, eval_images=1).verdict != "differs"
    with backends.open(graph) as engine:
        with raises(EngineError, "verify-other-onnx", name="precision"):
            tk.verify(engine, images, onnx=tiny_graphs.detector("fp16", dynamic=True))
        with raises(EngineError, "verify-other-onnx", name="input size"):
            tk.verify(engine, images, onnx=tiny_graphs.detector(size=(64, 64)))
        # A graph of open size runs at the engine's.
        engine.imgsz = (64, 64)
        assert tk.verify(engine, images, onnx=graph, eval_images=1).verdict != "differs"
        engine.imgsz = (32, 32)
        info = engine.info
        for name, changes in (
            ("task", {"task": "obb"}),
            ("class names", {"names": {**info.names, 0: "another"}}),
            ("output format", {"output_format": END2END_ROWS}),
        ):
            engine.info = dataclasses.replace(info, **changes)
            with raises(EngineError, "verify-other-onnx", name=name):
                tk.verify(engine, images, onnx=graph)
        engine.info = info
        passport = backends.Passport(backend="tensorrt", tensorrt="8.6.0", sm="sm90")
        engine.passport, engine.hash = passport, "cd" * 32
        with raises(EngineError, "verify-other-onnx", name="model hash"):
            tk.verify(engine, images, onnx=graph)
        # Of a graph that names no calibration, such as one of 0.1.0, nothing can be said.
        engine.passport, engine.hash = dataclasses.replace(passport, calibration_hash="34" * 32), "ab" * 32
        assert tk.verify(engine, images, onnx=graph, eval_images=1).verdict != "differs"
        update_metadata(graph, {}, {"calibration_hash": "12" * 32})
        engine.passport, engine.hash = dataclasses.replace(passport, calibration_hash="34" * 32), "ab" * 32
        with raises(EngineError, "verify-other-onnx", name="calibration"):
            tk.verify(engine, images, onnx=graph)
        engine.passport = dataclasses.replace(passport, recipe={"implicit": True})
        with raises(EngineError, "verify-implicit"):
            tk.verify(engine, images, onnx=graph)


# Engines of every task and output format, whose outputs follow from the image


class Painted(Runner):
    """Objects of each image by its content; `change(outputs, slot)` makes the engine differ."""

    name, engine, precision, dynamic, passport, path = "painted", False, "fp32", True, None, None
    hash, imgsz = "0" * 64, SIZE

    def __init__(self, task, output_format, batch=4, change=None):
        kpt_shape = (2, 3) if task == "pose" else None
        self.info = ModelInfo(
            task=task, names={0: "a", 1: "b"}, imgsz=SIZE, output_format=output_format, kpt_shape=kpt_shape
        )
        self.batch, self.change = batch, change

    def infer(self, feeds):
        rows = [self.paint(image) for image in feeds]
        for slot, outputs in enumerate(rows):
            if self.change is not None:
                self.change(outputs, slot)
        return {name: np.stack([outputs[name] for outputs in rows]) for name in rows[0]}

    def close(self):
        self.change = None

    def paint(self, image):
        random = np.random.default_rng(zlib.crc32(np.ascontiguousarray(image)))
        task, count = self.info.task, 5
        if task == "classify":
            value = random.uniform(0, 1, 2)
            return {"output0": (value / value.sum()).astype(np.float32)}
        # In a grid: no two objects are each other's neighbors.
        centers = np.array([(10, 10), (50, 10), (30, 30), (10, 50), (50, 50)]) + random.uniform(-2, 2, (count, 2))
        sizes, scores = random.uniform(10, 16, (count, 2)), random.uniform(0.5, 0.9, count)
        classes = random.integers(0, 2, count)
        extra = random.uniform(0.2, 0.8, (count, EXTRA[task]))
        if task == "pose":
            extra = np.concatenate((centers, scores[:, None], centers + 3, scores[:, None]), 1)
        both = np.zeros((count, 2))
        both[np.arange(count), classes] = scores
        outputs = {}
        if self.info.output_format == DENSE:
            outputs["output0"] = np.concatenate((centers, sizes, both, extra), 1).T
        else:
            boxes = np.concatenate((centers, sizes), 1)
            if self.info.output_format == DETR_ROWS:
                boxes = boxes / 64
            elif task != "obb":
                boxes = np.concatenate((centers - sizes / 2, centers + sizes / 2), 1)
            rows = np.concatenate((boxes, scores[:, None], classes[:, None], extra), 1)
            outputs["output0"] = np.concatenate((rows[np.argsort(-scores)], np.zeros((3, rows.shape[1]))))
        outputs["output0"] = outputs["output0"].astype(np.float32)
        if task == "segment":
            outputs["output1"] = random.normal(0, 4, (4, 16, 16)).astype(np.float32)
        return outputs


MODELS = [
    *((task, DENSE) for task in EXTRA),
    *((task, END2END_ROWS) for task in EXTRA),
    ("detect", NMS_ROWS),
    ("detect", DETR_ROWS),
    ("classify", CLASS_SCORES),
]


def compare(images, task, output_format, change=None):
    with Painted(task, output_format, change=change) as engine, Painted(task, output_format) as reference:
        return tk.verify(engine, images, onnx=reference)


@pytest.mark.parametrize(("task", "output_format"), MODELS)
def test_noise_and_order_are_no_difference(images, task, output_format):
    random = np.random.default_rng(0)

    def change(outputs, slot):
        for value in outputs.values():
            value *= 1 + random.uniform(-(2**-11), 2**-11, value.shape).astype(np.float32)
        if output_format not in (DENSE, CLASS_SCORES):
            outputs["output0"][:, 5] = outputs["output0"][:, 5].round()
            outputs["output0"][:] = outputs["output0"][::-1]

    result = compare(images, task, output_format, change)
    assert result.verdict == "agrees", result
    expected = {
        "detect": {"scores", "boxes"},
        "segment": {"scores", "boxes", "masks"},
        "pose": {"scores", "boxes", "keypoints", "visibilities"},
        "obb": {"scores", "boxes", "angles"},
        "classify": {"probabilities"},
    }[task]
    rows = set() if output_format in (DENSE, CLASS_SCORES) else {"objects"}
    assert set(result.frame()["output"]) == {"logits"} | expected | rows
    assert set(result.frame()["batch"]) == {1, 4}
    # Every place of every batch: 6 images one by one, and 2 batches of 4.
    assert len(result.frame().filter(output="logits")) == 6 + 8


def shifted(column, by):
    """A change of a column of the first object: of its row, or of its anchor."""

    def change(outputs, output_format):
        value = outputs["output0"]
        value = value.T if output_format == DENSE else value
        value[0, column] += by

    return change


def flip_prototypes(outputs, output_format):
    outputs["output1"][:] *= -1


def lose(outputs, output_format):
    outputs["output0"][:2, 4] = 0


def broken(outputs, output_format):
    outputs["output0"][:] = np.nan


DIFFERENCES = [
    ("detect", DENSE, shifted(4, 0.3), {"scores"}),
    ("detect", DENSE, shifted(0, 4), {"boxes"}),
    ("detect", DENSE, broken, {"scores", "boxes"}),
    ("segment", DENSE, flip_prototypes, {"masks"}),
    ("pose", DENSE, shifted(6, 4), {"keypoints"}),
    ("pose", DENSE, shifted(8, -0.3), {"visibilities"}),
    ("obb", DENSE, shifted(6, 0.3), {"boxes", "angles"}),
    ("detect", END2END_ROWS, shifted(4, 0.1), {"scores"}),
    ("detect", END2END_ROWS, lose, {"objects"}),
    ("detect", END2END_ROWS, broken, {"objects"}),
    ("detect", NMS_ROWS, shifted(0, 2), {"boxes"}),
    ("detect", DETR_ROWS, shifted(0, 3 / 64), {"boxes"}),
    ("segment", END2END_ROWS, flip_prototypes, {"masks"}),
    ("pose", END2END_ROWS, shifted(6, 4), {"keypoints"}),
    ("obb", END2END_ROWS, shifted(6, 0.3), {"boxes", "angles"}),
    (
        "classify",
        CLASS_SCORES,
        lambda outputs, _: np.copyto(outputs["output0"], outputs["output0"][::-1]),
        {"probabilities"},
    ),
]


@pytest.mark.parametrize(("task", "output_format", "fault", "outputs"), DIFFERENCES)
def test_the_output_and_the_place_that_differ(images, task, output_format, fault, outputs):
    """The second image of each batch is wrong."""
    result = compare(
        images, task, output_format, lambda value, slot: fault(value, output_format) if slot == 1 else None
    )
    assert result.verdict == "differs"
    bad = result.frame().filter("differs")
    assert (set(bad["output"]) - {"logits"}, set(bad["batch"]), set(bad["slot"])) == (outputs, {4}, {1})


@pytest.mark.parametrize(
    ("precision", "images", "far", "differing"),
    [
        ("int8", 16, [4.29], 0),
        ("int8", 16, [4.29, 3.0], 0),
        ("int8", 16, [4.29, 3.0, 2.7], 3),
        ("int8", 16, [math.nan], 1),
        ("int8", 4, [4.29], 1),
        ("fp16", 16, [0.2], 1),
        ("fp32", 16, [0.5], 1),
    ],
)
def test_in_int8_an_image_of_many_may_be_beyond_a_limit(precision, images, far, differing):
    """One object is decided otherwise: 4.29 is that of a healthy engine. The means of all images are within theirs."""
    values = far + [0.1] * (images - len(far))
    frame = pl.DataFrame(
        {"batch": 2, "path": list(map(str, range(images))), "output": "logits", "objects": 10, "difference": values}
    ).with_columns(mean=0.01)
    assert add_limits(frame, precision)["differs"].sum() == differing
    # A mean beyond its limit is no matter of one object.
    assert add_limits(frame.with_columns(mean=1.2), precision)["differs"].all()


@pytest.mark.parametrize(
    ("objects", "lost", "differing"), [(5, 1, 0), (5, 2, 1), (4, 1, 0), (2, 1, 1)], ids=lambda value: str(value)
)
def test_one_object_of_twenty_may_be_lost(objects, lost, differing):
    """Of fewer, down to ten, one too."""
    shares = [lost / objects, 0.0, 0.0, 0.0]
    frame = pl.DataFrame(
        {"batch": 2, "path": list("abcd"), "output": "objects", "objects": objects, "difference": shares}
    ).with_columns(mean=0.0)
    assert add_limits(frame, "fp32")["differs"].sum() == differing


def test_the_last_batch_is_filled_with_the_first_images():
    fed = []

    class Counter:
        def infer(self, feeds):
            fed.append(feeds.ravel().tolist())
            return {"output0": feeds * 10}

    feeds = np.arange(5, dtype=np.float32).reshape(5, 1)
    rows = [(index, slot, float(outputs["output0"][0, 0])) for index, slot, outputs in run_batches(Counter(), feeds, 3)]
    assert fed == [[0, 1, 2], [3, 4, 0]]
    assert rows == [(0, 0, 0), (1, 1, 10), (2, 2, 20), (3, 0, 30), (4, 1, 40), (0, 2, 0)]


@pytest.mark.parametrize("score", [0, 0.012, 0.12])
def test_one_object_lost_of_many_is_no_difference(images, score):
    """A one-to-one head leaves a row of low score in its place."""
    assert compare(images, "detect", END2END_ROWS).frame().filter(output="objects")["objects"].to_list() == [5] * 14
    once = iter([True])
    result = compare(
        images,
        "detect",
        END2END_ROWS,
        lambda value, slot: lose_one(value, score) if slot == 2 and next(once, False) else None,
    )
    assert result.verdict == "agrees"
    assert result.frame().filter(output="objects")["difference"].sum() == pytest.approx(0.2)
    result = compare(images, "detect", END2END_ROWS, lambda value, slot: lose_one(value, score))
    assert result.verdict == "differs"
    assert set(result.frame().filter("differs")["output"]) == {"objects"}


def lose_one(outputs, score):
    outputs["output0"][0, 4] = score


def test_images_without_objects_tell_nothing(images):
    def change(outputs, slot):
        outputs["output0"][4:6] = 0.1

    with Painted("detect", DENSE, change=change) as engine, Painted("detect", DENSE, change=change) as reference:
        assert tk.verify(engine, images, onnx=reference).verdict == "can't tell"
    # What only the engine finds is a difference all the same.
    with Painted("detect", DENSE) as engine, Painted("detect", DENSE, change=change) as reference:
        assert tk.verify(engine, images, onnx=reference).verdict == "differs"


def test_a_registered_task_without_objects(images, monkeypatch):
    """Its outputs are compared as they are."""
    from trtkit.tasks.base import REGISTERED_TASKS, Prediction

    class Depth(get_task("detect").__class__):
        def postprocess(self, outputs, info, transforms, settings):
            return [Prediction(shape=transform.shape) for transform in transforms]

    monkeypatch.setitem(REGISTERED_TASKS, "depth", Depth)
    monkeypatch.setitem(LABEL_FORMATS, "depth", LABEL_FORMATS["detect"])
    monkeypatch.setitem(EXTRA, "depth", 0)
    output_format = OutputFormat(name="depth map")
    assert set(compare(images, "depth", output_format).frame()["output"]) == {"tensors"}
    result = compare(
        images, "depth", output_format, lambda outputs, slot: np.negative(outputs["output0"], outputs["output0"])
    )
    assert result.verdict == "differs"


@pytest.mark.parametrize("task", ["detect", "classify", "obb"])
def test_the_embedded_images_without_data(task):
    output_format = CLASS_SCORES if task == "classify" else DENSE
    with Painted(task, output_format, batch=40) as engine, Painted(task, output_format) as reference:
        result = tk.verify(engine, onnx=reference, eval_images=3)
    folder = demo.model_path().parent / task
    assert all(Path(path).is_relative_to(folder) for path in result.frame()["path"])
    # A batch larger than the images: all of its places are compared.
    assert result.frame().filter(output="logits")["batch"].to_list() == [1] * 3 + [40] * 40


def test_a_labeled_data_set_s_val_is_compared(tmp_path):
    """Its images are those that no scale was calibrated on."""
    data = drawn_set(tmp_path / "set", "detect", count=4)
    result = compare(data, "detect", DENSE)
    assert {Path(path).parent.name for path in result.frame()["path"]} == {"val"}


def test_progress_counts_every_image_of_every_batch(images):
    events = []
    with Painted("detect", DENSE) as engine, Painted("detect", DENSE) as reference:
        tk.verify(engine, images, onnx=reference, eval_images=6, progress=events.append)
    steps = [(event.done, event.total) for event in events if event.stage == "verify" and event.total]
    assert {total for _, total in steps} == {18}
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert max(done for done, _ in steps) <= 18

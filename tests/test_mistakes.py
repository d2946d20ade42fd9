"""Mistakes in data, output and settings end every verb before it works, and leave nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny_graphs
import yaml
from task_models import drawn_set, untrained

import trtkit as tk
from trtkit.errors import TrtkitError

LIMIT = 5.0
"""Seconds of CPU time; the first test also pays for imports."""

STAGES = {"load", "read the model's layers"}
"""Stages before any slow work."""


def rewrite(data: Path, **changes: Any) -> None:
    data.write_text(yaml.safe_dump({**yaml.safe_load(data.read_text()), **changes}))


def relabel(data: Path, row: str) -> None:
    for path in data.parent.glob("labels/val/*.txt"):
        path.write_text(row)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def occupy(path: Path) -> None:
    path.write_text("a file")


DATA: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "no data.yaml": (lambda data: data.unlink(), {}, "data-yaml-missing"),
    "no such split": (lambda data: None, {"split": "test"}, "data-split-missing"),
    "val: null": (lambda data: rewrite(data, val=None), {}, "data-split-missing"),
    "no folder of val": (lambda data: rewrite(data, val="images/other"), {}, "data-split-path-missing"),
    "no image in val": (lambda data: empty(data.parent / "images" / "val"), {}, "data-split-empty"),
    "no label of val": (lambda data: empty(data.parent / "labels" / "val"), {}, "data-labels-missing"),
    "too many classes": (lambda data: rewrite(data, names=["a", "b", "c"]), {}, "evaluate-classes-mismatch"),
    "labels of another task": (lambda data: relabel(data, "0 0.5 0.5\n"), {}, "evaluate-images-unreadable"),
    "labels in pixels": (lambda data: relabel(data, "0 50 50 20 20\n"), {}, "evaluate-images-unreadable"),
    "unknown class": (lambda data: relabel(data, "7 0.5 0.5 0.1 0.1\n"), {}, "evaluate-images-unreadable"),
    "damaged images": (
        lambda data: [path.write_bytes(b"no image") for path in data.parent.glob("images/val/*.png")],
        {},
        "evaluate-images-unreadable",
    ),
}
"""Mistakes in the evaluation data: what spoils it, settings, and the error's code."""

CALIBRATION: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "no image in train": (lambda data: empty(data.parent / "images" / "train"), {}, "data-split-empty"),
    "no folder of train": (lambda data: rewrite(data, train="images/other"), {}, "data-split-path-missing"),
    "no saved calibration": (lambda data: None, {"calibration": "no/folder"}, "result-missing"),
}

OUTPUT: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "output is a file": (lambda data: occupy(data.parent / "out"), {}, "output-parent-not-folder"),
    "output below a file": (
        lambda data: occupy(data.parent / "out"),
        {"output": lambda data: data.parent / "out" / "deep"},
        "output-parent-not-folder",
    ),
    "a comparison exists": (
        lambda data: [(data.parent / "out").mkdir(), occupy(data.parent / "out" / "comparison.json")],
        {},
        "comparison-exists",
    ),
    "a folder has a file's name": (
        lambda data: (data.parent / "out" / f"{untrained('detect').stem}-int8.onnx").mkdir(parents=True),
        {},
        "output-is-folder",
    ),
    "a name of 300 letters": (
        lambda data: None,
        {"output": lambda data: data.parent / ("x" * 300)},
        "output-name-too-long",
    ),
}

SETTINGS: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "no eval images": (lambda data: None, {"eval_images": 0}, "argument-invalid"),
    "an unknown precision": (lambda data: None, {"precisions": ("fp8",)}, "argument-invalid"),
    "an unknown device": (lambda data: None, {"device": "gpu0"}, "argument-invalid"),
    "an unknown backend": (lambda data: None, {"backend": "tflite", "build": False}, "backend-unknown"),
    "a batch of 0": (lambda data: None, {"batch": (1, 0)}, "argument-invalid"),
    "a size of 0": (lambda data: None, {"imgsz": 0}, "argument-invalid"),
    "an unknown node": (lambda data: None, {"keep": ["/model.99/*"]}, "keep-no-match"),
    "a missing candidate": (lambda data: None, {"candidates": {"qat": "no.onnx"}}, "model-file-missing"),
}

COMPARE = {**DATA, **CALIBRATION, **OUTPUT, **SETTINGS}


@pytest.fixture(scope="module")
def model() -> tk.Model:
    return untrained("detect")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return drawn_set(tmp_path / "set", "detect", count=3)


def refuse(call: Callable[..., Any], folder: Path, code: str, **settings: Any) -> None:
    """The call, and its plan, raise this error soon, without work or a new file."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    stages: list[str] = []
    start = time.process_time()
    with pytest.raises(TrtkitError) as caught:
        call(progress=lambda event: stages.append(event.stage), **settings)
    assert time.process_time() - start < LIMIT
    assert caught.value.code == code, caught.value
    assert set(stages) <= STAGES
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("mistake", COMPARE)
def test_compare(mistake: str, model: tk.Model, data: Path, tmp_path: Path) -> None:
    spoil, settings, code = COMPARE[mistake]
    spoil(data)
    settings = {name: value(data) if callable(value) else value for name, value in settings.items()}
    settings = {"output": data.parent / "out", "build": False, **settings}
    refuse(lambda **given: tk.compare(model, data, **given), tmp_path, code, **settings)
    with pytest.raises(TrtkitError) as planned:
        tk.plan(tk.compare, model, data, **settings)
    assert planned.value.code == code


TUNING = {
    "evaluate_int8": {**DATA, **CALIBRATION},
    "search": {**DATA, **CALIBRATION, "an unknown backend": SETTINGS["an unknown backend"]},
    "sensitivity": {**DATA, **CALIBRATION},
    "sweep": {**DATA, **{name: CALIBRATION[name] for name in ("no image in train", "no folder of train")}},
}


@pytest.mark.parametrize(("verb", "mistake"), [(verb, name) for verb, cases in TUNING.items() for name in cases])
def test_tuning(verb: str, mistake: str, model: tk.Model, data: Path, tmp_path: Path) -> None:
    spoil, settings, code = TUNING[verb][mistake]
    spoil(data)
    settings = {name: value for name, value in settings.items() if name != "build"}
    settings["cache_dir"] = tmp_path / "cache"
    refuse(lambda **given: getattr(tk, verb)(model, data, **given), tmp_path, code, **settings)


@pytest.mark.parametrize("verb", ["evaluate_int8", "search", "sweep"])
def test_keep_is_checked_before_calibration(verb: str, model: tk.Model, data: Path, tmp_path: Path) -> None:
    refuse(lambda **given: getattr(tk, verb)(model, data, **given), tmp_path, "keep-no-match", keep=["/model.99/*"])


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"int8": True, "keep": ["/model.99/*"]}, "keep-no-match"),
        ({"half": True, "keep": ["/model.99/*"], "nms": True}, "keep-no-match"),
        ({"int8": True, "calibration": "no/folder", "data": None}, "result-missing"),
        ({"int8": True, "data": "missing.yaml"}, "data-yaml-missing"),
        ({"half": True, "data": "missing.yaml"}, "data-yaml-missing"),
        ({"half": True, "int8": True}, "recipe-two-precisions"),
        ({"device": "gpu0"}, "argument-invalid"),
        ({"backend": "tflite"}, "backend-unknown"),
        ({"int8": True, "output": "set"}, "output-is-folder"),
        ({"int8": True, "output": "set/data.yaml"}, "output-exists"),
    ],
)
def test_export(
    settings: dict[str, Any], code: str, model: tk.Model, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"data": data, "output": tmp_path / "a.onnx", **settings}
    refuse(lambda **given: tk.export(model, "onnx", **given), tmp_path, code, **settings)


@pytest.mark.parametrize("precision", ["int8", "half"])
def test_export_of_a_file_of_fixed_shape(precision: str, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    onnx.save(tiny_graphs.detector(), path)
    rewrite(data, names=dict(tiny_graphs.NAMES))
    for settings in ({"batch": 4, "dynamic": False}, {"dynamic": True}, {"imgsz": 96, "dynamic": False}):
        refuse(
            lambda **given: tk.export(path, "onnx", data=data, **given),
            tmp_path,
            "onnx-shape-fixed",
            output=tmp_path / "out.onnx",
            **{precision: True},
            **settings,
        )


@pytest.mark.parametrize("mistake", ["no data.yaml", "no such split", "no image in train"])
def test_calibrate(mistake: str, model: tk.Model, data: Path, tmp_path: Path) -> None:
    spoil, settings, code = {**DATA, **CALIBRATION}[mistake]
    spoil(data)
    refuse(lambda **given: tk.calibrate(model, data, **given), tmp_path, code, **settings)


@pytest.mark.parametrize("value", [None, 5, 0.5, b"set", [], [None], {"a": 1}])
def test_data_of_another_type(value: Any, model: tk.Model, tmp_path: Path) -> None:
    for verb in ("calibrate", "compare", "evaluate_int8", "search", "sensitivity", "sweep"):
        if (verb, value) != ("calibrate", None):
            settings = {"output": tmp_path / "out"} if verb == "compare" else {}
            with pytest.raises(TrtkitError) as caught:
                getattr(tk, verb)(model, value, **settings)
            assert caught.value.code.startswith("data-"), (verb, caught.value)

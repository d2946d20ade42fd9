"""compare(candidates=): files and models of other makers beside the precisions, on the same images."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
import task_models
import tiny_graphs
import two_heads
from onnx import numpy_helper
from raising import raises

import trtkit as tk
from trtkit.backends.ort import OrtRunner
from trtkit.cli import parse_command
from trtkit.comparison.candidates import load_candidates
from trtkit.comparison.comparison import Comparison
from trtkit.errors import (
    BuildError,
    CalibrationError,
    CapabilityError,
    EngineError,
    OnnxError,
    RecipeError,
    TrtkitError,
)
from trtkit.models import load
from trtkit.models.model import END2END_ROWS

SMALL = {"imgsz": 96, "eval_images": 3, "runs": 2, "seconds": 0.05, "build": False, "precisions": ("fp32",)}


def compare(folder, candidates, **settings):
    return tk.compare(
        tk.demo.model_path(), tk.demo.data_path(), candidates=candidates, output=folder, **{**SMALL, **settings}
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An INT8 file, an FP16 file, and NMS in the graph, of the embedded model."""
    folder, model = tmp_path_factory.mktemp("candidates"), load(tk.demo.model_path())
    shared = {"format": "onnx", "imgsz": 96}
    calibration = tk.calibrate(model, tk.demo.data_path(), calibration_images=2, imgsz=96)
    return {
        "qat": tk.export(model, int8=True, calibration=calibration, output=folder / "qat.onnx", **shared),
        "half": tk.export(model, half=True, output=folder / "half.onnx", **shared).path,
        "nms": load(tk.export(model, nms=True, output=folder / "nms.onnx", **shared).path),
    }


@pytest.fixture(scope="module")
def comparison(files, tmp_path_factory):
    return compare(tmp_path_factory.mktemp("compare") / "out", files)


def test_candidates_have_rows_of_their_own(comparison, files):
    assert comparison.rows["precision"].to_list() == ["fp32", "qat", "half", "nms"]
    for column in ("mAP50-95(B)", "delta mAP50-95(B)", "delta mAP50-95(B) low", "mean_ms", "onnx_mb"):
        assert comparison.rows[column].null_count() == (column.endswith("low")), column
    assert comparison.about["candidates"]["qat"] == {
        "source": str(files["qat"].path),
        "precision": "int8",
        "output_format": "dense",
        "placement": [],
    }
    assert {name: facts["precision"] for name, facts in comparison.about["candidates"].items()} == {
        "qat": "int8",
        "half": "fp16",
        "nms": "fp32",
    }
    assert comparison.about["candidates"]["nms"]["output_format"] == "nms_rows"


def test_a_candidate_is_measured_as_evaluate_does(comparison, files):
    alone = tk.evaluate(files["qat"], tk.demo.data_path(), eval_images=SMALL["eval_images"])
    row = comparison.rows.filter(precision="qat").row(0, named=True)
    assert {name: row[name] for name in alone.metrics} == pytest.approx(dict(alone.metrics))
    assert comparison.evaluation("qat").per_image["path"].equals(comparison.evaluation("fp32").per_image["path"])


def test_scales_of_a_candidate_are_kept(comparison, files):
    def scales(path):
        graph = onnx.load(path).graph
        return {t.name: numpy_helper.to_array(t).tolist() for t in graph.initializer if t.name.endswith("_scale")}

    written = comparison.about["files"]["qat"]["onnx"]
    assert scales(written) == scales(files["qat"].path) != {}


def test_candidates_are_in_figures_report_and_verdict(comparison, tmp_path):
    findings = " ".join(comparison.findings())
    for name in ("qat", "half", "nms"):
        assert f"{name} " in findings
        assert name in {trace.name for trace in comparison.plot_losses().data}
        assert name in comparison.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "QAT" not in findings
    assert comparison.losses()["precision"].unique(maintain_order=True).to_list() == ["qat", "half", "nms"]


def test_a_comparison_with_candidates_is_saved_and_repeated(comparison, files):
    folder = comparison.provenance.settings["output"]
    again = Comparison.load(folder)
    assert again.rows.equals(comparison.rows)
    assert again.about["candidates"] == comparison.about["candidates"]
    with again.open("nms") as runner:
        assert runner.info.nms
    calls: dict[str, object] = {}
    fake = type("tk", (), {"compare": staticmethod(lambda **given: calls.update(given))})
    exec(comparison.about["python"].replace("import trtkit as tk", ""), {"tk": fake})
    nms = files["nms"].source
    assert calls["candidates"] == {"qat": str(files["qat"].path), "half": str(files["half"]), "nms": str(nms)}
    words = comparison.about["command"].split()
    assert f"--candidate=nms={nms}" in words
    assert parse_command(words[1:])[1].candidates == calls["candidates"]
    json.dumps(comparison.about)


# Refused before any work.


@pytest.fixture
def reference():
    return load(tiny_graphs.detector())


def read(candidates, reference, **settings):
    shared = {"imgsz": (32, 32), "batch": 1, "dynamic": False, "simplify": True, **settings}
    return load_candidates(
        candidates, reference, settings=shared, builds=False, why_no_engines="no GPU was found", device=None
    )


@pytest.mark.parametrize("name", ["int8", "FP16", "", "a/b", "-x"])
def test_names_that_can_not_be_used(name, reference):
    with raises(RecipeError, "candidate-name-invalid", name=name):
        read({name: reference}, reference)


def test_a_candidate_of_another_task_classes_or_size(reference):
    classifier = load(tk.demo.model_path("classify"))
    with raises(RecipeError, "candidate-task-mismatch", value="classify", expected="detect"):
        read({"other": classifier}, reference)
    with raises(RecipeError, "candidate-names-mismatch", names=3):
        read({"other": load(tiny_graphs.detector(describe=False), task="detect")}, reference)
    with raises(OnnxError, "onnx-shape-fixed"):
        read({"large": load(tiny_graphs.detector(size=(64, 64)))}, reference)
    with raises(OnnxError, "onnx-shape-fixed"):
        read({"static": load(tiny_graphs.detector())}, reference, batch=2)


def test_a_file_that_does_not_exist_or_does_not_run_here(tmp_path, reference):
    with raises(OnnxError, "model-file-missing"):
        read({"x": tmp_path / "x.onnx"}, reference)
    (tmp_path / "x.engine").write_bytes(b"ftrt" + bytes(2000))
    with pytest.raises((EngineError, CapabilityError)) as caught:
        compare(tmp_path / "out", {"theirs": tmp_path / "x.engine"})
    assert isinstance(caught.value, TrtkitError)
    assert caught.value.code != "error"
    assert not (tmp_path / "out").exists()


def test_qdq_that_can_not_be_built(reference):
    asymmetric = tiny_graphs.detector("int8")
    next(t for t in asymmetric.graph.initializer if t.name == "images_zero").CopyFrom(
        numpy_helper.from_array(np.array(4, np.int8), "images_zero")
    )
    candidate = {"theirs": load(asymmetric)}
    with pytest.warns(UserWarning, match="zero points"):
        assert len(read(candidate, reference)["theirs"].placement) == 1
    shared = {"imgsz": (32, 32), "batch": 1, "dynamic": False, "simplify": True}
    with raises(BuildError, "qdq-not-buildable"):
        load_candidates(candidate, reference, settings=shared, builds=True, why_no_engines="", device=None)


def test_a_quantized_model_is_compared_in_int8_only(tmp_path):
    model = load(tiny_graphs.detector("int8"))
    with raises(RecipeError, "compare-model-quantized"):
        tk.compare(model, tk.demo.data_path(), output=tmp_path / "out", build=False)
    with raises(CalibrationError, "calibration-model-quantized"):
        tk.calibrate(model, tk.demo.data_path())
    assert not (tmp_path / "out").exists()


def test_a_file_without_metadata_takes_task_and_names_of_the_model(tmp_path, reference):
    """ModelOpt writes such files."""
    onnx.save(tiny_graphs.detector("int8", describe=False), tmp_path / "qat.onnx")
    candidate = read({"qat": tmp_path / "qat.onnx"}, reference)["qat"]
    assert (candidate.info.task, candidate.info.names) == (reference.task, reference.names)
    assert candidate.precision == "int8"
    others = dataclasses.replace(reference, names={0: "a", 1: "b"})
    with raises(OnnxError, "model-names-mismatch", names=2):
        read({"qat": tmp_path / "qat.onnx"}, others)


@pytest.mark.parametrize("name", ["tiny-qat.onnx", "tiny-fp32.onnx"])
def test_a_candidate_is_not_overwritten(tmp_path, tmp_path_factory, reference, name):
    data = task_models.drawn_set(tmp_path_factory.mktemp("set"), "detect", count=2)
    reference = dataclasses.replace(reference, source=Path("tiny.onnx"))
    path = tmp_path / name
    onnx.save(tiny_graphs.detector("int8"), path)
    before = path.read_bytes()
    for candidate in (path, load(path)):
        with raises(RecipeError, "candidate-file-overwritten", name="qat", path=str(path)):
            tk.compare(
                reference,
                data,
                ["fp32"],
                candidates={"qat": candidate},
                build=False,
                output=tmp_path,
                imgsz=32,
            )
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == before


class Engine(OrtRunner):
    """A stand-in for TensorRT: a graph, with a GPU clock."""

    engine = True

    def __init__(self, source) -> None:
        super().__init__(source)
        self.name = "TensorRT 0.0 of this test"

    def measure_gpu_times(self, feeds, runs):
        return [1.5] * runs


def test_an_engine_of_another_maker(tmp_path, reference, monkeypatch):
    from trtkit import backends

    path = tmp_path / "theirs.engine"
    path.write_bytes(tiny_graphs.detector("int8").SerializeToString())
    opened = []

    def open_fake(path, device=None):
        opened.append(path)
        return Engine(tiny_graphs.detector("int8"))

    monkeypatch.setattr(backends, "open", open_fake)
    with raises(CapabilityError, "candidate-engine-alone", name="theirs"):
        read({"theirs": path}, reference)
    shared = {"imgsz": (32, 32), "batch": 1, "dynamic": False, "simplify": True}
    candidates = load_candidates(
        {"theirs": path}, reference, settings=shared, builds=True, why_no_engines="", device=None
    )
    engine = candidates["theirs"].engine
    assert (engine.path, engine.format, engine.precision) == (path, "engine", "int8")
    assert candidates["theirs"].facts()["output_format"] == "dense"
    with raises(RecipeError, "candidate-shape-mismatch", imgsz=(32, 32)):
        read({"theirs": path}, reference, imgsz=(64, 64))
    with raises(RecipeError, "candidate-shape-mismatch", batch=1):
        read({"theirs": path}, reference, batch=8)


def test_a_foreign_engine_has_no_onnx_file_and_was_not_built_here(comparison, files):
    from trtkit.comparison.findings import describe_findings

    rows = comparison.rows.with_columns(onnx_mb=None, engine_mb=2.0, engine=True).filter(precision="qat")
    rows = (
        comparison.rows.filter(precision="fp32")
        .with_columns(engine_mb=3.0, engine=True)
        .vstack(rows.cast(comparison.rows.with_columns(engine_mb=3.0).schema))
    )
    about = {**comparison.about, "builder": "TensorRT 10.1", "target": "sm90"}
    text = " ".join(describe_findings(rows, about))
    assert "TensorRT 10.1 built the FP32 engines for sm90" in text
    assert "engines: FP32 3.0 MB, qat 2.0 MB" in text


@pytest.mark.parametrize("words", [["x"], ["x="], ["=y"], ["x=a", "x=b"]])
def test_the_command_line_refuses_other_forms(words, capsys):
    options = [f"--candidate={word}" for word in words]
    with pytest.raises(SystemExit):
        parse_command(["compare", "a.pt", "b.yaml", *options])
    assert "--candidate" in capsys.readouterr().err


def test_the_other_head_of_a_checkpoint_is_repeated_by_python_alone():
    """A file name alone would load the default head."""
    from trtkit.comparison.comparator import _describe_candidate, _without_expressions

    head = dataclasses.replace(load(tiny_graphs.detector()), source=Path("yolo26n.pt"), output_format=END2END_ROWS)
    text = _describe_candidate(head)
    assert repr({"end2end": text}) == "{'end2end': tk.load('yolo26n.pt', end2end=True)}"
    plain = {"candidates": {"end2end": text, "qat": "qat.onnx"}}
    assert _without_expressions(plain) == {"candidates": {"qat": "qat.onnx"}}


def test_a_comparison_of_the_one_to_one_head_repeats_with_that_head(tmp_path):
    model = dataclasses.replace(two_heads.make_model(two_heads.yolo26("detect"), end2end=True), source=Path("y 26.pt"))
    data = task_models.drawn_set(tmp_path / "set", "detect", count=2)
    found = tk.compare(
        model, data, precisions=("fp32",), build=False, runs=2, seconds=0.05, output=tmp_path / "out"
    )  # fmt: skip
    assert "model=tk.load('y 26.pt', end2end=True)" in found.about["python"]
    _, values = parse_command(shlex.split(found.about["command"])[1:])
    assert (values.model, values.end2end) == ("y 26.pt", True)

"""Deployment folders of small models of every task: each proves itself without trtkit, and not with another model."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import deploy_samples
import numpy as np
import onnx
import pytest
import tiny_graphs
from fake_triton import fresh_modules
from onnx import TensorProto, helper, numpy_helper
from raising import raises

import trtkit as tk
from trtkit.backends import wrap_engine
from trtkit.backends.engine_file import Passport
from trtkit.cli import main
from trtkit.deployment import Target, list_targets, register_target
from trtkit.deployment.target import TARGETS
from trtkit.errors import (
    CapabilityError,
    DataError,
    EngineError,
    OnnxError,
    OutputError,
    OutputExistsError,
    RecipeError,
)
from trtkit.files import hash_file, hash_parts
from trtkit.graph.onnx_file import update_metadata
from trtkit.models import Preprocess

SIZE = 64

# One process, because importing ONNX Runtime takes longer than the checks; each check runs in a copy of it that has no
# modules of another folder.
DRIVER = """
import os, runpy, sys
import cv2, numpy, onnxruntime
sys.modules["trtkit"] = None  # an import of it fails
for folder in sys.argv[1:]:
    if os.fork() == 0:
        os.chdir(folder)
        sys.path.insert(0, folder)
        runpy.run_path("check.py", run_name="__main__")
    _, status = os.wait()
    print("==", os.waitstatus_to_exitcode(status), folder, flush=True)
"""


def run_checks(folders: list[Path]) -> list[tuple[int, str]]:
    """Exit status and output of the `check.py` of each folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, folders)],
        capture_output=True,
        text=True,
        env=environment,
        cwd="/",
        check=True,
    )
    blocks = done.stdout.split("== ")
    return [(int(line.split()[0]), block) for block, line in itertools.pairwise(blocks)]


@pytest.fixture(scope="module")
def folders(files: Any, samples: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    root = tmp_path_factory.mktemp("deployed")
    return {
        case: tk.deploy(path, "onnxruntime", root / path.stem, conf=0.01, samples=samples).folder
        for case, path in files.items()
    }


def test_every_folder_proves_itself_without_the_package(folders: dict[tuple[str, bool], Path]) -> None:
    for (code, text), (task, _) in zip(run_checks(list(folders.values())), folders, strict=True):
        assert code == 0, text
        assert text.count("as expected") == 3, text
        # A check that expects nothing would prove nothing.
        assert task == "classify" or " 0 objects" not in text, text


def test_an_int8_graph_runs_as_written(samples: Any, tmp_path: Path) -> None:
    """ONNX Runtime would fuse it into integer kernels, which give other values."""
    path = tmp_path / "int8.onnx"
    onnx.save(tiny_graphs.detector("int8", dynamic=True, width=32), path)
    folder = tk.deploy(path, "onnxruntime", conf=0.1, samples=samples).folder
    values = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    with tk.open(path) as runner:
        expected = runner.infer(values)["output0"]
    for modules in fresh_modules(folder, "yolo", "infer"):
        infer = modules["infer"]
        np.testing.assert_array_equal(infer.open_model(folder)(values)["output0"], expected)
        # So small a graph is equal by chance in the integer kernels too.
        options = infer.session_options("cpu", {"precision": "int8"})
        assert options.get_session_config_entry("session.disable_quant_qdq") == "1"


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_models_of_other_channels_prove_themselves_too(tmp_path: Path, channels: int) -> None:
    proto = tiny_graphs.detector(describe=False)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "stem.weight")
    wide = np.tile(numpy_helper.to_array(weight), (1, 3, 1, 1))[:, :channels]
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(wide), weight.name))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = channels
    info = tiny_graphs.info(preprocess=Preprocess(channels=channels))
    update_metadata(proto, info.to_metadata(), {})
    onnx.save(proto, tmp_path / "model.onnx")
    images = []
    for number in range(2):
        array = np.random.default_rng(number).integers(0, 256, (50, 60, channels), np.uint8)
        images.append(tmp_path / f"{number}.npy")
        np.save(images[-1], array)
    for target in ("onnxruntime", "trtexec"):
        folder = tk.deploy(tmp_path / "model.onnx", target, tmp_path / target, conf=0.05, samples=images).folder
        ((code, text),) = run_checks([folder])
        assert code == 0, text
        assert text.count("objects as expected") == 2
        assert " 0 objects" not in text


def test_the_main_output_is_that_of_the_package(samples: Any, tmp_path: Path) -> None:
    """Another exporter's file may have further outputs before it."""
    proto = tiny_graphs.detector()
    proto.graph.node.append(helper.make_node("Unsqueeze", ["output0", "first"], ["features"], "features"))
    proto.graph.node.append(helper.make_node("ReduceMax", ["output0"], ["best"], "best", axes=[1], keepdims=0))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "first"))
    proto.graph.output.insert(0, helper.make_tensor_value_info("best", TensorProto.FLOAT, [1, 256]))
    proto.graph.output.insert(0, helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 1, 7, 256]))
    onnx.save(proto, tmp_path / "model.onnx")
    folder = tk.deploy(tmp_path / "model.onnx", "onnxruntime", tmp_path / "out", conf=0.1, samples=samples).folder
    assert json.loads((folder / "model.json").read_text())["outputs"]["main"] == "output0"
    ((code, text),) = run_checks([folder])
    assert code == 0, text


def test_an_engine_without_weights_is_refused(tmp_path: Path) -> None:
    path = deploy_samples.write_foreign_engine(tmp_path, weights="stripped")
    with raises(RecipeError, "deploy-weights-stripped"):
        tk.deploy(path, "cpp", tmp_path / "out", reference=deploy_samples.write_onnx(tmp_path))


def test_another_model_file_is_named(folders: dict[tuple[str, bool], Path], tmp_path: Path) -> None:
    copies = []
    for folder in list(folders.values())[:3]:
        copy = tmp_path / folder.name
        copy.mkdir()
        for path in folder.rglob("*"):
            if path.is_file():
                target = copy / path.relative_to(folder)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(path.read_bytes())
        copies.append(copy)
    (copies[0] / "model.onnx").write_bytes((folders["classify", False] / "model.onnx").read_bytes())
    (copies[1] / "model.onnx").unlink()
    # The right file, and an expectation that it does not meet.
    expected = json.loads((copies[2] / "samples" / "expected.json").read_text())
    for row in expected["images"]:
        row["scores"] = [score + 0.1 for score in row["scores"]]
    (copies[2] / "samples" / "expected.json").write_text(json.dumps(expected))
    results = run_checks(copies)
    assert [code for code, _ in results] == [1, 1, 1]
    for (_, text), words in zip(results, ("is not the file", "is missing", "a score of class"), strict=True):
        assert words in text


def test_the_description_says_what_the_model_takes_and_gives(folders: dict[tuple[str, bool], Path]) -> None:
    for (task, dynamic), folder in folders.items():
        model = json.loads((folder / "model.json").read_text())
        lead, side = (-1, -1) if dynamic else (2, SIZE)
        assert model["task"] == task
        assert model["input"]["shape"] == [lead, 3, side, side]
        assert (model["input"]["imgsz"], model["input"]["batch"]) == ([SIZE, SIZE], None if dynamic else 2)
        shapes = {one["name"]: one["shape"] for one in model["outputs"]["tensors"]}
        last = 2 if task == "classify" else -1 if dynamic else 84  # 64 + 16 + 4 anchors
        assert shapes[model["outputs"]["main"]][-1] == last
        assert (model["outputs"]["prototypes"] is not None) == (task == "segment")
        assert model["file"]["sha256"] == hash_file(folder / "model.onnx")
        readme = (folder / "README.md").read_text()
        assert all(f"`{name}`" in readme for name in ("model.onnx", "infer.py", "check.py"))


def test_several_files_side_by_side(files: Any, samples: Any, tmp_path: Path) -> None:
    paths = [files["detect", False], files["pose", False]]
    metrics = {"AP": 0.5, "recall": float("nan")}
    deployed = tk.deploy(paths, "onnxruntime", tmp_path / "both", samples=samples, conf=0.01, metrics=metrics)
    assert {name.split("/")[0] for name in deployed.files} == {"README.md", "detect", "pose"}
    assert json.loads((tmp_path / "both" / "pose" / "model.json").read_text())["metrics"] == {
        "AP": 0.5,
        "recall": None,
    }


def test_an_existing_folder_is_kept_or_replaced(files: Any, samples: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with raises(OutputExistsError, "output-exists", path=str(tmp_path / "out")):
        tk.deploy(files["classify", False], "onnxruntime", tmp_path / "out", samples=samples)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    # An earlier deployment is replaced as a whole; a file that was put into it goes with it.
    (tmp_path / "out" / "samples").mkdir()
    (tmp_path / "out" / "samples" / "expected.json").touch()
    tk.deploy(files["classify", False], "onnxruntime", tmp_path / "out", samples=samples, overwrite=True)
    assert not (tmp_path / "out" / "notes.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("content", ["thesis.tex", "deep/thesis.tex", "check.py", "scripts/check.py"])
def test_a_folder_of_other_files_is_never_replaced(files: Any, tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine" / content
    path.parent.mkdir(parents=True)
    path.write_text("years of work")
    with raises(OutputExistsError, "deploy-folder-foreign", path=str(tmp_path / "mine")):
        tk.deploy(files["detect", False], "onnxruntime", tmp_path / "mine", overwrite=True)
    assert path.read_text() == "years of work"


def test_the_folder_of_the_model_and_a_file_are_never_replaced(files: Any, tmp_path: Path) -> None:
    model = tmp_path / "out" / "model.onnx"
    model.parent.mkdir()
    model.write_bytes(files["detect", False].read_bytes())
    (model.parent / "samples").mkdir()
    (model.parent / "samples" / "expected.json").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("missing")
    for path in (model.parent, tmp_path / "file", tmp_path / "link"):
        with raises(OutputExistsError, "output-exists"):
            tk.deploy(model, "onnxruntime", path)
        with raises(OutputExistsError, "deploy-folder-foreign"):
            tk.deploy(model, "onnxruntime", path, overwrite=True)
    assert model.exists()


def test_the_current_folder_is_never_replaced(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "serving").mkdir()
    monkeypatch.chdir(tmp_path / "serving")
    for output in (".", "../serving", tmp_path / "serving"):
        with raises(OutputExistsError, "deploy-folder-foreign"):
            tk.deploy(files["detect", False], "onnxruntime", output, overwrite=True)


def test_what_detects_nothing_is_said(files: Any, samples: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="detects nothing"):
        tk.deploy(files["detect", False], "onnxruntime", tmp_path / "out", conf=0.999, samples=samples)


def engine(path: Path, **changes: Any) -> Path:
    """An engine file that no TensorRT reads, for this or another machine."""
    plan = b"ptrt" + bytes(60)
    facts = {"backend": "tensorrt", "tensorrt": "8.6.0", "sm": "sm90", "model_hash": "ab" * 32} | changes
    passport = Passport(plan_hash=hash_parts(plan), plan_size=len(plan), imgsz=(32, 32), **facts)
    (path.parent / "plan").write_bytes(plan)
    return wrap_engine(path.parent / "plan", path, tiny_graphs.info(), passport)


def test_mistakes_end_before_the_work(files: Any, samples: Any, tmp_path: Path) -> None:
    path = files["classify", False]
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    cases: list[tuple[type, str, Any]] = [
        (RecipeError, "deploy-target-unknown", lambda: tk.deploy(path, "tflite")),
        (RecipeError, "deploy-format-unsupported", lambda: tk.deploy(path, "python")),
        (RecipeError, "deploy-format-unsupported", lambda: tk.deploy("a.pt", "triton")),
        (RecipeError, "deploy-names-collide", lambda: tk.deploy([path, path], "triton")),
        (RecipeError, "deploy-no-file", lambda: tk.deploy([], "triton")),
        (OnnxError, "model-file-missing", lambda: tk.deploy(tmp_path / "no.onnx", "triton")),
        (OnnxError, "onnx-damaged", lambda: tk.deploy(tmp_path / "bad.onnx", "triton")),
        (EngineError, "engine-not-found", lambda: tk.deploy(tmp_path / "no.engine", "triton")),
        (OutputError, "output-name-too-long", lambda: tk.deploy(path, "triton", tmp_path / ("n" * 300))),
        (DataError, "image-unreadable", lambda: tk.deploy(path, "triton", tmp_path / "out", samples=["no.jpg"])),
    ]
    for kind, code, call in cases:
        with raises(kind, code):
            call()
    assert main(["deploy", "triton", str(path), "--output", str(tmp_path / "file" / "x")]) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_names_the_folder_and_writes_nothing(files: Any, tmp_path: Path) -> None:
    plan = tk.plan(tk.deploy, files["pose", True], "triton", tmp_path / "out")
    assert plan.files == (tmp_path / "out",)
    assert plan.images == {"sample": 3}
    assert not list(tmp_path.iterdir())


def test_an_engine_of_another_machine_takes_its_expectations_from_the_graph(tmp_path: Path) -> None:
    path = engine(tmp_path / "model.engine")
    onnx.save(tiny_graphs.detector(), tmp_path / "graph.onnx")
    onnx.save(tiny_graphs.detector(seed=1, describe=False), tmp_path / "other.onnx")
    with raises(CapabilityError, "deploy-reference-missing", path=str(path)):
        tk.deploy(path, "python")
    folder = tk.deploy(path, "python", conf=0.1, reference=tmp_path / "graph.onnx").folder
    assert folder == tmp_path / "model-python"
    assert (folder / "model.engine").read_bytes() == path.read_bytes()
    expected = json.loads((folder / "samples" / "expected.json").read_text())
    assert expected["tolerance"] == {"box": 0.5, "score": 0.03}
    model = json.loads((folder / "model.json").read_text())
    assert model["passport"]["tensorrt"] == "8.6.0"
    assert model["input"]["name"] == "images"
    other = engine(tmp_path / "other.engine", model_hash="cd" * 32)
    with raises(RecipeError, "deploy-reference-mismatch", expected="cd" * 32):
        tk.deploy(other, "python", reference=tmp_path / "graph.onnx")


def test_engines_of_tensorrt_rtx_go_where_its_runtime_is(tmp_path: Path) -> None:
    path = engine(tmp_path / "model.engine", backend="tensorrt_rtx", tensorrt="1.7.1", sm="sm89")
    onnx.save(tiny_graphs.detector(), tmp_path / "graph.onnx")
    for target in ("cpp", "deepstream"):
        with raises(RecipeError, "deploy-backend-unsupported", backend="tensorrt_rtx"):
            tk.deploy(path, target, reference=tmp_path / "graph.onnx")
    readme = {}
    for target in ("python", "triton"):
        folder = tk.deploy(path, target, tmp_path / target, conf=0.1, reference=tmp_path / "graph.onnx").folder
        readme[target] = (folder / "README.md").read_text()
    assert "Needs TensorRT-RTX 1.7.1 and" in readme["python"]
    assert "tensorrt_rtx in its environment" in readme["triton"]
    assert "models-native" not in readme["triton"]
    assert not (tmp_path / "triton" / "models-native").exists()
    other = engine(tmp_path / "other.engine", backend="tensorrt_rtx", tensorrt="1.7.1", sm="sm89")
    both = tk.deploy([path, other], "triton", tmp_path / "both", conf=0.1, reference=tmp_path / "graph.onnx")
    assert {"models/model/config.pbtxt", "models/other/config.pbtxt"} <= set(both.files)


@pytest.mark.parametrize("weights", ["large.bin", "weights/large.bin"])
def test_weights_in_a_second_file_come_along(samples: Any, tmp_path: Path, weights: str) -> None:
    source = tmp_path / "source"
    (source / weights).parent.mkdir(parents=True)
    proto = tiny_graphs.detector(width=64)
    onnx.save(proto, source / "large.onnx", save_as_external_data=True, location=weights, size_threshold=1000)
    for target, place in (("onnxruntime", ""), ("triton", "models/large/1/")):
        deployed = tk.deploy(source / "large.onnx", target, tmp_path / target, conf=0.5, samples=samples)
        assert {f"{place}model.onnx", f"{place}{weights}"} <= set(deployed.files)
        assert (weights in deployed.files) == (target == "onnxruntime")
    assert not (tmp_path / "triton" / "weights").exists()
    assert run_checks([tmp_path / "onnxruntime"])[0][0] == 0


def test_a_registered_target_is_one(files: Any, samples: Any, tmp_path: Path) -> None:
    def write(bundle: Any, folder: Path) -> list[str]:
        (folder / "run.txt").write_text(bundle.precision)
        return ["Read run.txt."]

    register_target(Target(name="paper", formats=("onnx",), write=write))
    try:
        assert "paper" in list_targets()
        assert main(["deploy", "paper", str(files["obb", False]), "--output", str(tmp_path / "out")]) == 0
    finally:
        del TARGETS["paper"]
    assert (tmp_path / "out" / "run.txt").read_text() == "fp32"
    assert "Read run.txt." in (tmp_path / "out" / "README.md").read_text()

"""TensorFlow folders, on stand-ins for TensorFlow and onnx2tf."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import deploy_samples as samples
import onnx
import pytest
import tiny_graphs
from raising import raises
from task_models import untrained

import trtkit as tk
from trtkit.errors import RecipeError
from trtkit.graph.fp16 import has_fp16

FAKE = Path(__file__).parent.parent / "support" / "fake_tensorflow"


def run(folder: Path, program: str, *, fake: bool) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if fake:
        environment["PYTHONPATH"] = str(FAKE)
    return subprocess.run([sys.executable, program], capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("tensorflow")
    return tk.deploy(samples.write_onnx(base, dynamic=True), "tensorflow", base / "folder", conf=0.3).folder


def test_without_tensorflow_the_check_takes_the_stored_outputs(folder):
    done = run(folder, "check.py", fake=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the stored outputs" in done.stdout
    assert done.stdout.count("as expected") == 3


def test_the_saved_model_gives_the_expected_detections(folder):
    done = run(folder, "convert.py", fake=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (folder / "saved_model").iterdir()) == ["model.sha256", "saved_model.pb"]
    # The model's sizes are open, the SavedModel's fixed.
    shape = onnx.load(folder / "model-tf.onnx").graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [1, 3, 32, 32]
    done = run(folder, "check.py", fake=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stored" not in done.stdout
    assert done.stdout.count("as expected") == 3
    (folder / "saved_model" / "model.sha256").write_text("0" * 64)
    done = run(folder, "check.py", fake=True)
    assert (done.returncode, "run python convert.py" in done.stderr) == (1, True)
    (folder / "model.onnx").write_bytes(tiny_graphs.detector(seed=1).SerializeToString())
    assert "is not the file" in run(folder, "convert.py", fake=True).stderr
    done = run(folder, "check.py", fake=True)
    assert (done.returncode, "SHA-256" in done.stdout) == (1, True)


def test_mask_prototypes_come_with_channels_last(tmp_path):
    path = tmp_path / "segment.onnx"
    tk.export(untrained("segment"), format="onnx", imgsz=64, output=path)
    folder = tk.deploy(path, "tensorflow", tmp_path / "folder", conf=0.01).folder
    assert run(folder, "convert.py", fake=True).returncode == 0
    done = run(folder, "check.py", fake=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_onnx2tf_the_conversion_says_what_to_install(folder):
    done = run(folder, "convert.py", fake=False)
    assert (done.returncode, "pip install onnx2tf" in done.stderr) == (1, True)


@pytest.mark.parametrize(("precision", "source"), [("fp32", "model.onnx"), ("fp16", "model-tf.onnx")])
def test_the_conversion_takes_fixed_sizes_in_fp32(tmp_path, precision, source):
    path = samples.write_onnx(tmp_path, f"{precision}.onnx", precision=precision)
    folder = tk.deploy(path, "tensorflow", tmp_path / "folder", conf=0.3).folder
    assert json.loads((folder / "model.json").read_text())["tensorflow"]["source"] == source
    assert not has_fp16(onnx.load(folder / source))


def test_int8_is_refused(tmp_path):
    path = samples.write_onnx(tmp_path, precision="int8")
    with raises(RecipeError, "deploy-tensorflow-int8", path=str(path)):
        tk.deploy(path, "tensorflow", tmp_path / "folder")

"""trtexec folders: the right command for each TensorRT, and a check that runs the plan or takes the stored outputs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import deploy_samples as samples
import numpy as np
import onnx
import pytest
import tiny_graphs

import trtkit as tk
from trtkit.backends.trt.network import find_kept_fp32
from trtkit.deployment.trtexec import format_settings, keep_fp32_options
from trtkit.graph.fp16 import convert_qdq_to_fp16

FAKE = Path(__file__).parent.parent / "support" / "fake_trtexec.py"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is needed to run build.sh")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("trtexec")
    found = {}
    for precision in ("fp32", "fp16", "int8"):
        path = samples.write_onnx(base, f"{precision}.onnx", precision=precision, dynamic=precision == "int8")
        found[precision] = tk.deploy(path, "trtexec", base / precision, conf=0.3).folder
    return found


@pytest.fixture
def trtexec(tmp_path: Path) -> Path:
    path = tmp_path / "trtexec"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE))} "$@"\n')
    path.chmod(0o755)
    return path


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRTEXEC")}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=base | environment)


def options(folder: Path, version: str) -> list[dict[str, str]]:
    """What `build.sh --print` prints, as options by name."""
    done = run(folder, "bash", "build.sh", "--print", version)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert all(command[0] == "trtexec" for command in commands)
    return [dict(part.removeprefix("--").partition("=")[::2] for part in command[1:]) for command in commands]


@pytest.mark.parametrize(
    ("precision", "version", "flags"),
    [
        ("fp32", "8.6", set()),
        ("fp32", "10.3", {"stronglyTyped"}),
        ("fp32", "11.4", set()),
        ("fp16", "8.6", {"fp16"}),
        ("fp16", "10.16", {"stronglyTyped"}),
        ("fp16", "11.0", set()),
        ("int8", "8.5", {"fp16", "int8"}),
        ("int8", "10.16", {"fp16", "int8"}),
        ("int8", "11.4", set()),
    ],
)
def test_each_release_gets_its_options(folders, precision, version, flags):
    (command,) = options(folders[precision], version)
    found = set(command) & {"fp16", "int8", "stronglyTyped", "best", "bf16"}
    assert found == flags
    assert ("buildOnly" in command) == (version == "8.5")
    assert ("skipInference" in command) == (version != "8.5")
    assert command["saveEngine"] == "model.plan"
    # TensorRT 8 takes INT8 weights in float.
    old = precision == "int8" and version.startswith("8")
    assert command["onnx"] == ("model-trt8.onnx" if old else "model.onnx")


def test_typed_int8_graphs_are_built_as_typed_where_flags_go_away(folders, tmp_path):
    """What is no INT8 is FP16 by the graph's own types."""
    typed = convert_qdq_to_fp16(onnx.load(folders["int8"] / "model.onnx"))
    onnx.save(typed, tmp_path / "typed.onnx")
    folder = tk.deploy(tmp_path / "typed.onnx", "trtexec", conf=0.3).folder
    (command,) = options(folder, "10.16")
    assert set(command) & {"fp16", "int8", "stronglyTyped"} == {"stronglyTyped"}


def test_open_sizes_get_a_profile(folders):
    (command,) = options(folders["int8"], "11.4")
    assert command["minShapes"] == "images:1x3x32x32"
    assert command["maxShapes"] == command["optShapes"] == "images:8x3x32x32"
    assert "minShapes" not in options(folders["fp32"], "11.4")[0]


def test_what_the_graph_keeps_in_fp32_is_kept_where_flags_set_precisions(folders):
    kept = find_kept_fp32(onnx.load(folders["fp16"] / "model.onnx"))
    assert kept
    (command,) = options(folders["fp16"], "8.6")
    assert set(command["layerPrecisions"].split(",")) == {f"{name}:fp32" for name in kept}
    assert command["precisionConstraints"] == "prefer"
    assert not {"layerPrecisions", "precisionConstraints"} & set(options(folders["fp16"], "11.4")[0])


def test_names_that_trtexec_cannot_take_are_left_out():
    assert keep_fp32_options(["a:b", "", "c,d", "e*"]) == ()
    assert "--layerPrecisions=f/g:fp32" in keep_fp32_options(["f/g", "a:b"])


def test_settings_are_quoted_for_bash(tmp_path):
    values = {"ONE": "a b'$HOME\"", "MANY": ("x y", "$(false)", ""), "NONE": ()}
    (tmp_path / "settings.sh").write_text(format_settings(values))
    script = '. ./settings.sh; printf "%s\\n" "$ONE" "${#MANY[@]}" "${MANY[@]}" "${#NONE[@]}"'
    done = run(tmp_path, "bash", "-c", script)
    assert done.stdout.split("\n")[:-1] == ["a b'$HOME\"", "3", "x y", "$(false)", "", "0"]


def test_the_model_for_tensorrt_8_gives_the_same_outputs(folders):
    import onnxruntime

    folder = folders["int8"]
    old = onnx.load(folder / "model-trt8.onnx")
    assert not any(tensor.data_type == onnx.TensorProto.INT8 and tensor.dims for tensor in old.graph.initializer
                   if len(tensor.dims) > 1)  # fmt: skip
    images = np.random.default_rng(0).uniform(0, 1, (2, 3, 32, 32)).astype(np.float32)
    results = [
        onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"]).run(
            None, {"images": images}
        )
        for name in ("model.onnx", "model-trt8.onnx")
    ]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert not (folders["fp16"] / "model-trt8.onnx").exists()


def test_without_trtexec_the_check_takes_the_stored_outputs(folders, tmp_path):
    folder = shutil.copytree(folders["int8"], tmp_path / "copy")
    done = run(folder, sys.executable, "check.py", PATH="/nowhere")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trtexec was not found" in done.stdout
    tensors = json.loads((folder / "samples" / "tensors" / "tensors.json").read_text())
    path = folder / "samples" / "tensors" / tensors["output0"]["file"]
    (np.fromfile(path, np.float32) * 1.5).tofile(path)
    assert run(folder, sys.executable, "check.py", PATH="/nowhere").returncode == 1
    (folder / "model.onnx").write_bytes(tiny_graphs.detector(seed=1).SerializeToString())
    done = run(folder, sys.executable, "check.py", PATH="/nowhere")
    assert (done.returncode, "SHA-256" in done.stdout) == (1, True)


@pytest.mark.parametrize(("precision", "version"), [("int8", "8601"), ("fp32", "110400")])
def test_with_trtexec_the_check_builds_and_runs_the_plan(folders, trtexec, tmp_path, precision, version):
    folder = shutil.copytree(folders[precision], tmp_path / "copy")
    log = tmp_path / "log"
    environment = {"TRTEXEC": str(trtexec), "FAKE_TRTEXEC_VERSION": version, "FAKE_TRTEXEC_LOG": str(log)}
    done = run(folder, sys.executable, "check.py", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("as expected") == 3
    commands = [json.loads(line) for line in log.read_text().splitlines()]
    assert "saveEngine" in commands[0]
    # A model of batch 1 runs image by image.
    assert len(commands) == (2 if precision == "int8" else 4)


def test_what_is_missing_or_too_old_is_said(folders, trtexec, tmp_path):
    folder = folders["fp32"]
    environment = {"FAKE_TRTEXEC_LOG": str(tmp_path / "log")}
    done = run(folder, "bash", "build.sh", PATH="/usr/bin:/bin", **environment)
    assert (done.returncode, "trtexec was not found" in done.stderr) == (1, True)
    done = run(folder, "bash", "build.sh", TRTEXEC=str(trtexec), FAKE_TRTEXEC_VERSION="8001", **environment)
    assert (done.returncode, "8.0 is too old" in done.stderr) == (1, True)
    done = run(folder, "bash", "build.sh", "--dla", "0", "--print", "10.3")
    assert (done.returncode, "no dla/" in done.stderr) == (1, True)

"""Jetson folders: the plans of backbone and head, built for a DLA core and the GPU, give the expected detections."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import deploy_samples as samples
import onnx
import pytest
from test_deployment_trtexec import FAKE, options

import trtkit as tk
from trtkit.calibration.tensorrt_cache import parse_cache

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is needed to run build.sh")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("jetson")
    found = {}
    for precision in ("fp32", "fp16", "int8"):
        shape = {"dynamic": True} if precision == "int8" else {"batch": 4}
        path = samples.write_onnx(base, f"{precision}.onnx", precision=precision, **shape)
        found[precision] = tk.deploy(path, "jetson", base / precision, conf=0.3).folder
    return found


def print_dla(folder: Path, version: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "build.sh", "--dla", "1", "--print", version], capture_output=True, text=True, cwd=folder
    )


def parse(text: str) -> list[dict[str, str]]:
    commands = [shlex.split(line)[1:] for line in text.splitlines()]
    return [dict(part.removeprefix("--").partition("=")[::2] for part in command) for command in commands]


def test_the_backbone_goes_to_dla_and_the_head_to_the_gpu(folders):
    backbone, head = parse(print_dla(folders["fp16"], "10.3").stdout)
    assert (backbone["useDLACore"], backbone["onnx"]) == ("1", "dla/backbone.onnx")
    assert {"allowGPUFallback", "fp16"} <= set(backbone)
    assert not {"int8", "calib"} & set(backbone)
    assert "useDLACore" not in head
    assert head["onnx"] == "dla/head.onnx"
    # Decoding stays in FP32.
    assert "scale:fp32" in head["layerPrecisions"].split(",")


def test_int8_comes_from_the_calibration_cache(folders):
    backbone, head = parse(print_dla(folders["int8"], "8.6").stdout)
    assert backbone["calib"] == "dla/calibration-here.cache"
    assert {"int8", "fp16"} <= set(backbone)
    assert "int8" not in head
    _, calibrator, scales = parse_cache((folders["int8"] / "dla" / "calibration.cache").read_text())
    assert calibrator == "EntropyCalibration2"
    assert scales["images"] == pytest.approx(1 / 127)
    nodes = onnx.load(folders["int8"] / "dla" / "backbone.onnx").graph.node
    assert set(scales) <= {name for node in nodes for name in (*node.input, *node.output)}


def test_strongly_typed_releases_take_typed_graphs(folders):
    done = print_dla(folders["int8"], "11.2")
    assert (done.returncode, "no DLA" in done.stderr) == (1, True)
    backbone, head = parse(print_dla(folders["int8"], "11.4").stdout)
    assert not {"fp16", "int8", "calib", "precisionConstraints"} & (set(backbone) | set(head))
    assert (backbone["onnx"], head["onnx"]) == ("dla/backbone-fp16.onnx", "dla/head-fp16.onnx")
    types = {t.data_type for t in onnx.load(folders["int8"] / "dla" / "backbone-fp16.onnx").graph.initializer}
    assert types == {onnx.TensorProto.FLOAT16}


def test_the_whole_graph_is_built_as_trtexec_builds_it(folders):
    (command,) = options(folders["int8"], "11.4")
    assert command["onnx"] == "model.onnx"


@pytest.mark.parametrize(("precision", "version"), [("fp32", "100300"), ("int8", "8601")])
def test_the_two_plans_give_the_expected_detections(folders, tmp_path, precision, version):
    folder = shutil.copytree(folders[precision], tmp_path / "copy")
    trtexec = tmp_path / "trtexec"
    trtexec.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE))} "$@"\n')
    trtexec.chmod(0o755)
    environment = {**os.environ, "TRTEXEC": str(trtexec), "FAKE_TRTEXEC_VERSION": version}
    environment["FAKE_TRTEXEC_LOG"] = str(tmp_path / "log")
    environment.pop("PYTHONPATH", None)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)

    done = run(sys.executable, "check_dla.py")
    assert (done.returncode, "./build.sh --dla" in done.stdout) == (1, True)
    done = run("bash", "build.sh", "--dla", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    if precision == "int8":
        # The plan of the fake is the float graph, which finds something else than the INT8 one.
        assert (folder / "dla" / "calibration-here.cache").read_text().startswith("TRT-8601-Entropy")
        return
    done = run(sys.executable, "check_dla.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("as expected") == 3
    expected = json.loads((folder / "samples" / "expected.json").read_text())
    expected["images"][0]["boxes"][0][0] += 3
    (folder / "samples" / "expected.json").write_text(json.dumps(expected))
    done = run(sys.executable, "check_dla.py")
    assert (done.returncode, "3.000 pixels off" in done.stdout) == (1, True)


def test_the_readme_says_that_dla_was_not_tried(folders):
    text = (folders["fp16"] / "README.md").read_text()
    assert "not tried" in text
    assert "`check_dla.py`" in text
    assert "| Conv | 1 | 1 |" in (folders["fp16"] / "dla" / "layers.md").read_text()

"""No library sends anything: ONNX Runtime's telemetry leaves a device id below the cache folder when it is on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import numpy as np
if sys.argv[1] == "trtkit":
    import trtkit
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

node = helper.make_node("Relu", ["x"], ["y"])
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
model = helper.make_model(
    helper.make_graph([node], "g", values[:1], values[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
session.run(None, {"x": np.ones(1, np.float32)})
"""


def run(folder: Path, first: str, **environment: str) -> list[Path]:
    """The files that a session leaves below a fresh home folder."""
    kept = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    places = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "TRTKIT_CACHE": str(folder / "trtkit")}
    subprocess.run([sys.executable, "-c", SCRIPT, first], env={**kept, **places, **environment}, check=True)
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_session_leaves_no_device_id(tmp_path: Path) -> None:
    assert run(tmp_path, "trtkit") == []


def test_without_trtkit_onnx_runtime_leaves_one(tmp_path: Path) -> None:
    """What the test above looks for is there when telemetry is on."""
    left = run(tmp_path, "plain")
    if not left:
        pytest.skip("this ONNX Runtime has no telemetry")
    assert any("Microsoft" in path.parts for path in left), left


def test_a_setting_of_the_user_stays(tmp_path: Path) -> None:
    script = "import os, trtkit; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "ORT_DISABLE_TELEMETRY": "0"}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "0"

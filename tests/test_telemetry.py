"""No library sends anything: ONNX Runtime's telemetry leaves a device id below the cache folder when it is on."""

from __future__ import annotations

import os
import shutil
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


EVERY_VERB = """
import pathlib, sys, warnings

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print("NETWORK", event, arguments[1:], flush=True)
        raise OSError("the network is cut")

sys.addaudithook(refuse)
warnings.simplefilter("ignore")
import trtkit as tk

task, out = "classify", pathlib.Path(sys.argv[1])
model, data = tk.load(tk.demo.model_path(task)), tk.demo.data_path(task)
artifact = tk.export(model, format="onnx", half=True, output=out / "half.onnx")
comparison = tk.compare(model, data, precisions=("fp32", "int8"), calibration_images=4, eval_images=4, build=False,
                        runs=2, output=out / "compare")
comparison.report(out / "report.html")
with tk.open(artifact) as runner:
    runner.predict([next(pathlib.Path(data).rglob("*.jpg"))])
    tk.evaluate(runner, data, eval_images=4).plot()
tk.dashboard(comparison).static_html()
tk.capabilities()
import anywidget, jupyter_client, onnxslim
print("DONE")
"""


def test_no_verb_looks_a_name_up_or_writes_outside_its_folders(tmp_path: Path) -> None:
    """The audit hook sees Python's sockets; strace, where it is installed, those of native libraries too."""
    home, out, log = tmp_path / "home", tmp_path / "out", tmp_path / "connects"
    for folder in (home, out, tmp_path / "tmp", tmp_path / "work"):
        folder.mkdir()
    places = {"HOME": home, "TMPDIR": tmp_path / "tmp", "TRTKIT_CACHE": tmp_path / "cache"}
    places |= {f"XDG_{name}_HOME": home / name for name in ("CACHE", "CONFIG", "DATA", "STATE")}
    kept = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    root = str(Path(__file__).resolve().parent.parent)
    environment = kept | {key: str(value) for key, value in places.items()} | {"PYTHONPATH": root}
    tracer = shutil.which("strace")
    trace = [tracer, "-f", "--seccomp-bpf", "-e", "trace=connect", "-o", str(log)] if tracer and may_trace() else []
    done = subprocess.run(
        [*trace, sys.executable, "-c", EVERY_VERB, str(out)],
        cwd=tmp_path / "work", env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["DONE"], done.stdout + done.stderr
    assert "NETWORK" not in done.stdout
    if trace:
        assert not [line for line in log.read_text().splitlines() if "AF_INET" in line or "nscd" in line]
    places_of_files = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert places_of_files - {"connects"} <= {"out", "cache"}


def may_trace() -> bool:
    """Whether processes may be traced here: containers often forbid it."""
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


def test_the_audit_hook_sees_a_look_up() -> None:
    script = EVERY_VERB.split("warnings.simplefilter")[0] + "import socket; socket.getaddrinfo('example.invalid', 443)"
    done = subprocess.run([sys.executable, "-c", script, "."], capture_output=True, text=True)
    assert done.stdout.startswith("NETWORK socket.getaddrinfo")
    assert "the network is cut" in done.stderr

"""A model on a Triton server is a runner as any other; servers that are wrong, missing or overloaded are named."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_triton
import numpy as np
import onnx
import pytest
import tiny_graphs
from raising import raises
from task_models import drawn_set, untrained

import trtkit as tk
from trtkit import backends
from trtkit.backends import triton
from trtkit.backends.triton import TritonRunner, parse_address
from trtkit.cli import main
from trtkit.errors import CapabilityError, EngineError, RecipeError

ADDRESSES = {"http": "triton+http://here:8000/", "grpc": "triton+grpc://here:8001/", "shm": "triton+shm://here:8000/"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for name, settings in {"static": {"batch": 3}, "dynamic": {"dynamic": True}}.items():
        found[name] = folder / f"{name}.onnx"
        onnx.save(tiny_graphs.detector(**settings), found[name])  # type: ignore[arg-type]
    found["pose"] = tk.export(untrained("pose"), "onnx", simplify=False, output=folder / "pose.onnx").path
    return found


@pytest.fixture(scope="module")
def repository(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("triton") / "serving"
    return tk.deploy(list(files.values()), "triton", output, conf=0.01).folder / "models"


@pytest.fixture
def server(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_triton.Server]:
    server = fake_triton.Server(repository)
    fake_triton.install(monkeypatch, {"here:8000": server, "here:8001": server})
    yield server
    assert (server.clients, server.regions) == (0, {})


@pytest.mark.parametrize("protocol", ADDRESSES)
@pytest.mark.parametrize("name", ["static", "dynamic"])
def test_the_outputs_are_those_of_the_local_runner(
    server: fake_triton.Server, files: dict[str, Path], name: str, protocol: str
) -> None:
    random = np.random.default_rng(0)
    with tk.open(ADDRESSES[protocol] + name) as runner, tk.open(files[name]) as local:
        assert isinstance(runner, TritonRunner)
        assert (runner.info.task, runner.info.names) == (local.info.task, local.info.names)
        assert (runner.info.preprocess, runner.info.output_format) == (local.info.preprocess, local.info.output_format)
        assert (runner.imgsz, runner.dynamic, runner.hash) == (local.imgsz, local.dynamic, local.hash)
        assert (runner.batch, runner.engine, runner.path) == (3 if name == "static" else 8, False, None)
        # With shared memory the first run of a shape goes without it.
        for count in (1, 3, 1, 3, 3):
            values = random.random((count, 3, 32, 32), np.float32)
            found, expected = runner.infer(values), local.infer(values)
            assert {key: one.dtype for key, one in found.items()} == {"output0": np.dtype(np.float32)}
            np.testing.assert_array_equal(found["output0"], expected["output0"])
    assert set(server.requests) == {name}


def test_every_verb_runs_against_a_server(
    server: fake_triton.Server, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = drawn_set(tmp_path / "set", "pose", count=4)
    address = ADDRESSES["http"] + "pose"
    images = sorted((tmp_path / "set" / "images" / "val").iterdir())
    with tk.open(address) as runner, tk.open(files["pose"]) as local:
        for mine, theirs in zip(runner.predict(images, conf=0.01), local.predict(images, conf=0.01), strict=True):
            np.testing.assert_array_equal(mine.boxes, theirs.boxes)  # type: ignore[attr-defined]
            assert len(mine.boxes)  # type: ignore[attr-defined]
    assert tk.evaluate(address, data).metrics == tk.evaluate(files["pose"], data).metrics
    timing = tk.benchmark({"local": files["pose"], "server": address}, runs=5, warmup=0)
    rows = {row["label"]: row for row in timing.frame().iter_rows(named=True)}
    assert rows["server"]["runner"] == "Triton 2.51.0 HTTP pose"
    assert (rows["server"]["clock"], rows["server"]["engine"]) == ("wall", False)
    comparison = tk.compare(
        files["pose"], data, precisions=("fp32",), build=False, candidates={"server": address},
        runs=3, seconds=0.05, output=tmp_path / "comparison",
    )  # fmt: skip
    compared = {row["precision"]: row for row in comparison.rows.iter_rows(named=True)}
    for column, _ in comparison.about["metrics"]:
        assert compared["server"][column] == compared["fp32"][column]
    assert (compared["server"]["onnx_mb"], compared["server"]["engine_mb"]) == (None, None)
    words = ["predict", address, str(images[0]), "--output", str(tmp_path / "drawn")]
    assert main(words) == 0
    assert (tmp_path / "drawn" / "predictions.parquet").exists()


def test_each_thread_has_a_connection_of_its_own(server: fake_triton.Server, files: dict[str, Path]) -> None:
    values = np.random.default_rng(0).random((6, 3, 32, 32), np.float32)
    with tk.open(ADDRESSES["shm"] + "dynamic") as runner, tk.open(files["dynamic"]) as local:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda one: runner.infer(one[None])["output0"][0], [*values, *values]))
        expected = local.infer(values)["output0"]
        assert 2 <= server.clients <= 4
    for index, one in enumerate(found):
        np.testing.assert_allclose(one, expected[index % 6], atol=1e-6)


def test_a_connection_that_opens_while_the_runner_closes_is_closed(
    server: fake_triton.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = tk.open(ADDRESSES["http"] + "dynamic")

    class Late(triton._Connection):
        def __init__(self, module: Any, address: triton.Address) -> None:
            super().__init__(module, address)
            # As another thread does.
            runner.close()

    monkeypatch.setattr(triton, "_Connection", Late)
    with ThreadPoolExecutor(1) as pool, raises(EngineError, "runner-closed"):
        pool.submit(runner.infer, np.zeros((1, 3, 32, 32), np.float32)).result()
    # The fixture counts the connections.


def test_memory_that_the_server_refuses_is_removed(
    server: fake_triton.Server, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server on another machine finds no region of that name."""
    client = sys.modules["tritonclient.http"].InferenceServerClient

    def refuse(self: Any, name: str, key: str, byte_size: int) -> None:
        raise fake_triton.InferenceServerException(f"Unable to open shared memory region: '{key}'", "400")

    with tk.open(ADDRESSES["shm"] + "dynamic") as runner:
        monkeypatch.setattr(client, "register_system_shared_memory", refuse)
        for _ in range(2):
            with raises(EngineError, "triton-run-failed"):
                runner.infer(np.zeros((1, 3, 32, 32), np.float32))
            assert client.memory == {}


UNAVAILABLE = fake_triton.InferenceServerException("Socket closed", "StatusCode.UNAVAILABLE")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (fake_triton.InferenceServerException("Exceeds maximum queue size", "429"), "triton-overloaded"),
        (fake_triton.InferenceServerException("busy", "503"), "triton-overloaded"),
        (TimeoutError("timed out"), "triton-timeout"),
        (fake_triton.InferenceServerException("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED"), "triton-timeout"),
        (ConnectionResetError(104, "Connection reset by peer"), "triton-unreachable"),
        (UNAVAILABLE, "triton-unreachable"),
        (ValueError("Expected HTTP/"), "triton-not-a-server"),
        (ValueError("\n"), "triton-not-a-server"),
        (
            fake_triton.InferenceServerException(
                "an exception occurred in the client while decoding the response: x", "404"
            ),
            "triton-not-a-server",
        ),
        (fake_triton.InferenceServerException("CUDA out of memory\nstack", "500"), "triton-run-failed"),
    ],
)
def test_a_server_that_fails_in_the_middle(
    server: fake_triton.Server, error: Exception, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = ADDRESSES["grpc"] + "dynamic"
    with tk.open(address) as runner:
        values = np.zeros((1, 3, 32, 32), np.float32)
        monkeypatch.setattr(server, "refuses", error)
        with raises(EngineError, code, value=address) as caught:
            runner.infer(values)
        assert "\n" not in str(caught.value)
        monkeypatch.setattr(server, "refuses", None)
        runner.infer(values)


def test_mistakes_of_an_address(server: fake_triton.Server) -> None:
    with raises(EngineError, "triton-unreachable"):
        tk.open("triton+http://nowhere:8000/dynamic")
    with raises(EngineError, "triton-unreachable"):
        tk.open("triton+grpc://nowhere:8001/dynamic")
    for protocol in ("http", "grpc"):
        with raises(EngineError, "triton-model-unknown", names=["dynamic", "pose", "static"]):
            tk.open(ADDRESSES[protocol] + "other")
    with raises(EngineError, "triton-model-unknown"):
        tk.open(ADDRESSES["http"] + "dynamic/7")
    with raises(EngineError, "triton-input-unsuitable", names=["image"]):
        tk.open(ADDRESSES["http"] + "dynamic_images")
    server.configs["static"]["input"][0]["data_type"] = "TYPE_BF16"
    with raises(EngineError, "triton-input-unsuitable", names=["images"]):
        tk.open(ADDRESSES["http"] + "static")
    server.broken["static"] = "Internal: no onnxruntime"
    with raises(EngineError, "triton-model-not-ready") as caught:
        tk.open(ADDRESSES["http"] + "static")
    assert "no onnxruntime" in caught.value.found
    with raises(RecipeError, "triton-device"):
        tk.open(ADDRESSES["http"] + "dynamic", device=0)
    assert main(["evaluate", "triton+http://nowhere:8000/dynamic", "missing.yaml"]) == 2


@pytest.mark.parametrize(
    "text", ["triton+http://here:8000", "triton+ftp://here/a", "triton+http://", "triton+grpc:a/b"]
)
def test_what_is_no_address(text: str) -> None:
    with raises(RecipeError, "triton-address-invalid", value=text):
        tk.open(text)


def test_an_address_survives_a_path() -> None:
    address = parse_address("triton+grpc://host:8001/yolo11n/2")
    assert parse_address(str(Path(str(address)))) == address
    assert (address.protocol, address.host, address.model, address.version) == ("grpc", "host:8001", "yolo11n", "2")


def test_mistakes_of_a_batch(server: fake_triton.Server) -> None:
    runner = tk.open(ADDRESSES["http"] + "static")
    with raises(EngineError, "run-batch-too-large", limit=3):
        runner.infer(np.zeros((4, 3, 32, 32), np.float32))
    with raises(EngineError, "run-inputs-unknown", expected=["images"]):
        runner.infer({"x": np.zeros((1, 3, 32, 32), np.float32)})
    with raises(EngineError, "triton-run-failed"):
        runner.infer(np.zeros((1, 3, 64, 64), np.float32))
    runner.close()
    runner.close()
    with raises(EngineError, "runner-closed"):
        runner.infer(np.zeros((1, 3, 32, 32), np.float32))


def test_a_model_that_trtkit_did_not_deploy_needs_its_task(server: fake_triton.Server) -> None:
    parameters = server.configs["static"]["parameters"]
    described = parameters.pop("trtkit")
    with raises(EngineError, "triton-task-missing"):
        tk.open(ADDRESSES["http"] + "static")
    with tk.open(ADDRESSES["http"] + "static", task="detect") as runner:
        assert runner.info.names == {0: "class0", 1: "class1", 2: "class2"}
        assert (runner.imgsz, runner.dynamic, runner.precision) == ((32, 32), True, "fp32")
    text = json.loads(described["string_value"])
    parameters["trtkit"] = {"string_value": json.dumps({**text, "names": 5})}
    with raises(EngineError, "triton-description-invalid"):
        tk.open(ADDRESSES["http"] + "static")


def test_a_model_of_one_batch_and_of_an_open_side(server: fake_triton.Server) -> None:
    """Without `max_batch_size` the dimensions have the batch; an open one takes one image at a time."""
    config = server.configs["static"]
    config["max_batch_size"] = 0
    config["input"][0]["dims"] = [-1, 3, -1, 32]
    config["output"][0]["dims"] = [-1, 7, 256]
    with tk.open(ADDRESSES["http"] + "static") as runner:
        assert (runner.batch, runner.imgsz) == (1, (32, 32))
        assert runner.infer(np.zeros((1, 3, 32, 32), np.float32))["output0"].shape == (1, 7, 256)


def test_without_the_client_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with raises(CapabilityError, "backend-missing", backend="triton") as caught:
        tk.open(ADDRESSES["http"] + "a")
    assert "pip install 'tritonclient[http,grpc]'" in caught.value.do
    assert not backends.get_backend("triton").probe().present

"""A fake Triton: a server that runs a model repository in this process, and the client library that asks it.

Configurations are read as the server reads them, models of the Python backend run by their own `model.py`, ensembles by
their steps, and requests are checked against the configuration. The client's names, exceptions and messages are those
of tritonclient 2.73 with server 2.51.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pytest

TYPES = {"FP32": np.float32, "FP16": np.float16, "INT32": np.int32, "UINT8": np.uint8, "BYTES": object}
REPEATED = {"input", "output", "dims", "step", "input_map", "output_map", "parameters", "model_warmup", "inputs"}
MAPS = {"input_map", "output_map", "parameters", "inputs"}


def parse_config(text: str) -> dict[str, Any]:
    """Protobuf text as a dictionary."""
    words = iter(re.findall(r'"(?:\\.|[^"\\])*"|[{}]|[\w.+-]+|:', text))

    def block() -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in words:
            if name == "}":
                break
            word = next(words)
            value = block() if word == "{" else parse(next(words))
            if name in REPEATED:
                values.setdefault(name, []).append(value)
            else:
                assert name not in values, name
                values[name] = value
        return {
            name: {entry["key"]: entry["value"] for entry in value} if name in MAPS else value
            for name, value in values.items()
        }

    def parse(word: str) -> Any:
        if word.startswith('"'):
            return json.loads(word)
        return int(word) if re.fullmatch(r"-?\d+", word) else word

    return block()


class InferenceServerException(Exception):  # noqa: N818  tritonclient's name
    """tritonclient's exception."""

    def __init__(self, msg: str, status: str | None = None) -> None:
        super().__init__(msg)
        self._message, self._status = msg, status

    def message(self) -> str:
        return self._message

    def status(self) -> str | None:
        return self._status


class Tensor:
    """A tensor of the Python backend."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class Server:
    """Runs a repository.

    Attributes:
        refuses: An exception that every inference raises instead.
        requests: Names of the models that clients asked for.
    """

    def __init__(self, repository: Path) -> None:
        self.refuses: Exception | None = None
        self.requests: list[str] = []
        self.regions: dict[str, Any] = {}
        self.clients = 0
        self.configs, self.models, self.broken = {}, {}, {}
        for folder in sorted(repository.iterdir()):
            config = parse_config((folder / "config.pbtxt").read_text())
            assert config["name"] == folder.name
            self.configs[folder.name] = config
            if config.get("backend") == "python":
                try:
                    self.models[folder.name] = load_model(folder / "1", config)
                except Exception as error:  # noqa: BLE001  as the server does
                    self.broken[folder.name] = f"Internal: {type(error).__name__}: {error}"
            else:
                assert config["platform"] == "ensemble"
                assert (folder / "1").is_dir()

    def infer(self, name: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a model or an ensemble, with the checks of the server."""
        config = self.configs[name]
        if self.refuses is not None:
            raise self.refuses
        self._check(name, config["input"], tensors, config["max_batch_size"])
        if "ensemble_scheduling" in config:
            known = dict(tensors)
            for step in config["ensemble_scheduling"]["step"]:
                assert config["max_batch_size"] <= self.configs[step["model_name"]]["max_batch_size"]
                fed = {mine: known[theirs] for mine, theirs in step["input_map"].items()}
                found = self.infer(step["model_name"], fed)
                known |= {theirs: found[mine] for mine, theirs in step["output_map"].items()}
            results = {output["name"]: known[output["name"]] for output in config["output"]}
        else:
            request = types.SimpleNamespace(tensors={key: Tensor(key, value) for key, value in tensors.items()})
            (response,) = self.models[name].execute([request])
            if response.error is not None:
                raise InferenceServerException(response.error, "400")
            results = {tensor.name(): tensor.as_numpy() for tensor in response.tensors}
        self._check(name, config["output"], results, config["max_batch_size"])
        return results

    @staticmethod
    def _check(name: str, specs: list[Any], tensors: dict[str, np.ndarray], most: int) -> None:
        for spec in specs:
            values = tensors[spec["name"]]
            assert np.dtype(TYPES[spec["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES")]) == values.dtype
            shape = values.shape[1:] if most else values.shape
            if (most and len(values) > most) or len(shape) != len(spec["dims"]):
                raise InferenceServerException(f"inference request batch-size must be <= {most} for '{name}'", "400")
            fits = all(side in (-1, real) for side, real in zip(spec["dims"], shape, strict=True))
            if not fits:
                raise InferenceServerException(f"unexpected shape for '{spec['name']}' for model '{name}'", "400")


def load_model(version: Path, config: dict[str, Any]) -> Any:
    """A `TritonPythonModel`, which finds the modules beside it and no others of the same name."""
    utils = types.ModuleType("triton_python_backend_utils")
    vars(utils).update(
        Tensor=Tensor,
        TritonError=str,
        InferenceResponse=lambda output_tensors=(), error=None: types.SimpleNamespace(
            tensors=output_tensors, error=error
        ),
        get_input_tensor_by_name=lambda request, name: request.tensors[name],
    )
    path, modules = list(sys.path), dict(sys.modules)
    try:
        for name in ("yolo", "infer"):
            sys.modules.pop(name, None)
        sys.modules[utils.__name__] = utils
        spec = importlib.util.spec_from_file_location(f"model_{version.parent.name}", version / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        model.initialize({"model_config": json.dumps(config)})
    finally:
        sys.path[:] = path
        for name in (utils.__name__, "yolo", "infer"):
            sys.modules.pop(name, None)
            if name in modules:
                sys.modules[name] = modules[name]
    return model


class Entry:
    """InferInput and InferRequestedOutput."""

    def __init__(self, name: str, shape: Any = None, datatype: str = "") -> None:
        self._name, self.shape, self.datatype = name, shape, datatype
        self.values: Any = None
        self.region: str | None = None

    def name(self) -> str:
        return self._name

    def set_data_from_numpy(self, values: np.ndarray) -> None:
        assert (list(self.shape), np.dtype(TYPES[self.datatype])) == (list(values.shape), values.dtype)
        self.values = values

    def set_shared_memory(self, region: str, size: int) -> None:
        self.region = region


class Client:
    """InferenceServerClient; a subclass for each server list and protocol."""

    servers: dict[str, Server]
    is_grpc: bool

    def __init__(self, url: str, **settings: Any) -> None:
        assert set(settings) <= (set() if self.is_grpc else {"connection_timeout", "network_timeout"})
        self.url = url
        if url in self.servers:
            self.servers[url].clients += 1

    @property
    def server(self) -> Server:
        if self.url not in self.servers:
            if self.is_grpc:
                raise InferenceServerException("failed to connect to all addresses", "StatusCode.UNAVAILABLE")
            raise ConnectionRefusedError(111, "Connection refused")
        return self.servers[self.url]

    def _json(self, value: Any, as_json: bool) -> Any:
        assert as_json == self.is_grpc
        return value

    def is_server_ready(self, client_timeout: float | None = None) -> bool:
        return self.server is not None

    def is_model_ready(self, name: str, version: str = "", client_timeout: float | None = None) -> bool:
        # Over gRPC a call without it waits forever.
        assert (client_timeout is not None) == self.is_grpc
        return name in self.server.configs and name not in self.server.broken and version in ("", "1")

    def get_server_metadata(self, as_json: bool = False, client_timeout: float | None = None) -> Any:
        return self._json({"name": "triton", "version": "2.51.0"} if self.server else {}, as_json)

    def get_model_config(
        self, name: str, version: str = "", as_json: bool = False, client_timeout: float | None = None
    ) -> Any:
        config = json.loads(json.dumps(self.server.configs[name]))
        if not self.is_grpc:
            return self._json(config, as_json)
        for tensor in (*config["input"], *config["output"]):
            # JSON of protobuf writes 64-bit numbers as text.
            tensor["dims"] = [str(side) for side in tensor["dims"]]
        return self._json({"config": config}, as_json)

    def get_model_repository_index(self, as_json: bool = False, client_timeout: float | None = None) -> Any:
        server = self.server
        rows = [
            {"name": name, "version": "1", "state": "READY"}
            | ({"state": "UNAVAILABLE", "reason": server.broken[name]} if name in server.broken else {})
            for name in server.configs
        ]
        return self._json({"models": rows} if self.is_grpc else rows, as_json)

    def infer(
        self, name: str, inputs: list[Entry], model_version: str = "", outputs: Any = None, **settings: Any
    ) -> Any:
        assert set(settings) <= ({"client_timeout"} if self.is_grpc else set())
        server = self.server
        server.requests.append(name)
        values = {
            entry.name(): entry.values
            if entry.region is None
            else server.regions[entry.region].view(TYPES[entry.datatype]).reshape(entry.shape)
            for entry in inputs
        }
        results = server.infer(name, values)
        for output in outputs or ():
            if output.region is not None:
                server.regions[output.region][:] = results.pop(output.name()).view(np.uint8).ravel()
        return types.SimpleNamespace(as_numpy=lambda output: results.get(output))

    def register_system_shared_memory(self, name: str, key: str, byte_size: int) -> None:
        region = self.memory[key]
        assert len(region) == byte_size
        self.server.regions[name] = region

    def unregister_system_shared_memory(self, name: str = "") -> None:
        del self.server.regions[name]

    def close(self) -> None:
        self.server.clients -= 1


def install(monkeypatch: pytest.MonkeyPatch, servers: dict[str, Server]) -> None:
    """Put the client library in place, for servers by host and port."""
    memory: dict[str, np.ndarray] = {}

    def create(name: str, key: str, size: int) -> str:
        memory[key] = np.zeros(size, np.uint8)
        return key

    def write(key: str, arrays: list[np.ndarray]) -> None:
        memory[key][:] = arrays[0].view(np.uint8).ravel()

    modules = {
        "tritonclient": {},
        "tritonclient.utils": {"InferenceServerException": InferenceServerException},
        "tritonclient.utils.shared_memory": {
            "create_shared_memory_region": create,
            "set_shared_memory_region": write,
            "get_contents_as_numpy": lambda key, kind, shape: memory[key].view(kind).reshape(shape),
            "destroy_shared_memory_region": lambda key: memory.pop(key),
        },
    }
    for protocol in ("http", "grpc"):
        attributes = {"servers": servers, "is_grpc": protocol == "grpc", "memory": memory}
        modules[f"tritonclient.{protocol}"] = {
            "InferenceServerClient": type("InferenceServerClient", (Client,), attributes),
            "InferInput": Entry,
            "InferRequestedOutput": Entry,
        }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)


def fresh_modules(folder: Path, *names: str) -> Iterator[dict[str, Any]]:
    """Programs of a deployment folder as modules, which are forgotten afterwards."""
    sys.path.insert(0, str(folder))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)

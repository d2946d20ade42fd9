"""Models of a running Triton Inference Server, by their address: HTTP, gRPC, or shared memory on the same machine."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trtkit.backends.capabilities import Capabilities
from trtkit.backends.devices import find_gpus
from trtkit.backends.registry import Backend
from trtkit.backends.runner import Runner, closed_error
from trtkit.errors import CapabilityError, EngineError, ModelError, RecipeError
from trtkit.files import hash_parts
from trtkit.models.model import TASKS, ModelInfo
from trtkit.models.output_shapes import check_outputs, infer_classes, infer_output_format, order_outputs

__all__ = ["PARAMETER", "TRITON", "TritonRunner", "is_address"]

T = TypeVar("T")

PARAMETER = "trtkit"
"""The parameter of a model's configuration that holds its description as JSON; `trtkit deploy triton` writes it."""

CONNECTION_SECONDS, ANSWER_SECONDS = 10.0, 60.0
"""The longest waits for a connection and for an answer."""

_ADDRESS = re.compile(
    # A `Path` leaves one slash of two.
    r"triton\+(?P<protocol>http|grpc|shm):/{1,2}(?P<host>[^/\s]+)/(?P<model>[^/\s]+)(/(?P<version>\d+))?/?"
)

PROTOCOLS = {"http": "HTTP", "grpc": "gRPC", "shm": "shared memory"}

INSTALL = "run pip install 'tritonclient[http,grpc]'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Address:
    """Where a model is served.

    Attributes:
        protocol: "http", "grpc", or "shm": HTTP with tensors in shared memory of this machine.
        host: Host and port.
        model: The model's name on the server.
        version: Its version, "" for the one that the server's policy takes.
    """

    protocol: str
    host: str
    model: str
    version: str = ""

    def __str__(self) -> str:
        return f"triton+{self.protocol}://{self.host}/{self.model}{f'/{self.version}' if self.version else ''}"


def is_address(source: Any) -> bool:
    """Whether a source is meant to be a model on a Triton server.

    Args:
        source: What `open` takes.
    """
    return isinstance(source, (str, Path)) and str(source).startswith("triton+")


def parse_address(text: str) -> Address:
    """Read "triton+http://localhost:8000/yolo11n".

    Args:
        text: The address; `/VERSION` may follow, and `grpc` or `shm` stand for `http`.

    Raises:
        RecipeError: It is no such address.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise RecipeError(
            f"open {text}",
            "it is not the address of a model on a Triton server",
            "write triton+http://HOST:PORT/MODEL (or triton+grpc, or triton+shm on the same machine)",
            code="triton-address-invalid",
            value=text,
        )
    return Address(**{name: value or "" for name, value in match.groupdict().items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tensor:
    """An input or output of the served model: its type on the wire, and its shape with the batch, -1 where open."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class TritonRunner(Runner):
    """A model on a Triton server. Thread-safe: each thread has a connection of its own.

    Args:
        address: Where the model is served.
        task: The task, for a model that trtkit did not deploy.

    Raises:
        CapabilityError: tritonclient is not installed.
        EngineError: No server answers, it does not serve the model, or the model takes no images.
        ModelError: The outputs are not those of the task.
    """

    engine = False
    passport = None
    path = None

    def __init__(self, address: Address, *, task: str | None = None) -> None:
        self.address = address
        self._module = _import_client(address.protocol)
        self._local = threading.local()
        self._connections: list[_Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._read_model(f"open {address}", task)
        except BaseException:
            self.close()
            raise

    def infer(self, feeds: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch on the server; see `Runner.infer`.

        Raises:
            EngineError: The batch does not fit, the runner is closed, the server is gone, overloaded or too slow, or
                the model failed.
        """
        arrays = self._name_feeds(feeds, self.input_name, (self.input_name,))
        values = np.ascontiguousarray(arrays[self.input_name], _to_numpy(self._input.datatype))
        count = len(values)
        self.check_batch(count)
        if self._fixed_batch is not None and count < self._fixed_batch:
            filling = np.zeros((self._fixed_batch - count, *values.shape[1:]), values.dtype)
            values = np.concatenate((values, filling))
        results = self._ask(f"run {self.name}", lambda one: one.infer(self.address, self._input, values, self._outputs))
        return {name: np.array(rows[:count], np.float32) for name, rows in results.items()}

    def close(self) -> None:
        """Close the connections; closing twice is fine."""
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, []
        for connection in connections:
            # A server that is gone has closed it already.
            with contextlib.suppress(Exception):
                connection.close()

    def _read_model(self, asked: str, task: str | None) -> None:
        """Ask the server what the model takes and gives."""
        address = self.address
        server = self._ask(asked, lambda one: one.read("get_server_metadata"))
        self._check_served(asked)
        answer = self._ask(asked, lambda one: one.read("get_model_config", address.model, address.version))
        config = answer.get("config", answer)
        self.name = f"Triton {server.get('version', '')} {PROTOCOLS[address.protocol]} {address.model}"
        most = int(config.get("max_batch_size", 0))
        inputs, outputs = (_read_tensors(config, kind, most) for kind in ("input", "output"))
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or not re.fullmatch(r"(FP|U?INT)\d+", inputs[0].datatype):
            raise EngineError(
                asked,
                f"the model takes {', '.join(f'{one.name} {one.shape} {one.datatype}' for one in inputs)}, "
                "not one batch of images",
                "name a model that takes (batch, channels, height, width); an ensemble that takes encoded images is "
                "for clients without trtkit",
                code="triton-input-unsuitable",
                names=[one.name for one in inputs],
            )
        self.input_name, self._input, self._outputs = inputs[0].name, inputs[0], outputs
        described = _read_description(config)
        self.info = _describe(asked, described, outputs, task)
        fixed = inputs[0].shape[2:]
        self.imgsz = self.info.imgsz if min(fixed) < 0 else (fixed[0], fixed[1])
        self._fixed_batch = None if most else max(1, inputs[0].shape[0])
        self.batch = most or self._fixed_batch
        self.dynamic = bool(described.get("dynamic", min(inputs[0].shape) < 0))
        self.precision = str(described.get("precision", "fp32"))
        self.hash = str(described.get("model_hash") or hash_parts(json.dumps(config, sort_keys=True)))

    def _check_served(self, asked: str) -> None:
        """Check that the server serves the model; says which models it has, or why this one does not load."""
        address = self.address
        if self._ask(asked, lambda one: one.is_ready(address)):
            return
        answer: Any = self._ask(asked, lambda one: one.read("get_model_repository_index"))
        rows = answer.get("models", []) if isinstance(answer, Mapping) else answer
        mine = [row for row in rows if row["name"] == address.model]
        if mine and not address.version:
            raise EngineError(
                asked,
                f"the server could not load the model ({mine[0].get('reason') or mine[0].get('state', 'not ready')})",
                "see the server's log",
                code="triton-model-not-ready",
                value=address.model,
            )
        steps = re.compile(r"_(preprocess|postprocess|images)$")
        names = sorted({row["name"] for row in rows if not steps.search(row["name"])})
        raise EngineError(
            asked,
            f"the server has no such model{' of that version' if mine else ''}; it has {', '.join(names) or 'none'}",
            "name one of these, or start the server with the repository that trtkit deploy triton wrote",
            code="triton-model-unknown",
            value=address.model,
            names=names,
        )

    def _ask(self, asked: str, call: Callable[[_Connection], T]) -> T:
        """Call with this thread's connection; errors of the client library become one sentence."""
        if self._closed:
            raise closed_error(asked)
        try:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = _Connection(self._module, self.address)
                with self._lock:
                    is_open = not self._closed
                    if is_open:
                        self._connections.append(connection)
                if not is_open:
                    # Another thread has closed the runner meanwhile, and not this connection.
                    connection.close()
                    raise closed_error(asked)
                self._local.connection = connection
            return call(connection)
        except EngineError:
            raise
        except Exception as error:
            # The client library raises its own exceptions, gevent's, those of sockets and of gRPC.
            raise _translate_error(asked, self.address, error) from error


class _Connection:
    """A client of the server for one thread, with its regions of shared memory."""

    def __init__(self, module: Any, address: Address) -> None:
        self.module, self.is_grpc = module, address.protocol == "grpc"
        self.shares = address.protocol == "shm"
        waits = {} if self.is_grpc else {
            "connection_timeout": CONNECTION_SECONDS, "network_timeout": ANSWER_SECONDS,
        }  # fmt: skip
        self.client = module.InferenceServerClient(address.host, **waits)
        self.regions: dict[tuple[int, ...], _Regions] = {}

    def read(self, method: str, *arguments: str) -> Any:
        """Call a method that returns JSON."""
        more = {"as_json": True, "client_timeout": CONNECTION_SECONDS} if self.is_grpc else {}
        return getattr(self.client, method)(*arguments, **more)

    def is_ready(self, address: Address) -> bool:
        """Whether the server has loaded the model."""
        more = {"client_timeout": CONNECTION_SECONDS} if self.is_grpc else {}
        return bool(self.client.is_model_ready(address.model, address.version, **more))

    def infer(
        self, address: Address, entry: _Tensor, values: np.ndarray, outputs: tuple[_Tensor, ...]
    ) -> dict[str, np.ndarray]:
        """Send one batch and read the outputs."""
        source = self.module.InferInput(entry.name, list(values.shape), entry.datatype)
        wanted = [self.module.InferRequestedOutput(output.name) for output in outputs]
        regions = self.regions.get(values.shape)
        if regions is None:
            source.set_data_from_numpy(values)
        else:
            regions.share(values, source, wanted)
        more = {"client_timeout": ANSWER_SECONDS} if self.is_grpc else {}
        answer = self.client.infer(address.model, [source], model_version=address.version, outputs=wanted, **more)
        if regions is not None:
            return regions.read()
        results = {output.name: answer.as_numpy(output.name) for output in outputs}
        if self.shares:
            # How large the outputs are is known from the first answer.
            self.regions[values.shape] = _Regions(self.client, values, results, outputs)
        return results

    def close(self) -> None:
        """Give the shared memory back and close the connection."""
        for regions in self.regions.values():
            regions.close()
        self.client.close()


class _Regions:
    """Shared memory for the input and the outputs of one shape."""

    def __init__(
        self, client: Any, values: np.ndarray, results: Mapping[str, np.ndarray], outputs: tuple[_Tensor, ...]
    ) -> None:
        self.memory = importlib.import_module("tritonclient.utils.shared_memory")
        self.client = client
        self.types = {output.name: _to_numpy(output.datatype) for output in outputs}
        self.shapes = {name: array.shape for name, array in results.items()}
        self.handles: dict[str, tuple[str, Any, int]] = {}
        try:
            for name, size in (("", values.nbytes), *((name, array.nbytes) for name, array in results.items())):
                key = f"trtkit-{uuid.uuid4().hex[:16]}"
                handle = self.memory.create_shared_memory_region(key, f"/{key}", size)
                self.handles[name] = (key, handle, size)
                client.register_system_shared_memory(key, f"/{key}", size)
        except BaseException:
            # The server may be on another machine; memory that is not removed stays until the machine restarts.
            self.close()
            raise

    def share(self, values: np.ndarray, source: Any, wanted: list[Any]) -> None:
        """Write the input into its region, and let the outputs go into theirs."""
        key, handle, size = self.handles[""]
        self.memory.set_shared_memory_region(handle, [values])
        source.set_shared_memory(key, size)
        for output in wanted:
            key, _, size = self.handles[output.name()]
            output.set_shared_memory(key, size)

    def read(self) -> dict[str, np.ndarray]:
        """The outputs; views that the next run overwrites."""
        return {
            name: self.memory.get_contents_as_numpy(self.handles[name][1], self.types[name], shape)
            for name, shape in self.shapes.items()
        }

    def close(self) -> None:
        """Unregister and remove the regions."""
        for key, handle, _ in self.handles.values():
            with contextlib.suppress(Exception):
                self.client.unregister_system_shared_memory(key)
            self.memory.destroy_shared_memory_region(handle)


def _read_tensors(config: Mapping[str, Any], kind: str, most: int) -> tuple[_Tensor, ...]:
    """Inputs or outputs of a configuration; with `max_batch_size` above 0, its dimensions have no batch."""
    lead = [-1] if most else []
    return tuple(
        _Tensor(
            name=row["name"],
            datatype=str(row["data_type"]).removeprefix("TYPE_").replace("STRING", "BYTES"),
            shape=(*lead, *(int(side) for side in row["dims"])),
        )
        for row in config.get(kind, ())
    )


def _read_description(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `trtkit deploy` wrote about the model; {} for a model of others."""
    text = config.get("parameters", {}).get(PARAMETER, {}).get("string_value", "")
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _describe(asked: str, described: Mapping[str, Any], outputs: tuple[_Tensor, ...], task: str | None) -> ModelInfo:
    """The model's description, from its configuration or from the task and the shapes of its outputs."""
    shapes: dict[str, list[int | None]] = {
        output.name: [None if side < 0 else side for side in output.shape] for output in outputs
    }
    if "task" in described:
        try:
            return ModelInfo.from_metadata({**described, **({"task": task} if task else {})})
        except (LookupError, TypeError, ValueError) as error:
            raise EngineError(
                asked,
                f"the parameter {PARAMETER!r} of its configuration does not parse ({error})",
                "deploy the model again",
                code="triton-description-invalid",
            ) from error
    if task is None:
        raise EngineError(
            asked,
            "its configuration does not say what the model does",
            "pass task=, such as task='detect', or deploy the model with trtkit deploy triton",
            code="triton-task-missing",
            names=tuple(TASKS),
        )
    ordered = order_outputs(shapes, task)
    output_format = infer_output_format(task, ordered)
    classes, kpt_shape = infer_classes(task, output_format, ordered, None, asked, ModelError)
    names = {index: f"class{index}" for index in range(classes)}
    info = ModelInfo(task=task, names=names, kpt_shape=kpt_shape, output_format=output_format)
    check_outputs(info, ordered, asked, ModelError)
    return info


def _to_numpy(datatype: str) -> Any:
    """NumPy's type of a type of the protocol: "FP32" as float32."""
    return np.dtype(datatype.lower().replace("fp", "float"))


def _import_client(protocol: str) -> Any:
    """The client library for a protocol."""
    name = "grpc" if protocol == "grpc" else "http"
    try:
        return importlib.import_module(f"tritonclient.{name}")
    except (ImportError, RuntimeError) as error:
        missing = importlib.util.find_spec("tritonclient") is None
        raise CapabilityError(
            f"ask a Triton server by {PROTOCOLS[protocol]}",
            "tritonclient is not installed" if missing else f"tritonclient.{name} does not import ({error})",
            INSTALL,
            code="backend-missing" if missing else "backend-import-failed",
            backend="triton",
        ) from error


def _translate_error(asked: str, address: Address, error: Exception) -> EngineError:
    """An error of the client library as one sentence."""
    is_answer = type(error).__name__ == "InferenceServerException"
    status = str(error.status() or "") if is_answer else ""  # type: ignore[attr-defined]
    text = str(error.message() or "") if is_answer else str(error)  # type: ignore[attr-defined]
    line = (text.strip() or type(error).__name__).splitlines()[0]
    lower = text.lower()
    if "queue size" in lower or status == "503":
        code, found = "triton-overloaded", f"the server is overloaded ({line})"
        do = "send fewer requests at once, or raise max_queue_size or the number of instances in config.pbtxt"
    elif isinstance(error, TimeoutError) or "DEADLINE_EXCEEDED" in status or "timed out" in lower:
        code, found = "triton-timeout", f"the server did not answer in time ({line})"
        do = "see whether it is overloaded or stuck"
    elif isinstance(error, OSError) or "UNAVAILABLE" in status:
        code, found = "triton-unreachable", f"no server answers at {address.host} ({line})"
        do = "start it, or check host and port (8000 is HTTP, 8001 gRPC)"
    elif not is_answer or "while decoding the response" in lower:
        code, found = "triton-not-a-server", f"what answers at {address.host} is no Triton server ({line})"
        do = "check host, port and protocol (8000 is HTTP, 8001 gRPC)"
    else:
        code, found, do = "triton-run-failed", f"the server refused ({line})", "see the server's log"
    return EngineError(asked, found, do, code=code, value=str(address))


def _probe() -> Capabilities:
    if importlib.util.find_spec("tritonclient") is None:
        return Capabilities(backend="triton", missing="it is not installed", gpus=find_gpus())
    try:
        version = importlib.metadata.version("tritonclient")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    return Capabilities(backend="triton", present=True, version=version, gpus=find_gpus())


def _open(source: Any, *, task: str | None, device: str | int | None) -> TritonRunner:
    if device is not None:
        raise RecipeError(
            f"open {source} on {device!r}",
            "the server decides where a model runs",
            "leave device out, or set instance_group in config.pbtxt",
            code="triton-device",
            device=device,
        )
    runner = TritonRunner(parse_address(str(source)), task=task)
    runner.opener = functools.partial(_open, str(source), task=task, device=None)
    return runner


TRITON = Backend(
    name="triton",
    title="Triton client",
    install_hint=INSTALL,
    probe=_probe,
    accepts=is_address,
    open=_open,
    models="models of a Triton server, as triton+http://HOST:PORT/MODEL",
)

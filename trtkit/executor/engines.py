"""Engines on workers: built, opened and timed where a GPU is, one at a time on each, and their files as bytes.

A file that a verb makes travels as bytes, in both directions: its folder need not be on a disk that workers share, and
what a worker reads is what the verb wrote. An engine is some ten to hundred MB, and each worker gets it once for each
step; images and models that the caller names stay where they are, and are read at their paths.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from trtkit.backends.registry import get_backend
from trtkit.backends.runner import Runner
from trtkit.errors import CapabilityError, EngineError
from trtkit.executor.scheduler import GPU
from trtkit.executor.tasks import make_task_reporter
from trtkit.executor.workers import Workers, offers_gpu
from trtkit.progress import Progress, Reporter
from trtkit.writing import temporary_folder, write_bytes

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["EngineWorkers", "SentFile", "WorkerRunner"]

Output = TypeVar("Output")

_FACTS = ("name", "engine", "info", "precision", "batch", "imgsz", "dynamic", "passport", "hash", "gpu")
"""What is known of a runner where it can't be opened."""


class EngineWorkers:
    """The workers that build, open and time engines: those with a GPU, if there are any, else all of them.

    Each call takes the resource "GPU" where workers offer it, so that no two share a GPU, and runs again elsewhere if
    its worker is killed.

    Args:
        executor: The client.
        reporter: Progress and cancellation.
        engines: False if ONNX Runtime alone is timed: the GPUs of the workers may then be any.

    Attributes:
        has_gpu: Whether a worker has a GPU and offers it for engines.

    Raises:
        CapabilityError: As `Workers`.
        CancelledError: The caller cancelled.
    """

    def __init__(self, executor: Client, reporter: Reporter, *, engines: bool = True) -> None:
        Workers(executor, reporter)  # waits for the first one
        self.has_gpu = engines and offers_gpu(executor)
        self._workers = Workers(executor, reporter, gpu=self.has_gpu, alone=True)

    def map(
        self,
        function: Callable[..., Output],
        shards: Sequence[Any],
        *,
        common: Sequence[Any] = (),
        stage: str,
        progress: Progress | None = None,
    ) -> Generator[Output, None, None]:
        """Call `function(reporter, *common, shard)` for each shard; see `Workers.map`.

        Args:
            function: A function of a module; its reporter's events reach the caller.
            shards: Each picklable, and small.
            common: Picklable; it travels to a worker once.
            stage: Name of the progress stage.
            progress: Receives the function's events; None takes the reporter's.

        Yields:
            One result per shard, in their order.

        Raises:
            CapabilityError, CancelledError, TrtkitError: As `Workers.map`.
        """
        calls = [(function, shard) for shard in shards]
        return self._workers.map(
            _call, calls, stage=stage, prepare=_pack, common=common, repeat_slow=False, progress=progress
        )

    def run(
        self, function: Callable[..., Output], *arguments: Any, stage: str, progress: Progress | None = None
    ) -> Output:
        """Call `function(reporter, *arguments)` on one worker.

        Args:
            function: A function of a module; its reporter's events reach the caller.
            *arguments: Picklable.
            stage: Name of the progress stage.
            progress: Receives the function's events; None takes the reporter's.

        Raises:
            CapabilityError, CancelledError, TrtkitError: As `Workers.map`.
        """
        calls = self.map(_call_with_all, [function], common=arguments, stage=stage, progress=progress)
        with contextlib.closing(calls):
            return next(calls)  # type: ignore[no-any-return]

    def require_gpu(self, backend: str) -> None:
        """Check that workers offer the GPU that a backend's engines run on.

        Args:
            backend: The backend's name.

        Raises:
            CapabilityError: No worker does.
        """
        if get_backend(backend).needs_gpu and not self.has_gpu:
            raise CapabilityError(
                f"run {get_backend(backend).title} engines on workers",
                f"no worker has a GPU and the resource {GPU}",
                f"start each worker with one GPU visible and --resources {GPU}=1",
                code="executor-gpu-missing",
                value=backend,
            )

    def open(self, source: str | Path, *, device: str | int | None = None) -> Runner:
        """Open a file for verbs with the same executor.

        Args:
            source: An engine, an ONNX file that holds its weights, or the address of a served model.
            device: The device of an engine, as a worker names it.

        Returns:
            An ONNX file and a served model run here too, an engine on workers only.

        Raises:
            EngineError, OnnxError, CapabilityError: It can't be opened here, or on a worker.
        """

        file = SentFile.read(source)
        if not file.is_engine:
            return file.open()
        facts = self.run(_describe_runner, file, device, stage=f"open {Path(source).name}")
        return WorkerRunner(Path(source), facts, functools.partial(SentFile.open, file, device=device))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentFile:
    """A model as it travels to workers.

    Attributes:
        name: The file's name, or the address of a served model.
        content: Its bytes; None for a served model.
    """

    name: str
    content: bytes | None = dataclasses.field(repr=False)

    @classmethod
    def read(cls, source: str | Path) -> SentFile:
        """Read a file to send.

        Args:
            source: An engine, an ONNX file that holds its weights, or the address of a served model.

        Raises:
            EngineError: It is no engine.
        """
        from trtkit.backends import read_engine
        from trtkit.backends.triton import is_address

        if is_address(source):
            return cls(name=str(source), content=None)
        if Path(source).suffix.lower() != ".onnx":
            read_engine(source)  # what is wrong with it is said with its own path
        return cls(name=Path(source).name, content=Path(source).read_bytes())

    @property
    def is_engine(self) -> bool:
        """Whether it is neither an ONNX file nor a served model."""
        return self.content is not None and Path(self.name).suffix.lower() != ".onnx"

    def open(self, *, device: str | int | None = None) -> Runner:
        """Open the model in this process.

        Args:
            device: The device of an engine.

        Raises:
            EngineError, OnnxError, CapabilityError: It can't be opened here.
        """
        from trtkit import backends

        if self.content is None:
            return backends.open(self.name)
        if not self.is_engine:
            import onnx

            return backends.open(onnx.load_model_from_string(self.content))
        # Runners hold the engine in memory.
        with temporary_folder() as folder:
            path = folder / self.name
            write_bytes(path, self.content)
            return backends.open(path, device=device)


class WorkerRunner(Runner):
    """An engine that workers run: verbs with an executor take it, and nothing runs it here.

    Args:
        path: The file.
        facts: What a worker told of it.
        opener: Opens it in a worker.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], opener: Callable[[], Runner]) -> None:
        for name in _FACTS:
            setattr(self, name, facts[name])
        self.path = path
        self.opener = opener

    def infer(self, feeds: Any) -> NoReturn:
        """Refuse: the engine is open on workers only.

        Raises:
            EngineError: Always.
        """
        raise EngineError(
            f"run {self.path} here",
            f"it was opened on workers, as {self.name}",
            "pass it to a verb together with its executor, or open the file here",
            code="runner-on-workers",
            path=self.path,
        )

    def close(self) -> None:
        """Do nothing: nothing is open here."""


def _pack(*common: Any) -> tuple[Any, ...]:
    return common


def _call(common: tuple[Any, ...], call: tuple[Callable[..., Output], Any]) -> Output:
    function, shard = call
    return function(make_task_reporter(), *common, shard)


def _call_with_all(reporter: Reporter, *arguments: Any) -> Any:
    *given, function = arguments
    return function(reporter, *given)


def _describe_runner(reporter: Reporter, file: SentFile, device: str | int | None) -> dict[str, Any]:
    """What a runner is, in a worker."""
    with file.open(device=device) as runner:
        return {name: getattr(runner, name) for name in _FACTS}

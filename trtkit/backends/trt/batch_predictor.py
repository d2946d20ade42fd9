"""`predict` of an engine, on the GPU: the host prepares a batch while the GPU works on the one before.

A batch goes through three steps: its images are copied to pinned memory by other threads; transfer, preprocessing,
engine and NMS are enqueued, as CUDA graphs once they have run; and the host reads its objects. On the GPU a batch is
transferred while the engine runs the one before, and preprocessed beside the NMS of that one.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from trtkit.backends.stages import enter_stage
from trtkit.backends.trt.execution import RUNS_BEFORE_CAPTURE, trim_rows
from trtkit.backends.trt.gpu_preprocess import DeviceImages, HostImages, locate_images
from trtkit.backends.trt.output_readers import choose_reader

if TYPE_CHECKING:
    from trtkit.backends.trt.copying import Copier
    from trtkit.backends.trt.execution import Execution
    from trtkit.models.model import ModelInfo
    from trtkit.tasks import PostprocessSettings, Prediction

__all__ = ["BatchPredictor"]

Shape = tuple[int, ...]
Result = TypeVar("Result")


class _Memory:
    """What one batch under way holds of the host's pinned memory: its images, and what is read of its outputs.

    Args:
        pinned: Whether a GPU reads and writes it.
    """

    def __init__(self, *, pinned: bool) -> None:
        self.images = HostImages(pinned=pinned)
        self._values: dict[str, torch.Tensor] = {}

    def download(self, values: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Enqueue a copy to the host, which is there when the stream has come so far."""
        hosts = {}
        for name, value in values.items():
            memory = self._values.get(name)
            if memory is None or memory.numel() < value.numel():
                memory = self._values[name] = torch.empty(value.numel(), pin_memory=value.is_cuda)
            host = memory[: value.numel()].view(value.shape)
            host.copy_(value, non_blocking=True)
            hosts[name] = host.numpy()
        return hosts


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _StagedBatch:
    """A batch in pinned memory.

    Attributes:
        images: The images, should it have to run again.
        shape: Of the input.
        padded: The shape to run, which may hold more images.
        memory: What it holds.
        copied: Other threads' copying.
    """

    images: Sequence[np.ndarray]
    shape: Shape
    padded: Shape
    memory: _Memory
    copied: Sequence[Future[None]]

    def wait(self) -> None:
        """Wait until the images are copied."""
        for one in self.copied:
            one.result()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _StartedBatch:
    """A batch whose work is enqueued.

    Attributes:
        staged: The batch.
        values: For `OutputReader.read`, once `done` has happened.
        done: A CUDA event.
    """

    staged: _StagedBatch
    values: Mapping[str, np.ndarray]
    done: Any


class _Replay:
    """Enqueues the same operations again and again, from the third time on as a CUDA graph: one launch for all of them.

    Args:
        execution: Captures them.
        stream: Where they are enqueued; it must be the current one.
    """

    def __init__(self, execution: Execution, stream: Any) -> None:
        self._execution, self._stream = execution, stream
        self._key: Any = None
        self._runs = 0
        self._graph: Any = None
        self._result: Any = None
        self.error = ""

    @property
    def is_captured(self) -> bool:
        """Whether a graph is replayed."""
        return self._graph is not None

    def enqueue(self, key: Any, operations: Callable[[], Result]) -> Result:
        """Enqueue operations.

        Args:
            key: What the operations depend on: their inputs' memory and shapes, and settings.
            operations: Enqueues them and waits for nothing.

        Returns:
            Their result, which the next call overwrites.
        """
        if key != self._key:
            self.free()
            self._key = key
        if self._graph is None and not self.error and self._runs >= RUNS_BEFORE_CAPTURE:
            try:
                self._graph, self._result = self._execution.capture(operations)
            except RuntimeError as error:
                # As they are they run anyway.
                self.error = str(error)
        if self._graph is None:
            self._runs += 1
            return operations()
        self._graph.replay()
        return self._result  # type: ignore[no-any-return]

    def free(self) -> None:
        """Free the graph and its memory."""
        if self._graph is not None:
            self._stream.synchronize()
            self._graph.reset()
        self._key = self._graph = self._result = None
        self._runs = 0


class BatchPredictor:
    """Predictions of batches by an engine. Thread-safe: work is enqueued under the lock.

    Args:
        execution: The engine.
        info: The model's description.
        input_name: The image input.
        lock: Serializes what uses the engine's memory.
        copier: Copies images to pinned memory.
        shapes: The input's shape of a number of images, and the shape to run, which may hold more.
    """

    def __init__(
        self,
        execution: Execution,
        info: ModelInfo,
        *,
        input_name: str,
        lock: contextlib.AbstractContextManager[Any],
        copier: Copier,
        shapes: Callable[[int], tuple[Shape, Shape]],
    ) -> None:
        self._execution, self._info, self._input_name, self._lock = execution, info, input_name, lock
        self._copier, self._shapes = copier, shapes
        self._free: list[_Memory] = []
        self._images = DeviceImages(execution.device)
        self._preprocess = _Replay(execution, execution.stream)
        self._postprocess = _Replay(execution, execution.objects_stream)
        self._preprocessed = execution.torch.cuda.Event()
        self._reader = choose_reader(info)
        blocks = execution.blocks
        self._table = None if blocks is None else blocks.tabulate(info.preprocess).to(execution.device)

    def predict(self, batches: Iterable[Sequence[np.ndarray]], settings: PostprocessSettings) -> Iterator[Prediction]:
        """Predict batch by batch.

        A batch is enqueued whole, before the one before is read: the GPU need not wait for the host, nor the host for
        the GPU. A batch of more candidates than that has room for runs again and waits for their count, and so do the
        batches that follow it.

        Args:
            batches: uint8 images (height, width, channels), none more than the engine takes.
            settings: Thresholds.

        Yields:
            A prediction per image, in order.

        Raises:
            EngineError: The run failed.
        """
        enqueues = True
        remaining, started = iter(batches), None
        first = next(remaining, None)
        staged = None if first is None else self._stage(first)
        while staged is not None:
            following = self._start(staged, settings) if enqueues else None
            batch = next(remaining, None)
            upcoming = None if batch is None else self._stage(batch, ahead=True)
            if started is not None:
                found = self._finish(started, settings)
                enqueues = enqueues and found is not None
                yield from self._run(self._stage(started.staged.images), settings) if found is None else found
            if following is None:
                yield from self._run(staged, settings)
            started, staged = following, upcoming
        if started is not None:
            found = self._finish(started, settings)
            yield from self._run(self._stage(started.staged.images), settings) if found is None else found

    def free(self) -> None:
        """Free the memory."""
        self._free.clear()
        self._preprocess.free()
        self._postprocess.free()
        self._images.free()

    def _stage(self, batch: Sequence[np.ndarray], *, ahead: bool = False) -> _StagedBatch:
        """Begin to copy a batch to pinned memory; `ahead`: the stages of the batch before are timed meanwhile."""
        shape, padded = self._shapes(len(batch))
        memory = self._free.pop() if self._free else _Memory(pinned=self._execution.device.type == "cuda")
        transforms = locate_images(batch, (shape[2], shape[3]), self._info.preprocess)
        if not ahead:
            enter_stage("upload")
        copied = self._copier.start(memory.images.reserve(batch, transforms))
        memory.images.write_places()
        return _StagedBatch(images=batch, shape=shape, padded=padded, memory=memory, copied=copied)

    def _start(self, staged: _StagedBatch, settings: PostprocessSettings) -> _StartedBatch:
        """Enqueue a batch, down to the copy of its objects to the host."""
        count, execution = len(staged.images), self._execution
        staged.wait()
        with self._lock:
            self._enqueue_engine(staged)
            with execution.use_stream(execution.objects_stream):
                execution.objects_stream.wait_stream(execution.stream)
                enter_stage("postprocess")
                values = self._enqueue_reading(count, staged.padded[0], settings)
                execution.hold_outputs()
                enter_stage("download")
                hosts = staged.memory.download(values)
                done = execution.torch.cuda.Event()
                done.record(execution.objects_stream)
        return _StartedBatch(staged=staged, values=hosts, done=done)

    def _enqueue_reading(self, count: int, padded: int, settings: PostprocessSettings) -> Mapping[str, torch.Tensor]:
        outputs = self._read_outputs(count, padded)

        def enqueue() -> Mapping[str, torch.Tensor]:
            return self._reader.enqueue(outputs, count, settings)

        if not self._reader.computes:
            return enqueue()
        memory = tuple((value.data_ptr(), tuple(value.shape)) for value in outputs.values())
        return self._postprocess.enqueue((count, settings, memory), enqueue)

    def _read_outputs(self, count: int, padded: int) -> dict[str, torch.Tensor]:
        return {name: trim_rows(value, count, padded) for name, value in self._execution.outputs().items()}

    def _finish(self, started: _StartedBatch, settings: PostprocessSettings) -> list[Prediction] | None:
        """The predictions of a batch; None if it had too many candidates."""
        with self._execution.use_stream():
            started.done.synchronize()
        enter_stage("postprocess")
        memory = started.staged.memory
        found = self._reader.read(started.values, memory.images.transforms, settings)
        self._free.append(memory)
        return None if found is None else list(found)

    def _run(self, staged: _StagedBatch, settings: PostprocessSettings) -> list[Prediction]:
        """Predict a batch and wait for it."""
        staged.wait()
        with self._lock, self._execution.use_stream():
            self._enqueue_engine(staged)
            enter_stage("postprocess")
            outputs = self._read_outputs(len(staged.images), staged.padded[0])
            found = self._reader.read_all(outputs, staged.memory.images.transforms, settings)
            # It has waited for the stream.
            self._free.append(staged.memory)
        return list(found)

    def _enqueue_engine(self, staged: _StagedBatch) -> None:
        """Enqueue upload, preprocessing and the engine."""
        execution, preprocess = self._execution, self._info.preprocess
        with execution.use_stream(execution.upload_stream):
            # The images before are in the same memory.
            execution.upload_stream.wait_event(self._preprocessed)
            enter_stage("upload")
            self._images.upload(staged.memory.images, execution.stream)
        with execution.use_stream():
            execution.stream.wait_stream(execution.upload_stream)
            enter_stage("preprocess")
            target = execution.input(self._input_name, staged.shape)
            key = (*self._images.key, target.data_ptr(), staged.shape)
            table = self._table
            self._preprocess.enqueue(
                key,
                lambda: (
                    self._images.preprocess_into(target, preprocess)
                    if table is None
                    else self._images.look_up_into(target, table, preprocess)
                ),
            )
            self._preprocessed.record(execution.stream)
            enter_stage("engine")
            execution.run({self._input_name: staged.padded})

"""One TensorRT engine in GPU memory: its context, buffers, stream and CUDA graph."""

from __future__ import annotations

import atexit
import contextlib
import math
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from trtkit.backends.capabilities import import_bindings, require_torch_cuda
from trtkit.backends.devices import Device
from trtkit.backends.trt.callbacks import capture_messages, get_logger
from trtkit.errors import EngineError

__all__ = ["Execution"]

# Runs of one shape before a CUDA graph is captured: the first ones allocate and load kernels, which a capture forbids.
RUNS_BEFORE_CAPTURE = 2
# Captures of two threads at once would see each other's work.
_CAPTURING = threading.Lock()
_OPEN: weakref.WeakSet[Execution] = weakref.WeakSet()


class Execution:
    """An engine that is ready to run on one GPU. Not safe for several threads at once: the runner holds a lock.

    Args:
        plan: What TensorRT serialized.
        backend: "tensorrt" or "tensorrt_rtx".
        device: A GPU or a DLA core.
        asked: What is being done, for errors.

    Raises:
        EngineError: TensorRT does not take the plan, or the GPU has too little memory.
        CapabilityError: Torch has no CUDA.
    """

    def __init__(self, plan: bytes, backend: str, device: Device, *, asked: str) -> None:
        self.torch: Any = require_torch_cuda(asked)
        self.trt: Any = import_bindings(backend)
        self.backend = backend
        self.device = self.torch.device("cuda", device.gpu)
        self.asked = asked
        self.graph: Any = None
        self.graph_error = ""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._same = 0
        self._allocators: dict[str, Any] = {}
        with self.torch.cuda.device(self.device):
            self.stream: Any = self.torch.cuda.Stream(self.device)
            self.runtime, self.engine, self.context = self._load(plan, device)
            try:
                self._name_tensors()
                # On the stream that will use it: clearing memory on another one could come after the first input.
                with self.torch.cuda.stream(self.stream):
                    self._allocate()
            except self.torch.cuda.OutOfMemoryError as error:
                raise EngineError(
                    asked, f"the GPU has too little memory ({_first_line(error)})", "use a smaller batch"
                ) from error
        _OPEN.add(self)

    @contextlib.contextmanager
    def use_stream(self) -> Iterator[None]:
        """Make the engine's stream the current one, so that torch's operations queue up with the engine's.

        Yields:
            Nothing.

        Raises:
            EngineError: CUDA failed inside the block.
        """
        if self.context is None:
            raise EngineError(self.asked, "the engine is closed", "open it again")
        try:
            with self.torch.cuda.stream(self.stream):
                yield
        except RuntimeError as error:
            # Torch reports every CUDA failure, asynchronous ones included, as a RuntimeError.
            raise EngineError(
                self.asked, f"CUDA failed ({_first_line(error)})", "open the engine again, in a new process"
            ) from error

    def input(self, name: str, shape: tuple[int, ...]) -> Any:
        """The input's memory as a tensor of a shape.

        Args:
            name: The input.
            shape: At most its largest.
        """
        return self.buffers[name][: math.prod(shape)].view(shape)

    def outputs(self) -> dict[str, Any]:
        """The last run's outputs: views that the next run overwrites."""
        found = {}
        for name in self.output_names:
            sink = self._allocators.get(name)
            if sink is not None:
                # The shape arrives with the data.
                self.stream.synchronize()
                found[name] = sink.view()
                continue
            shape = tuple(self.context.get_tensor_shape(name))
            found[name] = self.buffers[name][: math.prod(shape)].view(shape)
        return found

    def run(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Queue one run on the stream; the inputs are already in their memory.

        A CUDA graph replays it once a shape has been run a few times.

        Args:
            shapes: Of every input.

        Raises:
            EngineError: TensorRT refuses.
        """
        self.set_shapes(shapes)
        if self.graph is not None:
            self.graph.replay()
            return
        self.launch()
        self._same += 1
        if self._same >= RUNS_BEFORE_CAPTURE and not self._allocators and not self.graph_error:
            self._capture()

    def launch(self) -> None:
        """Queue one run without a CUDA graph.

        Raises:
            EngineError: TensorRT refuses.
        """
        with capture_messages() as messages:
            if not self.context.execute_async_v3(self.stream.cuda_stream):
                raise EngineError(self.asked, messages.why(), "see the trtkit.tensorrt log for all TensorRT said")

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Tell TensorRT the inputs' shapes, where they changed.

        Args:
            shapes: Of every input.

        Raises:
            EngineError: TensorRT refuses them.
        """
        if dict(shapes) == self.shapes:
            return
        self._drop_graph()
        self._same = 0
        self.graph_error = ""
        with capture_messages() as messages:
            for name, shape in shapes.items():
                if not self.context.set_input_shape(name, shape):
                    self.shapes = {}
                    raise EngineError(
                        self.asked, f"shape {shape} of {name!r}: {messages.why()}", "pass a shape it was built for"
                    )
        self.shapes = dict(shapes)

    def recreate_context(self) -> None:
        """Replace the context by a new one with the same memory and shapes.

        Raises:
            EngineError: The GPU has too little memory.
        """
        shapes = self.shapes
        self.stream.synchronize()
        self._drop_graph()
        # Before the new one is made: TensorRT 8 lends an optimization profile to one context at a time.
        self.context = None
        with capture_messages() as messages:
            self.context = self.engine.create_execution_context()
        if self.context is None:
            raise EngineError(
                self.asked, f"no memory to run it ({messages.why()})", "free GPU memory, and open it again"
            )
        self.shapes = {}
        for name, buffer in self.buffers.items():
            self.context.set_tensor_address(name, buffer.data_ptr())
        for name, sink in self._allocators.items():
            self.context.set_output_allocator(name, sink)
        self.set_shapes(shapes)

    def times(self, runs: int) -> list[float]:
        """Time runs on the GPU itself, by CUDA events around each.

        Args:
            runs: How many, queued one behind the other.

        Returns:
            Milliseconds of each.
        """
        events = [[self.torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
        for begin, end in events:
            begin.record(self.stream)
            self.run(self.shapes)
            end.record(self.stream)
        self.stream.synchronize()
        return [float(begin.elapsed_time(end)) for begin, end in events]

    @property
    def memory(self) -> int:
        """Bytes of GPU memory for activations, inputs and outputs; the weights come on top (about the plan's size)."""
        held: int = sum(buffer.numel() * buffer.element_size() for buffer in self.buffers.values())
        scratch = getattr(self.engine, "device_memory_size_v2", None)
        return held + int(self.engine.device_memory_size if scratch is None else scratch)

    def close(self) -> None:
        """Free everything on the GPU; closing twice is fine."""
        if self.context is None:
            return
        with contextlib.suppress(RuntimeError):
            self.stream.synchronize()
        self._drop_graph()
        # Each needs the next one alive while it goes.
        self.context = None
        self.engine = None
        self.runtime = None
        self.buffers.clear()
        self._allocators.clear()
        self.stream = None
        with contextlib.suppress(RuntimeError):
            self.torch.cuda.empty_cache()
        _OPEN.discard(self)

    def _load(self, plan: bytes, device: Device) -> tuple[Any, Any, Any]:
        with capture_messages() as messages:
            runtime = self.trt.Runtime(get_logger(self.backend))
            if device.kind == "dla":
                runtime.DLA_core = device.index
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise EngineError(
                    self.asked,
                    f"TensorRT {self.trt.__version__} does not take it ({messages.why()})",
                    "export the model again with this TensorRT on this GPU",
                )
            context = engine.create_execution_context()
            if context is None:
                raise EngineError(
                    self.asked, f"no memory to run it ({messages.why()})", "use a smaller batch or free GPU memory"
                )
        return runtime, engine, context

    def _name_tensors(self) -> None:
        engine, trt = self.engine, self.trt
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.input_names = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.output_names = [name for name in names if name not in self.input_names]
        self.types = {name: _torch_type(self.torch, engine.get_tensor_dtype(name)) for name in names}
        self.ranges: dict[str, tuple[tuple[int, ...], ...]] = {}
        for name in self.input_names:
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise EngineError(
                    self.asked, f"its input {name!r} is a shape on the host", "export a graph with images alone"
                )
            shape = tuple(engine.get_tensor_shape(name))
            fixed = all(side >= 0 for side in shape)
            profile = [shape] * 3 if fixed else [tuple(found) for found in engine.get_tensor_profile_shape(name, 0)]
            self.ranges[name] = tuple(profile)
        self.dynamic = any(low != high for low, _, high in self.ranges.values())

    def _allocate(self) -> None:
        """Memory for the largest shapes, so that no run allocates."""
        self.buffers: dict[str, Any] = {}
        for name in self.input_names:
            self.buffers[name] = self._memory(name, math.prod(self.ranges[name][2]))
            self.context.set_tensor_address(name, self.buffers[name].data_ptr())
        self.set_shapes({name: largest for name, (_, _, largest) in self.ranges.items()})
        for name in self.output_names:
            shape = tuple(self.context.get_tensor_shape(name))
            if any(side < 0 for side in shape):
                self._allocators[name] = _create_output_allocator(self, name)
                self.context.set_output_allocator(name, self._allocators[name])
                continue
            self.buffers[name] = self._memory(name, math.prod(shape))
            self.context.set_tensor_address(name, self.buffers[name].data_ptr())

    def _memory(self, name: str, count: int) -> Any:
        return self.torch.zeros(max(1, count), dtype=self.types[name], device=self.device)

    def _capture(self) -> None:
        """Record a run as a CUDA graph; where TensorRT can't be recorded, plain runs go on."""
        self.stream.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with _CAPTURING, capture_messages() as messages:
            done = False
            try:
                # Other threads may allocate meanwhile: only this thread's calls are recorded or forbidden.
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    done = bool(self.context.execute_async_v3(self.stream.cuda_stream))
                finally:
                    graph.capture_end()
            except RuntimeError as error:
                self.graph_error = _first_line(error)
            if not done and not self.graph_error:
                self.graph_error = messages.why()
        if self.graph_error:
            return
        self.graph = graph

    def _drop_graph(self) -> None:
        if self.graph is not None:
            self.stream.synchronize()
            self.graph.reset()
            self.graph = None


def _create_output_allocator(execution: Execution, name: str) -> Any:
    """Takes an output whose size is known only after the run; memory is kept and grows."""
    trt = execution.trt

    class Sink(trt.IOutputAllocator):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()
            self.data: Any = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            kind = execution.types[name]
            count = max(1, math.ceil(size / execution.torch.empty(0, dtype=kind).element_size()))
            if self.data is None or self.data.numel() < count:
                self.data = execution.torch.empty(count, dtype=kind, device=execution.device)
            return int(self.data.data_ptr())

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

        def view(self) -> Any:
            return self.data[: math.prod(self.shape)].view(self.shape)

    return Sink()


def _torch_type(torch: Any, kind: Any) -> Any:
    names = {
        "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT8": torch.int8,
        "INT32": torch.int32, "INT64": torch.int64, "BOOL": torch.bool, "UINT8": torch.uint8,
    }  # fmt: skip
    return names[str(kind.name)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@atexit.register
def _close_all() -> None:
    """TensorRT's objects call their logger when they go, so they go before the interpreter does."""
    for execution in list(_OPEN):
        execution.close()

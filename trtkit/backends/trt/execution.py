"""A TensorRT engine on the GPU: execution context, buffers, stream and CUDA graph."""

from __future__ import annotations

import atexit
import contextlib
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trtkit.backends.capabilities import import_bindings, require_torch_cuda
from trtkit.backends.devices import Device
from trtkit.backends.registry import get_title
from trtkit.backends.runner import closed_error
from trtkit.backends.trt.callbacks import capture_messages, get_logger
from trtkit.errors import EngineError

if TYPE_CHECKING:
    from trtkit.backends.trt.pixel_blocks import PixelBlocks

__all__ = ["EventClock", "Execution", "load_plan", "trim_rows"]

# Runs of one shape before a CUDA graph is captured: the first ones allocate and load kernels, which fails in a capture.
RUNS_BEFORE_CAPTURE = 2
QUEUED_RUNS = 20
# Captures of two threads at once would record each other's calls.
_CAPTURING = threading.Lock()
_OPEN: weakref.WeakSet[Execution] = weakref.WeakSet()


def load_plan(
    plan: bytes, backend: str, *, asked: str, device: Device | None = None, host_code: bool = False
) -> tuple[Any, Any]:
    """Deserialize a plan.

    Args:
        plan: The serialized engine.
        backend: "tensorrt" or "tensorrt_rtx".
        asked: The operation, for the error.
        device: A DLA core, or anything else for the current GPU.
        host_code: Let the plan bring its own runtime, which runs in this process.

    Returns:
        TensorRT's runtime, which must outlive the engine, and the engine.

    Raises:
        EngineError: TensorRT rejects the plan.
    """
    trt: Any = import_bindings(backend)
    with capture_messages() as messages:
        runtime = trt.Runtime(get_logger(backend))
        if device is not None and device.kind == "dla":
            runtime.DLA_core = device.index
        if host_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            asked,
            f"{get_title(backend)} {trt.__version__} rejects the plan ({messages.summary()})",
            "export the model again with this TensorRT on this GPU",
            code="engine-plan-rejected",
            reason=messages.summary(),
        )
    return runtime, engine


class Execution:
    """A deserialized engine with its execution context on one GPU. Not thread-safe: the runner holds a lock.

    The engine runs on `stream`. Images may be transferred on `upload_stream` and outputs be read on `objects_stream`
    while it works on other batches.

    Args:
        plan: The serialized engine.
        backend: "tensorrt" or "tensorrt_rtx".
        device: A GPU or a DLA core.
        asked: The operation, for errors.
        host_code: Let the plan bring its own runtime, which runs in this process.
        blocks: The layout of its input, if that is pixels in blocks. Shapes are then those of the images.

    Raises:
        EngineError: TensorRT rejects the plan, or the GPU has too little memory.
        CapabilityError: Torch has no CUDA.
    """

    def __init__(
        self,
        plan: bytes,
        backend: str,
        device: Device,
        *,
        asked: str,
        host_code: bool = False,
        blocks: PixelBlocks | None = None,
    ) -> None:
        self.torch: Any = require_torch_cuda(asked)
        self.trt: Any = import_bindings(backend)
        self.backend = backend
        self.device = self.torch.device("cuda", device.gpu)
        self.asked = asked
        self.blocks = blocks
        self.graph: Any = None
        self.graph_error = ""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.buffers: dict[str, Any] = {}
        self._repeats = 0
        self._are_outputs_held = False
        self._allocators: dict[str, Any] = {}
        with self.torch.cuda.device(self.device):
            self.stream, self.upload_stream, self.objects_stream = (
                self.torch.cuda.Stream(self.device) for _ in range(3)
            )
            self.runtime, self.engine = load_plan(plan, backend, asked=asked, device=device, host_code=host_code)
            # So that a failure frees all of it: an error that a notebook shows keeps this object alive.
            _OPEN.add(self)
            try:
                self.context: Any = self._create_context()
                self._name_tensors()
                # On the stream that uses it: clearing memory on another one could come after the first input.
                with self.torch.cuda.stream(self.stream):
                    self._allocate()
            except BaseException as error:
                self.close()
                if not isinstance(error, self.torch.cuda.OutOfMemoryError):
                    raise
                raise EngineError(
                    asked,
                    f"the GPU has too little memory ({_first_line(error)})",
                    "use a smaller batch",
                    code="run-out-of-memory",
                ) from error

    @contextlib.contextmanager
    def use_stream(self, stream: Any = None) -> Iterator[None]:
        """Make the engine's stream the current one, so that torch operations are ordered with the engine's runs.

        Args:
            stream: Another one of its streams.

        Yields:
            Nothing.

        Raises:
            EngineError: CUDA failed inside the block.
        """
        self.require_open()
        try:
            with self.torch.cuda.stream(self.stream if stream is None else stream):
                yield
        except RuntimeError as error:
            # Torch reports every CUDA failure, asynchronous ones included, as a RuntimeError.
            raise EngineError(
                self.asked,
                f"CUDA failed ({_first_line(error)})",
                "open the engine again, in a new process",
                code="run-cuda-failed",
            ) from error

    def require_open(self) -> None:
        """Check that the engine is open.

        Raises:
            EngineError: It is closed.
        """
        if self.context is None:
            raise closed_error(self.asked)

    def input(self, name: str, shape: tuple[int, ...]) -> Any:
        """A view of an input's memory.

        Args:
            name: The input.
            shape: The view's shape, at most the input's largest.

        Returns:
            The view; of pixels in blocks as `PixelBlocks.view` gives it.

        Raises:
            EngineError: The engine is closed.
        """
        self.require_open()
        if self.blocks is not None:
            return self.blocks.view(self.buffers[name], shape)
        return self.buffers[name][: math.prod(shape)].view(shape)

    def write_input(self, name: str, values: Any) -> None:
        """Enqueue a copy into an input's memory.

        Args:
            name: The input.
            values: A tensor of the host or of a GPU; images are NCHW.

        Raises:
            EngineError: The engine is closed.
        """
        target = self.input(name, tuple(values.shape))
        if self.blocks is not None:
            values = self.blocks.convert(values.to(self.device, non_blocking=True)).view(target.shape)
        target.copy_(values, non_blocking=True)

    def outputs(self) -> dict[str, Any]:
        """The last run's outputs, as views that the next run overwrites."""
        outputs = {}
        for name in self.output_names:
            allocator = self._allocators.get(name)
            if allocator is not None:
                # The shape is known when the run ends.
                self.stream.synchronize()
                outputs[name] = allocator.view()
                continue
            shape = tuple(self.context.get_tensor_shape(name))
            outputs[name] = self.buffers[name][: math.prod(shape)].view(shape)
        return outputs

    def run(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Enqueue one run on the stream; the inputs are already in their memory.

        After a few runs of one shape a CUDA graph replays it.

        Args:
            shapes: The shape of every input.

        Raises:
            EngineError: TensorRT reports an error.
        """
        self.set_shapes(shapes)
        if self.graph is not None:
            self._wait_for_reader()
            self.graph.replay()
            return
        self.launch()
        self._repeats += 1
        if self._repeats >= RUNS_BEFORE_CAPTURE and not self._allocators and not self.graph_error:
            self._capture()

    def launch(self) -> None:
        """Enqueue one run without a CUDA graph.

        Raises:
            EngineError: TensorRT reports an error.
        """
        self._wait_for_reader()
        with capture_messages() as messages:
            if not self.context.execute_async_v3(self.stream.cuda_stream):
                raise EngineError(
                    self.asked,
                    messages.summary(),
                    "see the trtkit.tensorrt log for all messages",
                    code="run-failed",
                    reason=messages.summary(),
                )

    def hold_outputs(self) -> None:
        """Let the next run wait until what `objects_stream` has been given so far is done."""
        self._are_outputs_held = True

    def _wait_for_reader(self) -> None:
        if self._are_outputs_held:
            self.stream.wait_stream(self.objects_stream)
            self._are_outputs_held = False

    def capture(self, enqueue: Callable[[], Any]) -> tuple[Any, Any]:
        """Capture as a CUDA graph what a function enqueues on the current stream, which must be one of the engine's.

        Args:
            enqueue: The function; it has run a few times before, since first runs allocate and load kernels.

        Returns:
            The graph and what the function returned, memory that every replay writes again.

        Raises:
            RuntimeError: Some of it can't be captured.
        """
        self.torch.cuda.current_stream(self.device).synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with _CAPTURING:
            # Other threads may allocate meanwhile: only this thread's calls are recorded or restricted.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                result = enqueue()
            finally:
                graph.capture_end()
        return graph, result

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Set the input shapes, where they changed.

        Args:
            shapes: The shape of every input.

        Raises:
            EngineError: TensorRT rejects them.
        """
        if dict(shapes) == self.shapes:
            return
        self._drop_graph()
        self._repeats = 0
        self.graph_error = ""
        with capture_messages() as messages:
            for name, shape in shapes.items():
                own = shape if self.blocks is None else self.blocks.engine_shape(shape)
                if not self.context.set_input_shape(name, own):
                    self.shapes = {}
                    raise EngineError(
                        self.asked,
                        f"shape {shape} of {name!r}: {messages.summary()}",
                        "pass a shape it was built for",
                        code="run-shape",
                        shape=shape,
                    )
        self.shapes = dict(shapes)

    def recreate_context(self) -> None:
        """Replace the execution context by a new one with the same memory and shapes.

        Raises:
            EngineError: The GPU has too little memory.
        """
        shapes = self.shapes
        self.stream.synchronize()
        self._drop_graph()
        # Before the new one is created: in TensorRT 8 an optimization profile belongs to one context at a time.
        self.context = None
        self.context = self._create_context()
        self.shapes = {}
        for name, buffer in self.buffers.items():
            self.context.set_tensor_address(name, buffer.data_ptr())
        for name, allocator in self._allocators.items():
            self.context.set_output_allocator(name, allocator)
        self.set_shapes(shapes)

    def time_runs(self, runs: int) -> list[float]:
        """Time runs on the GPU, by CUDA events around each.

        Args:
            runs: Number of runs, enqueued one after the other.

        Returns:
            Latency of each run, ms.
        """
        events = [[self.torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
        for begin, end in events:
            begin.record(self.stream)
            self.run(self.shapes)
            end.record(self.stream)
        self.stream.synchronize()
        return [float(begin.elapsed_time(end)) for begin, end in events]

    def run_for(self, seconds: float) -> tuple[int, float]:
        """Run back to back, the next runs enqueued while the GPU works.

        Args:
            seconds: For how long, s.

        Returns:
            Number of runs, and the seconds they took.
        """
        begun, runs, previous = time.perf_counter(), 0, None
        while True:
            for _ in range(QUEUED_RUNS):
                self.run(self.shapes)
            runs += QUEUED_RUNS
            event = self.torch.cuda.Event()
            event.record(self.stream)
            if previous is not None:
                previous.synchronize()
            previous = event
            if time.perf_counter() - begun >= seconds:
                self.stream.synchronize()
                return runs, time.perf_counter() - begun

    @property
    def memory(self) -> int:
        """GPU memory for activations, inputs and outputs, bytes; the weights (about the plan's size) come on top.

        Raises:
            EngineError: The engine is closed.
        """
        self.require_open()
        buffers: int = sum(buffer.numel() * buffer.element_size() for buffer in self.buffers.values())
        scratch = getattr(self.engine, "device_memory_size_v2", None)
        return buffers + int(self.engine.device_memory_size if scratch is None else scratch)

    def close(self) -> None:
        """Free all GPU memory; closing twice is fine."""
        if self.engine is None:
            return
        for stream in (self.upload_stream, self.stream, self.objects_stream):
            with contextlib.suppress(RuntimeError):
                stream.synchronize()
        self._drop_graph()
        # Each needs the next one alive while it is destroyed.
        self.context = None
        self.engine = None
        self.runtime = None
        self.buffers.clear()
        self._allocators.clear()
        self.stream = self.upload_stream = self.objects_stream = None
        with contextlib.suppress(RuntimeError):
            self.torch.cuda.empty_cache()

    def _create_context(self) -> Any:
        with capture_messages() as messages:
            context = self.engine.create_execution_context()
        if context is None:
            raise EngineError(
                self.asked,
                f"no memory for an execution context ({messages.summary()})",
                "free GPU memory or use a smaller batch, and open it again",
                code="run-out-of-memory",
            )
        return context

    def _name_tensors(self) -> None:
        # No local holds the engine: an error would keep it, and its memory, with its frames.
        modes, locations = self.trt.TensorIOMode, self.trt.TensorLocation
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        self.input_names = [name for name in names if self.engine.get_tensor_mode(name) == modes.INPUT]
        self.output_names = [name for name in names if name not in self.input_names]
        self.types = {name: self._torch_type(name) for name in names}
        self.ranges: dict[str, tuple[tuple[int, ...], ...]] = {}
        for name in self.input_names:
            if self.engine.get_tensor_location(name) != locations.DEVICE:
                raise EngineError(
                    self.asked,
                    f"its input {name!r} is a shape tensor on the host",
                    "export a graph whose only inputs are images",
                    code="engine-shape-input",
                    name=name,
                )
            shape = tuple(self.engine.get_tensor_shape(name))
            fixed = all(side >= 0 for side in shape)
            profile = (
                [shape] * 3 if fixed else [tuple(limit) for limit in self.engine.get_tensor_profile_shape(name, 0)]
            )
            self.ranges[name] = tuple(
                limit if self.blocks is None else self.blocks.image_shape(limit) for limit in profile
            )
        self.dynamic = any(low != high for low, _, high in self.ranges.values())

    def _torch_type(self, name: str) -> Any:
        torch, kind = self.torch, str(self.engine.get_tensor_dtype(name).name)
        types = {
            "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT8": torch.int8,
            "INT32": torch.int32, "INT64": torch.int64, "BOOL": torch.bool, "UINT8": torch.uint8,
        }  # fmt: skip
        if kind not in types:
            raise EngineError(
                self.asked,
                f"its input or output {name!r} is of type {kind}",
                "export a graph whose inputs and outputs are of a type that torch computes in",
                code="engine-tensor-type",
                name=name,
                value=kind,
            )
        return types[kind]

    def _allocate(self) -> None:
        """Allocate memory for the largest shapes, so that no run allocates."""
        for name in self.input_names:
            largest = self.ranges[name][2]
            count = math.prod(largest) if self.blocks is None else self.blocks.count(largest)
            self.buffers[name] = self._allocate_tensor(name, count)
            self.context.set_tensor_address(name, self.buffers[name].data_ptr())
        self.set_shapes({name: largest for name, (_, _, largest) in self.ranges.items()})
        for name in self.output_names:
            shape = tuple(self.context.get_tensor_shape(name))
            if any(side < 0 for side in shape):
                self._allocators[name] = _create_output_allocator(self, name)
                self.context.set_output_allocator(name, self._allocators[name])
                continue
            self.buffers[name] = self._allocate_tensor(name, math.prod(shape))
            self.context.set_tensor_address(name, self.buffers[name].data_ptr())

    def _allocate_tensor(self, name: str, count: int) -> Any:
        return self.torch.zeros(max(1, count), dtype=self.types[name], device=self.device)

    def _capture(self) -> None:
        """Capture a run as a CUDA graph; where that fails, runs stay without one."""
        with capture_messages() as messages:
            try:
                graph, done = self.capture(lambda: self.context.execute_async_v3(self.stream.cuda_stream))
            except RuntimeError as error:
                self.graph_error = _first_line(error)
                return
            if not done:
                self.graph_error = messages.summary()
                return
        self.graph = graph

    def _drop_graph(self) -> None:
        if self.graph is not None:
            self.stream.synchronize()
            self.graph.reset()
            self.graph = None


class EventClock:
    """CUDA events on the current stream: a `StageClock` that does not wait for the GPU.

    An event of an idle stream has the time of the host, so that work of the host between two events counts too.

    Args:
        execution: The engine.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def read(self) -> Any:
        """An event that is recorded now."""
        cuda = self._execution.torch.cuda
        event = cuda.Event(enable_timing=True)
        event.record(cuda.current_stream(self._execution.device))
        return event

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """Milliseconds between two events."""
        return float(begin.elapsed_time(end))

    def synchronize(self) -> None:
        """Wait for all streams."""
        self._execution.torch.cuda.synchronize(self._execution.device)


def _create_output_allocator(execution: Execution, name: str) -> Any:
    """An output allocator for an output whose size is known only after the run; its memory is kept and grows."""
    trt = execution.trt

    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[name-defined, misc]
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

    return OutputAllocator()


def trim_rows(value: Any, count: int, padded: int) -> Any:
    """The rows of the caller's images, without those of the padding.

    Args:
        value: An output, or a view of it.
        count: Images of the caller.
        padded: Images that ran.
    """
    return value[:count] if value.ndim and value.shape[0] == padded else value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@atexit.register
def _close_all() -> None:
    """TensorRT's objects call their logger when they are destroyed, so they must go before the interpreter exits."""
    for execution in list(_OPEN):
        execution.close()

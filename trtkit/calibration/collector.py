"""Calibration pass: runs images through the graph and collects statistics of every tensor that INT8 can quantize."""

from __future__ import annotations

import copy
import dataclasses
import functools
import queue
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trtkit.backends.devices import parse_device
from trtkit.calibration.algorithms import TensorStats
from trtkit.calibration.histogram import CountingBuffer, Histogram
from trtkit.errors import CalibrationError, CapabilityError
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.editing import get_opset, make_reduction
from trtkit.graph.qdq import passes_int8, quantizable_tensors
from trtkit.progress import available_cores

if TYPE_CHECKING:
    from trtkit.models import Model

__all__ = [
    "BoundOutputs",
    "HistogramCollector",
    "HistogramCounter",
    "MinMaxCollector",
    "find_fixed_shapes",
    "find_pass_through_sources",
    "get_fixed_batch",
    "get_model_batch",
    "select_providers",
]


MOVING_AVERAGE_WEIGHT = 0.01
"""Weight of the newest image in the moving average, as in PyTorch's MovingAverageMinMaxObserver."""

WORKERS = 2
"""Images processed in parallel while histograms are counted; each holds all its tensors in memory."""


class HistogramCounter:
    """Runs images and counts the values of tensors; used by one thread at a time.

    Args:
        session: An ONNX Runtime session with the tensors among its outputs; counters may share it.
        outputs: The graph's outputs, which are checked for NaN and infinity, but not counted.
        tensors: The tensors to count.
        fixed: Tensors with a shape that the input shape determines, as for `BoundOutputs`.
    """

    def __init__(self, session: Any, outputs: Sequence[str], tensors: Sequence[str], fixed: Iterable[str]) -> None:
        self.results = BoundOutputs(session, [*outputs, *tensors], fixed)
        self.output_count = len(outputs)
        self.buffer = CountingBuffer()
        self.histograms = [Histogram() for _ in tensors]

    def add(self, inputs: NDArray[np.float32], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
        """Run a batch and count its tensors.

        Args:
            inputs: (N, C, H, W) float32.
            count: Number of images to count; the rest of the batch is padding.

        Returns:
            Minimum and maximum of each tensor by image, (count, tensors), and whether all values are finite.
        """
        values = self.results.run(inputs)
        outputs, tensors = values[: self.output_count], values[self.output_count :]
        low, high = np.empty((count, len(tensors))), np.empty((count, len(tensors)))
        for index, (value, histogram) in enumerate(zip(tensors, self.histograms, strict=True)):
            if len(value) == len(inputs):
                low[:, index], high[:, index] = histogram.add(value[:count], self.buffer)
                continue
            # The batch may be folded into the first axis, as in a reshaped head.
            padded = count < len(inputs) and len(value) % len(inputs) == 0
            own = value[: len(value) // len(inputs) * count] if padded else value
            (low[:, index],), (high[:, index],) = histogram.add(own[None], self.buffer)
        finite = np.isfinite(low).all() and np.isfinite(high).all()
        return low, high, bool(finite and all(np.isfinite(value).all() for value in outputs))


class MinMaxCollector:
    """Collects minimum and maximum of every tensor that INT8 can quantize, over any number of batches.

    The reductions are nodes of the graph, so three numbers per tensor and image leave the runtime instead of the
    tensor. Memory does not grow with the number of images, and the result does not depend on the batches.

    Args:
        proto: FP32 graph with unique node names.
        device: None takes the first GPU that ONNX Runtime offers, else the CPU; "cpu"; a GPU's index or "cuda:1".
        tensors: Tensors to measure; None takes all that some QDQ placement can quantize.
        cores: Cores to use, which decide the number of threads of ONNX Runtime; None takes all of this process.
        alone: No other process needs these cores, so that idle threads may wait actively.

    Raises:
        CapabilityError: A GPU is named and this ONNX Runtime has none.
    """

    collects_histograms = False

    def __init__(
        self,
        proto: onnx.ModelProto,
        *,
        device: int | str | None = None,
        tensors: Iterable[str] | None = None,
        cores: int | None = None,
        alone: bool = True,
    ) -> None:
        import onnxruntime as ort

        self.names = quantizable_tensors(proto) if tensors is None else tuple(tensors)
        self.sources = find_pass_through_sources(proto, self.names)
        self.measured = [name for name in self.names if name not in self.sources]
        self.outputs = [value.name for value in proto.graph.output]
        self.batch = get_fixed_batch(proto)
        self.proto = proto
        count = len(self.measured)
        self.image_count = 0
        self.low, self.high = np.full(count, np.inf), np.full(count, -np.inf)
        self.average_low, self.average_high = np.zeros(count), np.zeros(count)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # The number of threads is fixed: it may decide the order of sums.
        options.intra_op_num_threads = cores or available_cores()
        if self.collects_histograms:
            # Images run in parallel: faster than several threads per layer of one image.
            options.intra_op_num_threads = max(1, options.intra_op_num_threads // WORKERS)
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if not alone:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.providers = select_providers(device)
        add_outputs = _add_tensor_outputs if self.collects_histograms else _add_min_max_outputs
        self.session = ort.InferenceSession(
            add_outputs(proto, self.measured).SerializeToString(), options, providers=self.providers
        )
        self.input = self.session.get_inputs()[0].name

    @property
    def runner(self) -> str:
        """The runner, e.g. "ONNX Runtime 1.32.0 CPU"."""
        import onnxruntime as ort

        provider = self.session.get_providers()[0].removesuffix("ExecutionProvider")
        return f"ONNX Runtime {ort.__version__} {provider}"

    def add(self, images: NDArray[np.float32]) -> None:
        """Measure a batch.

        Args:
            images: (N, C, H, W) float32 in [0, 1]; N at most the batch of a graph with a fixed batch.

        Raises:
            CalibrationError: A tensor holds NaN or infinity; the error names it.
        """
        self.accumulate(*self.measure(images))

    def measure(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Measure a batch without adding it to the statistics; histograms are counted.

        Args:
            images: As for `add`.

        Returns:
            Minimum and maximum of each tensor by image, (N, tensors).

        Raises:
            CalibrationError: A tensor holds NaN or infinity; the error names it.
        """
        low, high, finite = self._measure(images)
        if not finite:
            non_finite = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)).all(axis=0))
            self._raise_non_finite(images, [self.measured[index] for index in non_finite])
        return low, high

    def accumulate(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
        """Add measured images to the statistics, in the order of the images.

        Args:
            low: Minimum of each tensor by image, (N, tensors).
            high: Maximum of each tensor by image, (N, tensors).
        """
        np.minimum(self.low, low.min(axis=0, initial=np.inf), out=self.low)
        np.maximum(self.high, high.max(axis=0, initial=-np.inf), out=self.high)
        for image_low, image_high in zip(low, high, strict=True):
            self.image_count += 1
            # The plain mean of the first 1 / MOVING_AVERAGE_WEIGHT images.
            weight = max(MOVING_AVERAGE_WEIGHT, 1 / self.image_count)
            self.average_low += weight * (image_low - self.average_low)
            self.average_high += weight * (image_high - self.average_high)

    def pad_batch(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images padded to a fixed batch with copies of the last one."""
        missing = 0 if self.batch is None else self.batch - len(images)
        return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing > 0 else images

    def _measure(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
        """Minimum and maximum of each tensor by image, (N, tensors), and whether all values are finite."""
        inputs, image_count, tensor_count = self.pad_batch(images), len(images), len(self.measured)
        reduced = [f"trtkit_{kind}_{index}" for kind in ("low", "high", "sum") for index in range(tensor_count)]
        # Reading every output runs the whole graph, so NaN anywhere is found.
        values = self.session.run([*self.outputs, *reduced], {self.input: inputs})
        outputs, reductions = values[: len(self.outputs)], values[len(self.outputs) :]
        low, high, sums = (
            _stack_by_image(
                reductions[tensor_count * part : tensor_count * (part + 1)], len(inputs), image_count, reduce
            )
            for part, reduce in enumerate(("min", "max", "sum"))
        )
        # ONNX Runtime's ReduceMin and ReduceMax ignore NaN; ReduceSum does not.
        return low, high, all(bool(np.isfinite(part).all()) for part in (low, high, sums, *outputs))

    def stats(self) -> dict[str, TensorStats]:
        """Statistics of each measured tensor so far, in graph order."""
        columns = (self.low, self.high, self.average_low, self.average_high)
        return {
            name: TensorStats(low=float(a), high=float(b), average_low=float(c), average_high=float(d))
            for name, a, b, c, d in zip(self.measured, *columns, strict=True)
        }

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Minimum and maximum of each tensor so far, in graph order, tensors that only move values included."""
        measured = {name: (entry.low, entry.high) for name, entry in self.stats().items()}
        return propagate_ranges(measured, self.sources, self.names)

    def _raise_non_finite(self, images: NDArray[np.float32], non_finite: list[str]) -> None:
        """Run the graph with every float tensor as an output and name the first one that is not finite.

        Args:
            images: The batch.
            non_finite: Measured tensors with non-finite extremes.

        Raises:
            CalibrationError: A tensor is not finite. Nothing is raised if only a sum overflowed.
        """
        import onnxruntime as ort

        proto = copy.deepcopy(self.proto)
        inferred = onnx.shape_inference.infer_shapes(proto)
        floats = {v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        names = [name for node in proto.graph.node for name in node.output if name in floats]
        present = set(self.outputs)
        proto.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in present
        )
        names = [self.input, *names, *self.outputs]
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        tensors: list[str] = []
        step = self.batch or len(images)
        for start in range(0, len(images), step):
            inputs = self.pad_batch(images[start : start + step])
            values = [inputs, *session.run(names[1:], {self.input: inputs})]
            tensors = [name for name, value in zip(names, values, strict=True) if not np.isfinite(value).all()]
            if tensors:
                break
        tensors += non_finite
        if tensors:
            raise CalibrationError(
                "calibrate",
                f"tensor {tensors[0]!r} holds NaN or infinity",
                "check the model's weights and its input",
                code="calibration-not-finite",
                tensor=tensors[0],
                names=tuple(tensors),
            )


class HistogramCollector(MinMaxCollector):
    """Collects minimum, maximum and a signed histogram of every tensor that INT8 can quantize.

    Tensors leave the runtime one image at a time and are counted in numpy, `WORKERS` images in parallel. Memory does
    not grow with the number of images, and the result does not depend on the batches.

    Args:
        proto: As for `MinMaxCollector`.
        device: As for `MinMaxCollector`.
        tensors: As for `MinMaxCollector`.
        cores: As for `MinMaxCollector`.
        alone: As for `MinMaxCollector`; images run one by one where other processes run some too.
    """

    collects_histograms = True

    def __init__(
        self,
        proto: onnx.ModelProto,
        *,
        device: int | str | None = None,
        tensors: Iterable[str] | None = None,
        cores: int | None = None,
        alone: bool = True,
    ) -> None:
        super().__init__(proto, device=device, tensors=tensors, cores=cores, alone=alone)
        # Only the CPU provider can write into our memory; others copy each tensor anyway.
        fixed = find_fixed_shapes(proto, self.measured) if self.providers == ["CPUExecutionProvider"] else ()
        workers = min(WORKERS, available_cores()) if alone else 1
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="trtkit-histograms")
        self.counters = [HistogramCounter(self.session, self.outputs, self.measured, fixed) for _ in range(workers)]
        self.free = queue.SimpleQueue[HistogramCounter]()
        for counter in self.counters:
            self.free.put(counter)

    def stats(self) -> dict[str, TensorStats]:
        """Statistics of each measured tensor so far, in graph order."""
        pairs = zip(super().stats().items(), self._merge_histograms(), strict=True)
        return {name: dataclasses.replace(entry, histogram=histogram) for (name, entry), histogram in pairs}

    def take_histograms(self) -> list[Histogram]:
        """The histograms of the measured tensors so far, which then start anew."""
        merged = self._merge_histograms()
        for counter in self.counters:
            counter.histograms = [Histogram() for _ in self.measured]
        return merged

    def add_histograms(self, histograms: Sequence[Histogram]) -> None:
        """Add the histograms that another collector took; counts are integers, so that their order plays no part.

        Args:
            histograms: From `take_histograms`.
        """
        counter = self.counters[0]
        counter.histograms = [ours.merge(theirs) for ours, theirs in zip(counter.histograms, histograms, strict=True)]

    def _merge_histograms(self) -> list[Histogram]:
        return [
            functools.reduce(Histogram.merge, parts)
            for parts in zip(*(counter.histograms for counter in self.counters), strict=True)
        ]

    def _measure(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
        """As `MinMaxCollector._measure`, and counts the tensors."""
        step = self.batch or 1

        def measure_part(start: int) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
            part = images[start : start + step]
            counter = self.free.get()
            try:
                return counter.add(self.pad_batch(part), len(part))
            finally:
                self.free.put(counter)

        lows, highs, finite = zip(*self.pool.map(measure_part, range(0, len(images), step)), strict=True)
        return np.concatenate(lows), np.concatenate(highs), all(finite)


def find_pass_through_sources(proto: onnx.ModelProto, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Find the tensors of operators that only move values (concatenation, pooling, ...).

    Args:
        proto: The graph.
        names: Tensors to look at.

    Returns:
        The tensors their values come from, by tensor.
    """
    index = GraphIndex(proto)
    producers = {name: index.producer[name] for name in names if name in index.producer}
    # A constant that is concatenated brings values of its own.
    return {
        name: tuple(index.data_inputs(node))
        for name, node in producers.items()
        if passes_int8(node) and not (node.op_type == "Concat" and index.constants.keys() & set(node.input))
    }


def propagate_ranges(
    ranges: Mapping[str, tuple[float, float]], sources: Mapping[str, tuple[str, ...]], names: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """Extend the ranges of measured tensors to tensors of operators that only move values.

    Args:
        ranges: Minimum and maximum by measured tensor.
        sources: For the other tensors, the tensors their values come from.
        names: All tensors in graph order.

    Returns:
        Ranges of `names`; a tensor with several sources takes the union of theirs.
    """
    result = dict(ranges)
    names = tuple(names)
    for name in names:  # graph order: sources come first
        if name not in result:
            parts = [result[source] for source in sources[name] if source in result]
            result[name] = (min(low for low, _ in parts), max(high for _, high in parts))
    return {name: result[name] for name in names}


def get_fixed_batch(proto: onnx.ModelProto) -> int | None:
    """The batch of a graph's input, None if it is dynamic."""
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    return dims[0].dim_value or None if dims else None


def get_model_batch(model: Model) -> int | None:
    """The batch of a model from an ONNX file whose batch is fixed, to which smaller ones are padded; None for others.

    Args:
        model: From `trtkit.load`.
    """
    return get_fixed_batch(model.proto) if model.proto is not None else None


def select_providers(device: int | str | None) -> list[Any]:
    """Select ONNX Runtime's execution providers for a device.

    Args:
        device: As for `MinMaxCollector`.

    Raises:
        CapabilityError: A GPU is named and this ONNX Runtime has none, or a device that it does not run on.
        RecipeError: There is no such device name.
    """
    import onnxruntime as ort

    cpu = "CPUExecutionProvider"
    parsed = parse_device(device)
    if parsed.kind == "cpu":
        return [cpu]
    has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    if parsed.kind == "any":
        return ["CUDAExecutionProvider", cpu] if has_cuda else [cpu]
    if parsed.kind != "cuda":
        raise CapabilityError(
            f"calibrate on device {device!r}",
            "calibration runs in ONNX Runtime, on the CPU or a GPU of this machine",
            "pass 'cpu', or a GPU's index or name such as 'cuda:1'",
            code="calibration-device-unsupported",
            value=device,
        )
    if not has_cuda:
        raise CapabilityError(
            f"calibrate on device {device!r}",
            "this ONNX Runtime has no CUDA execution provider",
            "install onnxruntime-gpu, or omit device",
            code="calibration-device-missing",
            value=device,
        )
    return [("CUDAExecutionProvider", {"device_id": str(parsed.index)}), cpu]


def _stack_by_image(values: list[NDArray[np.float32]], batch: int, count: int, reduce: str) -> NDArray[np.float64]:
    """(count, tensors) one number per image; a tensor whose first axis is not the batch gives its overall one."""
    columns = [value[:count] if len(value) == batch else np.full(count, getattr(value, reduce)()) for value in values]
    return np.stack(columns, axis=1).astype(np.float64) if columns else np.zeros((count, 0))


def _add_min_max_outputs(proto: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """A copy of the graph with minimum, maximum and sum of each tensor by image as further outputs."""
    result = copy.deepcopy(proto)
    graph = result.graph
    opset, rows = get_opset(proto), "trtkit_rows"
    graph.initializer.append(numpy_helper.from_array(np.array([0, -1], np.int64), rows))
    for index, name in enumerate(tensors):
        flat = f"trtkit_flat_{index}"
        graph.node.append(helper.make_node("Reshape", [name, rows], [flat], flat))
        for kind, operator in (("low", "ReduceMin"), ("high", "ReduceMax"), ("sum", "ReduceSum")):
            target = f"trtkit_{kind}_{index}"
            node, constants = make_reduction(operator, flat, target, [1], opset)
            graph.node.append(node)
            graph.initializer.extend(constants)
            graph.output.append(helper.make_tensor_value_info(target, TensorProto.FLOAT, None))
    return result


def _add_tensor_outputs(proto: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """A copy of the graph with the tensors as further outputs."""
    result = copy.deepcopy(proto)
    present = {value.name for value in result.graph.output}
    result.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name not in present
    )
    return result


class BoundOutputs:
    """Tensors of a session, bound to reused memory.

    From the second batch of a shape on, ONNX Runtime writes into the memory of the first one: a detector has some 80 MB
    of activations per image at 640 x 640.

    Args:
        session: An ONNX Runtime session with the tensors among its outputs.
        names: The tensors; the graph's input may be one of them.
        fixed: Tensors with a shape that the input shape determines; the others get new memory for each batch. Empty if
            the session does not run on the CPU.
    """

    def __init__(self, session: Any, names: Sequence[str], fixed: Iterable[str] = ()) -> None:
        self.session = session
        self.names = tuple(names)
        self.input = session.get_inputs()[0].name
        self.computed = [name for name in names if name != self.input]
        self.fixed = frozenset(fixed)
        self.shape: tuple[int, ...] | None = None
        self.binding: Any = None
        self.buffers: dict[str, NDArray[np.float32]] = {}

    def run(self, inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Compute the tensors.

        Args:
            inputs: (N, C, H, W) float32.

        Returns:
            The tensors in the order of `names`, valid until the next call.
        """
        if self.fixed and inputs.shape == self.shape:
            self.binding.bind_cpu_input(self.input, np.ascontiguousarray(inputs))
            self.session.run_with_iobinding(self.binding)
            outputs = zip(self.computed, self.binding.get_outputs(), strict=True)
            values = {name: self.buffers[name] if name in self.buffers else value.numpy() for name, value in outputs}
        else:
            values = dict(zip(self.computed, self.session.run(self.computed, {self.input: inputs}), strict=True))
            if self.fixed:
                self._bind(inputs.shape, values)
        values[self.input] = inputs
        return [values[name] for name in self.names]

    def _bind(self, shape: tuple[int, ...], values: dict[str, NDArray[np.float32]]) -> None:
        """Allocate memory for the next inputs of a shape."""
        self.shape, self.binding = shape, self.session.io_binding()
        self.buffers = {name: np.empty_like(values[name]) for name in self.computed if name in self.fixed}
        for name in self.computed:
            buffer = self.buffers.get(name)
            if buffer is None:
                self.binding.bind_output(name, "cpu")
            else:
                self.binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)


def find_fixed_shapes(proto: onnx.ModelProto, names: Iterable[str]) -> frozenset[str]:
    """Find the tensors with a shape that the input shape determines; other shapes may differ by image."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    graph_input = inferred.input[0]
    known = {dim.dim_param for dim in graph_input.type.tensor_type.shape.dim if dim.dim_param}
    shapes = {
        value.name: value.type.tensor_type.shape.dim
        for value in (graph_input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.HasField("shape")
    }
    return frozenset(
        name
        for name in names
        if name in shapes and all(dim.HasField("dim_value") or dim.dim_param in known for dim in shapes[name])
    )

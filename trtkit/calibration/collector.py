"""One streamed pass of images through the graph, with every tensor that INT8 may carry measured on the way."""

from __future__ import annotations

import copy
import dataclasses
import functools
import queue
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trtkit.calibration.algorithms import TensorStats
from trtkit.calibration.graph_outputs import BoundOutputs, find_fixed_shapes
from trtkit.calibration.histogram import CountingBuffer, Histogram
from trtkit.errors import CalibrationError, CapabilityError
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.qdq import passes_int8, quantizable_tensors
from trtkit.threads import available_cores

__all__ = [
    "HistogramCollector",
    "HistogramCounter",
    "MinMaxCollector",
    "find_pass_through_sources",
    "get_fixed_batch",
    "select_providers",
]


# One thread's share of a pass: it runs images and counts every tensor on the way.


class HistogramCounter:
    """Histograms of tensors, with what it takes to fill them; one thread uses it at a time.

    Args:
        session: An ONNX Runtime session with the tensors among its outputs; counters may share it.
        outputs: The graph's outputs, which are checked and not counted.
        tensors: The tensors to count.
        fixed: As for `BoundOutputs`.
    """

    def __init__(self, session: Any, outputs: Sequence[str], tensors: Sequence[str], fixed: Iterable[str]) -> None:
        self.results = BoundOutputs(session, [*outputs, *tensors], fixed)
        self.checked = len(outputs)
        self.room = CountingBuffer()
        self.histograms = [Histogram() for _ in tensors]

    def add(self, fed: NDArray[np.float32], size: int) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
        """Run images and count them.

        Args:
            fed: (N, C, H, W) float32.
            size: So many of them count; the others fill up a fixed batch.

        Returns:
            Lowest and highest value of each tensor by image, (size, tensors), and whether all values are finite.
        """
        found = self.results.run(fed)
        checked, counted = found[: self.checked], found[self.checked :]
        low, high = np.empty((size, len(counted))), np.empty((size, len(counted)))
        for index, (value, histogram) in enumerate(zip(counted, self.histograms, strict=True)):
            if len(value) == len(fed):
                low[:, index], high[:, index] = histogram.add(value[:size], self.room)
                continue
            # A tensor that the batch does not lead may still hold it, as a head that was reshaped does.
            own = value if size == len(fed) or len(value) % len(fed) else value[: len(value) // len(fed) * size]
            (low[:, index],), (high[:, index],) = histogram.add(own[None], self.room)
        finite = np.isfinite(low).all() and np.isfinite(high).all()
        return low, high, bool(finite and all(np.isfinite(value).all() for value in checked))


MOVING_AVERAGE_WEIGHT = 0.01
"""Weight of the newest image in the moving average, as in PyTorch's MovingAverageMinMaxObserver."""


WORKERS = 2
"""Images that run beside each other while they are counted: each has all its tensors in memory."""


class MinMaxCollector:
    """Lowest and highest value of every tensor that INT8 may carry, over any number of batches.

    The reductions are nodes of the graph itself, so that three numbers a tensor and image leave the runtime instead
    of the tensor: memory does not grow with the images, nor with the tensors. What is found does not depend on how
    the images were batched.

    Args:
        proto: FP32 graph with unique node names.
        device: None for the first GPU that ONNX Runtime offers, else the processor; "cpu" for the processor; a GPU's
            index or "cuda:1".
        tensors: Tensors to measure; None takes all that some placement of Q/DQ pairs could need.

    Raises:
        CapabilityError: A GPU was named and this ONNX Runtime has none.
    """

    collects_histograms = False

    def __init__(
        self, proto: onnx.ModelProto, *, device: int | str | None = None, tensors: Iterable[str] | None = None
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
        if self.collects_histograms:
            # Images run beside each other, which wastes less than sharing the layers of one.
            options.intra_op_num_threads = max(1, available_cores() // WORKERS)
            options.add_session_config_entry("session.force_spinning_stop", "1")
        self.providers = select_providers(device)
        whole = (_with_tensors if self.collects_histograms else _with_extremes)(proto, self.measured)
        self.session = ort.InferenceSession(whole.SerializeToString(), options, providers=self.providers)
        self.input = self.session.get_inputs()[0].name

    @property
    def runner(self) -> str:
        """What the pass runs on, e.g. "ONNX Runtime 1.32.0 CPU"."""
        import onnxruntime as ort

        used = self.session.get_providers()[0].removesuffix("ExecutionProvider")
        return f"ONNX Runtime {ort.__version__} {used}"

    def add(self, images: NDArray[np.float32]) -> None:
        """Measure a batch.

        Args:
            images: (N, C, H, W) float32 in [0, 1]; a graph whose batch is fixed takes at most so many.

        Raises:
            CalibrationError: A tensor holds NaN or an infinity; it is named.
        """
        low, high, finite = self._measure(images)
        if not finite:
            broken = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)).all(axis=0))
            self._refuse(images, [self.measured[index] for index in broken])
        np.minimum(self.low, low.min(axis=0, initial=np.inf), out=self.low)
        np.maximum(self.high, high.max(axis=0, initial=-np.inf), out=self.high)
        for lowest, highest in zip(low, high, strict=True):
            self.image_count += 1
            # A plain mean until there are enough images to forget any.
            weight = max(MOVING_AVERAGE_WEIGHT, 1 / self.image_count)
            self.average_low += weight * (lowest - self.average_low)
            self.average_high += weight * (highest - self.average_high)

    def _filled(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images as the graph takes them: a fixed batch is filled up with the last one."""
        missing = 0 if self.batch is None else self.batch - len(images)
        return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing > 0 else images

    def _measure(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
        """Lowest and highest value of each tensor by image, (N, tensors), and whether all values are finite."""
        fed, size, count = self._filled(images), len(images), len(self.measured)
        reduced = [f"trtkit_{kind}_{index}" for kind in ("low", "high", "sum") for index in range(count)]
        # The finite check covers every output, so the whole graph runs and a NaN anywhere is seen.
        results = self.session.run([*self.outputs, *reduced], {self.input: fed})
        own, rest = results[: len(self.outputs)], results[len(self.outputs) :]
        low, high, sums = (
            _rows(rest[count * part : count * (part + 1)], len(fed), size, reduce)
            for part, reduce in enumerate(("min", "max", "sum"))
        )
        # ONNX Runtime's ReduceMin and ReduceMax pass over NaN; a sum does not.
        return low, high, all(bool(np.isfinite(part).all()) for part in (low, high, sums, *own))

    def stats(self) -> dict[str, TensorStats]:
        """What was seen of each measured tensor so far, in graph order."""
        columns = (self.low, self.high, self.average_low, self.average_high)
        return {
            name: TensorStats(low=float(a), high=float(b), average_low=float(c), average_high=float(d))
            for name, a, b, c, d in zip(self.measured, *columns, strict=True)
        }

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of each tensor so far, those of carriers included, in graph order."""
        found = {name: (seen.low, seen.high) for name, seen in self.stats().items()}
        return propagate_ranges(found, self.sources, self.names)

    def _refuse(self, images: NDArray[np.float32], broken: list[str]) -> None:
        """Run the graph once more with every float tensor as an output, and name the first that is not finite.

        Args:
            images: What was fed.
            broken: Measured tensors whose extremes are not finite.

        Raises:
            CalibrationError: One is not; always, unless a sum alone overflowed.
        """
        import onnxruntime as ort

        whole = copy.deepcopy(self.proto)
        inferred = onnx.shape_inference.infer_shapes(whole)
        floats = {v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        names = [name for node in whole.graph.node for name in node.output if name in floats]
        present = set(self.outputs)
        whole.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in present
        )
        names = [self.input, *names, *self.outputs]
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
        bad: list[str] = []
        step = self.batch or len(images)
        for start in range(0, len(images), step):
            fed = self._filled(images[start : start + step])
            values = [fed, *session.run(names[1:], {self.input: fed})]
            bad = [name for name, value in zip(names, values, strict=True) if not np.isfinite(value).all()]
            if bad:
                break
        bad += broken
        if bad:
            raise CalibrationError(
                "calibrate", f"tensor {bad[0]!r} holds NaN or infinity", "check the model's weights and its input"
            )


class HistogramCollector(MinMaxCollector):
    """Extremes and a histogram of each tensor's magnitudes.

    Tensors leave the runtime an image at a time and are counted outside it, two images beside each other: memory
    does not grow with the images, and what is found depends on no batch.

    Args:
        proto: As for `MinMaxCollector`.
        device: As for `MinMaxCollector`.
        tensors: As for `MinMaxCollector`.
    """

    collects_histograms = True

    def __init__(
        self, proto: onnx.ModelProto, *, device: int | str | None = None, tensors: Iterable[str] | None = None
    ) -> None:
        super().__init__(proto, device=device, tensors=tensors)
        # Elsewhere than on the processor tensors have to be copied anyway.
        fixed = find_fixed_shapes(proto, self.measured) if self.providers == ["CPUExecutionProvider"] else ()
        workers = min(WORKERS, available_cores())
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="trtkit-counts")
        self.counters = [HistogramCounter(self.session, self.outputs, self.measured, fixed) for _ in range(workers)]
        self.free = queue.SimpleQueue[HistogramCounter]()
        for counter in self.counters:
            self.free.put(counter)

    def stats(self) -> dict[str, TensorStats]:
        """What was seen of each measured tensor so far, in graph order."""
        merged = [
            functools.reduce(Histogram.merge, parts)
            for parts in zip(*(counter.histograms for counter in self.counters), strict=True)
        ]
        found = zip(super().stats().items(), merged, strict=True)
        return {name: dataclasses.replace(seen, histogram=histogram) for (name, seen), histogram in found}

    def _measure(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
        """As `MinMaxCollector._measure`, of whole tensors, which are counted on the way."""
        step = self.batch or 1

        def one(start: int) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
            part = images[start : start + step]
            counter = self.free.get()
            try:
                return counter.add(self._filled(part), len(part))
            finally:
                self.free.put(counter)

        lows, highs, finite = zip(*self.pool.map(one, range(0, len(images), step)), strict=True)
        return np.concatenate(lows), np.concatenate(highs), all(finite)


def find_pass_through_sources(proto: onnx.ModelProto, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Of some tensors those that only move values (concatenation, pooling, ...), with what they take them from."""
    view = GraphIndex(proto)
    makers = {name: view.producer[name] for name in names if name in view.producer}
    return {name: tuple(view.data_inputs(maker)) for name, maker in makers.items() if passes_int8(maker)}


def propagate_ranges(
    ranges: Mapping[str, tuple[float, float]], sources: Mapping[str, tuple[str, ...]], names: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """Ranges of all `names`, given those of the measured ones and what the others take their values from."""
    result = dict(ranges)
    names = tuple(names)
    for name in names:  # graph order: what a carrier reads comes before what it writes
        if name not in result:
            parts = [result[source] for source in sources[name] if source in result]
            result[name] = (min(low for low, _ in parts), max(high for _, high in parts))
    return {name: result[name] for name in names}


def get_fixed_batch(proto: onnx.ModelProto) -> int | None:
    """The batch that a graph's input is fixed at, None where it is open."""
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    return dims[0].dim_value or None if dims else None


def select_providers(device: int | str | None) -> list[Any]:
    """ONNX Runtime's execution providers for a device.

    Raises:
        CapabilityError: A GPU was named and this ONNX Runtime has none.
    """
    import onnxruntime as ort

    processor = "CPUExecutionProvider"
    if device == "cpu":
        return [processor]
    there = "CUDAExecutionProvider" in ort.get_available_providers()
    if device is None:
        return ["CUDAExecutionProvider", processor] if there else [processor]
    if not there:
        raise CapabilityError(
            f"calibrate on device {device!r}",
            "this ONNX Runtime runs on the processor only",
            "install onnxruntime-gpu, or leave device out",
        )
    index = str(device).removeprefix("cuda").removeprefix(":") or "0"
    return [("CUDAExecutionProvider", {"device_id": index}), processor]


def _rows(values: list[NDArray[np.float32]], fed: int, size: int, reduce: str) -> NDArray[np.float64]:
    """(size, tensors) one number for each image; a tensor that the batch does not lead gives its overall one."""
    columns = [value[:size] if len(value) == fed else np.full(size, getattr(value, reduce)()) for value in values]
    return np.stack(columns, axis=1).astype(np.float64) if columns else np.zeros((size, 0))


def _with_extremes(proto: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """The graph with the lowest, the highest and the sum of each tensor by image, as further outputs."""
    result = copy.deepcopy(proto)
    graph = result.graph
    version = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    rows, axis = "trtkit_rows", "trtkit_axis"
    graph.initializer.append(numpy_helper.from_array(np.array([0, -1], np.int64), rows))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), axis))
    for index, name in enumerate(tensors):
        flat = f"trtkit_flat_{index}"
        graph.node.append(helper.make_node("Reshape", [name, rows], [flat], flat))
        for kind, operator, since in (("low", "ReduceMin", 18), ("high", "ReduceMax", 18), ("sum", "ReduceSum", 13)):
            target = f"trtkit_{kind}_{index}"
            # From some operator set on the axes are an input instead of an attribute.
            inputs = [flat, axis] if version >= since else [flat]
            axes: dict[str, Any] = {} if version >= since else {"axes": [1]}
            graph.node.append(helper.make_node(operator, inputs, [target], target, keepdims=0, **axes))
            graph.output.append(helper.make_tensor_value_info(target, TensorProto.FLOAT, None))
    return result


def _with_tensors(proto: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """The graph with the tensors themselves as further outputs."""
    result = copy.deepcopy(proto)
    own = {value.name for value in result.graph.output}
    result.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name not in own
    )
    return result

"""The bench that sensitivity and search work at: one graph, its images, and variants compared with FP32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from trtkit.calibration import Calibration, calibrate
from trtkit.errors import CalibrationError
from trtkit.graph.analysis import GraphIndex, block_of, count_macs, escape_pattern
from trtkit.graph.qdq import QDQPlacement, plan_qdq
from trtkit.progress import Reporter
from trtkit.threads import parallel_map
from trtkit.tuning.partial_inference import NO_INT8, SegmentedGraph, Variant

if TYPE_CHECKING:
    from trtkit.data import Dataset
    from trtkit.models import Model

__all__ = [
    "InputSource",
    "LayerNoise",
    "compute_sqnr",
    "load_or_calibrate",
    "runner_name",
]

InputSource = Callable[[], Iterable[NDArray[np.float32]]]
"""Gives the same inputs (1, C, H, W) each time it is called, one after the other."""

Ranges = Mapping[str, tuple[float, float]]


class LayerNoise:
    """A float graph and variants of it.

    Args:
        graph: FP32 graph with unique node names and a batch of 1.
        classes: Number of classes, by which the head's class scores are known; 0 where there are none.
        keep: fnmatch patterns of node names that stay high in every variant.
        protect: Leave alone what stays high by default.
        exact: As for `SegmentedGraph`.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        classes: int,
        keep: Sequence[str] = (),
        *,
        protect: bool = True,
        exact: bool = True,
    ) -> None:
        self.graph = graph
        self.index = GraphIndex(graph)
        self.classes = classes
        self.user_keep = tuple(keep)
        self.protect = protect
        self.full_int8 = plan_qdq(graph, self.user_keep, protect=protect)
        self.weighted = [node.name for node in self.index.weighted]
        self.macs = count_macs(graph, self.index)
        self.head_tensors = _find_head_tensors(self.index)
        self.segments = SegmentedGraph(graph, also=self.head_tensors, exact=exact)
        self.float_variant = self.segments.prepare_variant(NO_INT8, {}, shared=True)

    @property
    def blocks(self) -> dict[str, list[str]]:
        """The layers of each block that run in INT8."""
        blocks: dict[str, list[str]] = {}
        for name in self.full_int8.layers:
            blocks.setdefault(block_of(name), []).append(name)
        return blocks

    def plan_without(self, layers: Iterable[str]) -> QDQPlacement:
        """INT8 throughout but for some layers, and the depthwise ones before them that need company."""
        return plan_qdq(self.graph, [*self.user_keep, *map(escape_pattern, layers)], protect=self.protect)

    def plan_only(self, layers: Iterable[str]) -> QDQPlacement:
        """Nothing in INT8 but some layers; a lone depthwise one, which no engine could run so, included."""
        others = map(escape_pattern, set(self.weighted) - set(layers))
        return plan_qdq(self.graph, [*self.user_keep, *others], protect=False)

    def prepare_variant(
        self,
        placement: QDQPlacement,
        ranges: Ranges,
        corrections: Mapping[str, Sequence[float]] | None = None,
        *,
        shared: bool = False,
    ) -> Variant:
        """A placement, prepared; see `SegmentedGraph.variant`."""
        return self.segments.prepare_variant(placement, ranges, corrections, shared=shared)

    def int8_share(self, placement: QDQPlacement) -> float:
        """Share of the multiply-accumulates that run in INT8, in 0..1."""
        total = sum(self.macs.values())
        return sum(self.macs.get(name, 0) for name in placement.layers) / total if total else 0.0

    def measure_sqnr(
        self,
        variants: Mapping[str, Variant],
        images: InputSource,
        count: int,
        *,
        stage: str,
        reporter: Reporter,
        threads: int | None = None,
        pin: int = 1,
    ) -> dict[str, float]:
        """How far each variant is from FP32: the signal-to-noise ratio of what the head's last layers give, dB.

        Each of their tensors counts alike, whatever its size. Half of the noise counts every place of a tensor alike,
        half counts each by the confidence FP32 has there: the first half is what makes false objects out of background,
        the second what moves true ones. Over eight calibrations of yolo11n, judged on 160 images, the sum followed
        their loss of mAP, which neither half alone did.

        Args:
            variants: By label.
            images: What runs.
            count: How many images that is.
            stage: What to call the steps.
            reporter: Receives a step for each image.
            threads: Images that run beside each other; None takes one for each core.
            pin: Of the first so many variants all results are kept for those that follow.

        Raises:
            CancelledError: The caller cancelled.
        """
        prepared = [self.float_variant, *variants.values()]
        reporter.step(stage, 0, count)

        def one(image: NDArray[np.float32]) -> NDArray[np.float64]:
            energy = np.zeros((len(prepared), 2, len(self.head_tensors)))
            exact: list[NDArray[np.float32]] = []
            confidence: list[NDArray[np.float32] | None] = []
            results = self.segments.run(image, prepared, outputs=self.head_tensors, pin=1 + pin)
            for number, found in enumerate(results):
                values = [found[name] for name in self.head_tensors]
                if not number:
                    exact, confidence = values, _compute_confidences(self.head_tensors, values, self.classes)
                for index, (value, reference, sure) in enumerate(zip(values, exact, confidence, strict=True)):
                    if number and value is reference:
                        continue  # a pinned result: nothing before this tensor is in INT8
                    difference = value - reference if number else reference
                    energy[number, :, index] = _compute_energies(difference, sure)
                if reporter.is_cancelled():
                    break
            return energy

        total = np.zeros((len(prepared), 2, len(self.head_tensors)))
        for done, energy in enumerate(parallel_map(one, images(), threads), 1):
            # A cancelled run ends here; what is still running ends at its next variant.
            reporter.step(stage, done, count)
            total += energy
        return {label: compute_sqnr(total[0], row) for label, row in zip(variants, total[1:], strict=True)}

    def outputs(
        self, variants: Sequence[Variant], images: InputSource, threads: int | None = None
    ) -> Iterator[tuple[NDArray[np.float32], list[dict[str, NDArray[np.float32]]]]]:
        """Run variants to the end.

        Args:
            variants: What to run.
            images: On what.
            threads: Images that run beside each other; None takes one for each core.

        Yields:
            An image and the graph's outputs by name of each variant.
        """

        def one(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[dict[str, NDArray[np.float32]]]]:
            return image, list(self.segments.run(image, variants))

        return parallel_map(one, images(), threads)


def load_or_calibrate(
    model: Model,
    data: str | Path | Dataset,
    given: Calibration | str | Path | None,
    *,
    images: int,
    imgsz: tuple[int, int],
    seed: int,
    reporter: Reporter,
    histograms: bool | None = None,
) -> Calibration:
    """The given calibration, checked, or a new one by min-max.

    Raises:
        CalibrationError: The given one is of another model.
    """
    if given is None:
        return calibrate(
            model,
            data,
            calibration_images=images,
            histograms=histograms,
            imgsz=imgsz,
            seed=seed,
            progress=reporter.progress,
            cancel=reporter.cancel,
        )
    found = given if isinstance(given, Calibration) else Calibration.load(given)
    if found.provenance.model_hash != model.hash:
        raise CalibrationError(
            f"tune {model.stem} with a given calibration",
            f"it was measured on another model ({found.provenance.model_hash[:12]}, not {model.hash[:12]})",
            "calibrate this model",
        )
    return found


def compute_sqnr(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> float:
    """Signal-to-noise ratio of several parts that count alike, whatever their energy.

    Args:
        signal: Energy of each in FP32.
        noise: Energy of each one's error, of the same shape.

    Returns:
        Minus ten times the logarithm of their mean share of noise; 200 where there is none that float32 could tell.
    """
    share = float(np.mean(noise / np.maximum(signal, np.finfo(np.float64).tiny)))
    return 200.0 if share <= 1e-20 else -10 * math.log10(share)


def _compute_confidences(
    names: Sequence[str], values: Sequence[NDArray[np.float32]], classes: int
) -> list[NDArray[np.float32] | None]:
    """For each of the head's tensors the confidence at its places, from the class scores of the same grid."""
    grids: dict[tuple[int, ...], NDArray[np.float32]] = {}
    # Of two tensors with as many channels as classes, the branch that Ultralytics calls cv3 has the classes.
    for _, value in sorted(zip(names, values, strict=True), key=lambda pair: "cv3" in pair[0]):
        if value.ndim == 4 and value.shape[1] == classes:
            grids[value.shape[2:]] = 1 / (1 + np.exp(-value.max(axis=1, keepdims=True)))
    return [grids.get(value.shape[2:]) if value.ndim == 4 else None for value in values]


def _compute_energies(values: NDArray[np.float32], confidence: NDArray[np.float32] | None) -> tuple[float, float]:
    """The energy with every place counted alike, and by confidence where there is one."""
    squares = np.square(values)
    alike = float(squares.sum(dtype=np.float64))
    if confidence is None:
        return alike, alike
    return alike, float((squares.sum(axis=1, keepdims=True) * confidence).sum(dtype=np.float64))


def runner_name() -> str:
    """What variants run on."""
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__} CPU"


def _find_head_tensors(view: GraphIndex) -> tuple[str, ...]:
    """What the last weighted layers give, before any decoding; the graph's outputs where there is no such layer."""
    last = tuple(view.nodes[name].output[0] for name in view.output_layers())
    return last or tuple(value.name for value in view.graph.output)

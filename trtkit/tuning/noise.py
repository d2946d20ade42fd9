"""The bench that sensitivity and search work at: one graph, its pictures, and variants compared with FP32."""

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
from trtkit.graph.analysis import View, block_of, multiplications, pattern_of
from trtkit.graph.qdq import Placement, place
from trtkit.progress import Work
from trtkit.threads import over
from trtkit.tuning.partial_inference import FLOAT, Segments, Variant

if TYPE_CHECKING:
    from trtkit.data import Dataset
    from trtkit.models import Model

__all__ = [
    "Lab",
    "Pictures",
    "calibrated",
    "decibels",
    "runner_name",
]

Pictures = Callable[[], Iterable[NDArray[np.float32]]]
"""Gives the same inputs (1, C, H, W) each time it is called, one after the other."""

Ranges = Mapping[str, tuple[float, float]]


class Lab:
    """A float graph and variants of it.

    Args:
        graph: FP32 graph with unique node names and a batch of 1.
        classes: Number of classes, by which the head's class scores are known; 0 where there are none.
        keep: fnmatch patterns of node names that stay high in every variant.
        protect: Leave alone what stays high by default.
        exact: As for `Segments`.
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
        self.view = View(graph)
        self.classes = classes
        self.user_keep = tuple(keep)
        self.protect = protect
        self.whole = place(graph, self.user_keep, protect=protect)
        self.weighted = [node.name for node in self.view.weighted]
        self.macs = multiplications(graph, self.view)
        self.heads = _head_tensors(self.view)
        self.segments = Segments(graph, also=self.heads, exact=exact)
        self.float = self.segments.variant(FLOAT, {}, often=True)

    @property
    def blocks(self) -> dict[str, list[str]]:
        """The layers of each block that run in INT8."""
        blocks: dict[str, list[str]] = {}
        for name in self.whole.layers:
            blocks.setdefault(block_of(name), []).append(name)
        return blocks

    def without(self, layers: Iterable[str]) -> Placement:
        """INT8 throughout but for some layers, and the depthwise ones before them that need company."""
        return place(self.graph, [*self.user_keep, *map(pattern_of, layers)], protect=self.protect)

    def only(self, layers: Iterable[str]) -> Placement:
        """Nothing in INT8 but some layers; a lone depthwise one, which no engine could run so, included."""
        others = map(pattern_of, set(self.weighted) - set(layers))
        return place(self.graph, [*self.user_keep, *others], protect=False)

    def variant(
        self,
        placement: Placement,
        ranges: Ranges,
        corrections: Mapping[str, Sequence[float]] | None = None,
        *,
        often: bool = False,
    ) -> Variant:
        """A placement, prepared; see `Segments.variant`."""
        return self.segments.variant(placement, ranges, corrections, often=often)

    def int8_share(self, placement: Placement) -> float:
        """Share of the multiply-accumulates that run in INT8, in 0..1."""
        total = sum(self.macs.values())
        return sum(self.macs.get(name, 0) for name in placement.layers) / total if total else 0.0

    def noise(
        self,
        variants: Mapping[str, Variant],
        pictures: Pictures,
        count: int,
        *,
        stage: str,
        work: Work,
        threads: int | None = None,
        pin: int = 1,
    ) -> dict[str, float]:
        """How far each variant is from FP32: the signal-to-noise ratio of what the head's last layers give, dB.

        Each of their tensors counts alike, whatever its size. Half of the noise counts every place of a tensor alike,
        half counts each by the confidence FP32 has there: the first half is what makes false objects out of background,
        the second what moves true ones. Over eight calibrations of yolo11n, judged on 160 pictures, the sum followed
        their loss of mAP, which neither half alone did.

        Args:
            variants: By label.
            pictures: What runs.
            count: How many pictures that is.
            stage: What to call the steps.
            work: Receives a step for each picture.
            threads: Pictures that run beside each other; None takes one for each core.
            pin: Of the first so many variants all results are kept for those that follow.

        Raises:
            CancelledError: The caller cancelled.
        """
        prepared = [self.float, *variants.values()]
        work.step(stage, 0, count)

        def one(picture: NDArray[np.float32]) -> NDArray[np.float64]:
            energy = np.zeros((len(prepared), 2, len(self.heads)))
            exact: list[NDArray[np.float32]] = []
            confidence: list[NDArray[np.float32] | None] = []
            results = self.segments.run(picture, prepared, outputs=self.heads, pin=1 + pin)
            for number, found in enumerate(results):
                values = [found[name] for name in self.heads]
                if not number:
                    exact, confidence = values, _confidences(self.heads, values, self.classes)
                for index, (value, reference, sure) in enumerate(zip(values, exact, confidence, strict=True)):
                    if number and value is reference:
                        continue  # a pinned result: nothing before this tensor is in INT8
                    difference = value - reference if number else reference
                    energy[number, :, index] = _energies(difference, sure)
                if work.cancelled():
                    break
            return energy

        total = np.zeros((len(prepared), 2, len(self.heads)))
        for done, energy in enumerate(over(one, pictures(), threads), 1):
            # A cancelled run ends here; what is still running ends at its next variant.
            work.step(stage, done, count)
            total += energy
        return {label: decibels(total[0], row) for label, row in zip(variants, total[1:], strict=True)}

    def outputs(
        self, variants: Sequence[Variant], pictures: Pictures, threads: int | None = None
    ) -> Iterator[tuple[NDArray[np.float32], list[dict[str, NDArray[np.float32]]]]]:
        """Run variants to the end.

        Args:
            variants: What to run.
            pictures: On what.
            threads: Pictures that run beside each other; None takes one for each core.

        Yields:
            A picture and the graph's outputs by name of each variant.
        """

        def one(picture: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[dict[str, NDArray[np.float32]]]]:
            return picture, list(self.segments.run(picture, variants))

        return over(one, pictures(), threads)


def calibrated(
    model: Model,
    data: str | Path | Dataset,
    given: Calibration | str | Path | None,
    *,
    images: int,
    imgsz: tuple[int, int],
    seed: int,
    work: Work,
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
            images=images,
            histograms=histograms,
            imgsz=imgsz,
            seed=seed,
            progress=work.progress,
            cancel=work.cancel,
        )
    found = given if isinstance(given, Calibration) else Calibration.load(given)
    if found.origin.model_hash != model.hash:
        raise CalibrationError(
            f"tune {model.stem} with a given calibration",
            f"it was measured on another model ({found.origin.model_hash[:12]}, not {model.hash[:12]})",
            "calibrate this model",
        )
    return found


def decibels(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> float:
    """Signal-to-noise ratio of several parts that count alike, whatever their energy.

    Args:
        signal: Energy of each in FP32.
        noise: Energy of each one's error, of the same shape.

    Returns:
        Minus ten times the logarithm of their mean share of noise; 200 where there is none that float32 could tell.
    """
    share = float(np.mean(noise / np.maximum(signal, np.finfo(np.float64).tiny)))
    return 200.0 if share <= 1e-20 else -10 * math.log10(share)


def _confidences(
    names: Sequence[str], values: Sequence[NDArray[np.float32]], classes: int
) -> list[NDArray[np.float32] | None]:
    """For each of the head's tensors the confidence at its places, from the class scores of the same grid."""
    grids: dict[tuple[int, ...], NDArray[np.float32]] = {}
    # Of two tensors with as many channels as classes, the branch that Ultralytics calls cv3 has the classes.
    for _, value in sorted(zip(names, values, strict=True), key=lambda pair: "cv3" in pair[0]):
        if value.ndim == 4 and value.shape[1] == classes:
            grids[value.shape[2:]] = 1 / (1 + np.exp(-value.max(axis=1, keepdims=True)))
    return [grids.get(value.shape[2:]) if value.ndim == 4 else None for value in values]


def _energies(values: NDArray[np.float32], confidence: NDArray[np.float32] | None) -> tuple[float, float]:
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


def _head_tensors(view: View) -> tuple[str, ...]:
    """What the last weighted layers give, before any decoding; the graph's outputs where there is no such layer."""
    last = tuple(view.nodes[name].output[0] for name in view.last())
    return last or tuple(value.name for value in view.graph.output)

"""Images through a collector of ranges: in this process, or in shards on the workers of a Dask scheduler."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from trtkit.calibration.collector import HistogramCollector, MinMaxCollector
from trtkit.calibration.histogram import Histogram
from trtkit.calibration.sampling import load_input_batches
from trtkit.executor import StopToken, Workers, split_into_shards
from trtkit.progress import Reporter, available_cores

if TYPE_CHECKING:
    from trtkit.models.model import Preprocess

__all__ = ["IMAGES_PER_PASS", "ImagePass", "create_collector", "images_per_call"]

IMAGES_PER_PASS = 4
"""Images per call of a collector that counts histograms."""


def create_collector(
    proto: onnx.ModelProto,
    *,
    device: int | str | None,
    histograms: bool,
    cores: int | None = None,
    alone: bool = True,
) -> MinMaxCollector:
    """The collector of a calibration.

    Args:
        proto: FP32 graph with unique node names.
        device: As for `MinMaxCollector`.
        histograms: Count histograms too.
        cores: As for `MinMaxCollector`.
        alone: As for `MinMaxCollector`.
    """
    return (HistogramCollector if histograms else MinMaxCollector)(proto, device=device, cores=cores, alone=alone)


def images_per_call(collector: MinMaxCollector, batch: int) -> int:
    """Images per `collector.measure`; memory depends on it, and with histograms the ranges do not.

    Args:
        collector: The collector.
        batch: Images per run, of a graph that accepts any batch.
    """
    if collector.collects_histograms:
        return IMAGES_PER_PASS * (collector.batch or 1)
    return collector.batch or batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePass:
    """How the images of a calibration become inputs.

    Attributes:
        preprocess: The model's preprocessing.
        size: Height and width, pixels.
        batch: Paths per call of the collector; images that can't be read leave a call smaller, so that the others are
            in the same batch for any number of workers.
    """

    preprocess: Preprocess
    size: tuple[int, int]
    batch: int

    def load(self, paths: Sequence[Path], skipped: list[str]) -> Iterator[NDArray[np.float32]]:
        """Load images in batches; see `load_input_batches`."""
        return load_input_batches(
            paths, preprocess=self.preprocess, size=self.size, batch=self.batch, skipped=skipped, refill=False
        )

    def run(
        self, collector: MinMaxCollector, paths: Sequence[Path], skipped: list[str], stage: str, reporter: Reporter
    ) -> None:
        """Run images in this process.

        Args:
            collector: Receives the images.
            paths: Image files.
            skipped: Receives the paths of those that can't be read.
            stage: Name of the progress stage.
            reporter: Progress, one step for each batch, and cancellation.
        """
        reporter.step(stage, 0, len(paths))
        for images in self.load(paths, skipped):
            collector.add(images)
            reporter.step(stage, collector.image_count, len(paths))

    def run_on_workers(
        self,
        workers: Workers,
        collector: MinMaxCollector,
        paths: Sequence[Path],
        skipped: list[str],
        stage: str,
        *,
        device: int | str | None,
    ) -> None:
        """Run images on workers: in the same batches, with as many threads as here, and added in their order.

        Args:
            workers: The workers.
            collector: Receives what they measure; it runs nothing.
            paths: Image files, which the workers read at the same paths.
            skipped: Receives the paths of those that can't be read.
            stage: Name of the progress stage.
            device: As for `MinMaxCollector`.
        """
        shards = split_into_shards(len(paths), multiple=self.batch, slots=workers.slots)
        results = workers.map(
            _measure_shard,
            [[paths[index] for index in shard] for shard in shards],
            stage=stage,
            prepare=_ShardWork.prepare,
            common=(self, collector.proto, device, collector.collects_histograms, available_cores()),
            sizes=[len(shard) for shard in shards],
        )
        with contextlib.closing(results):
            for result in results:
                collector.accumulate(result.low, result.high)
                if isinstance(collector, HistogramCollector):
                    collector.add_histograms(result.histograms)
                skipped += result.skipped


# In the worker.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ShardWork:
    """What all shards of one calibration share in a worker."""

    images: ImagePass
    collector: MinMaxCollector
    # A collector counts for one shard at a time.
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @classmethod
    def prepare(
        cls, images: ImagePass, proto: onnx.ModelProto, device: int | str | None, histograms: bool, cores: int
    ) -> _ShardWork:
        collector = create_collector(proto, device=device, histograms=histograms, cores=cores, alone=False)
        return cls(images=images, collector=collector)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ShardStats:
    """What one shard of a calibration gives.

    Attributes:
        low: Minimum of each tensor by image, (N, tensors).
        high: Maximum of each tensor by image, (N, tensors).
        histograms: Counts over all images of the shard by tensor, or [].
        skipped: Paths of images that can't be read.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    histograms: list[Histogram]
    skipped: list[str]


def _measure_shard(work: _ShardWork, paths: Sequence[Path]) -> _ShardStats:
    """Run one shard."""
    reporter, skipped, collector = Reporter(None, StopToken()), list[str](), work.collector
    nothing = np.empty((0, len(collector.measured)))
    lows, highs, histograms = [nothing], [nothing], list[Histogram]()
    with work.lock:
        if isinstance(collector, HistogramCollector):
            collector.take_histograms()  # of a shard that was stopped
        for images in work.images.load(paths, skipped):
            reporter.step("calibrate", len(lows))
            low, high = collector.measure(images)
            lows.append(low)
            highs.append(high)
        if isinstance(collector, HistogramCollector):
            histograms = collector.take_histograms()
    return _ShardStats(low=np.concatenate(lows), high=np.concatenate(highs), histograms=histograms, skipped=skipped)

"""One thread's share of a pass: it runs pictures and counts every tensor on the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtkit.calibration.histogram import Histogram, Room
from trtkit.calibration.outputs import Outputs

__all__ = ["Counter"]


class Counter:
    """Histograms of tensors, with what it takes to fill them; one thread uses it at a time.

    Args:
        session: An ONNX Runtime session with the tensors among its outputs; counters may share it.
        outputs: The graph's outputs, which are checked and not counted.
        tensors: The tensors to count.
        fixed: As for `Outputs`.
    """

    def __init__(self, session: Any, outputs: Sequence[str], tensors: Sequence[str], fixed: Iterable[str]) -> None:
        self.results = Outputs(session, [*outputs, *tensors], fixed)
        self.checked = len(outputs)
        self.room = Room()
        self.histograms = [Histogram() for _ in tensors]

    def add(self, fed: NDArray[np.float32], size: int) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
        """Run pictures and count them.

        Args:
            fed: (N, C, H, W) float32.
            size: So many of them count; the others fill up a fixed batch.

        Returns:
            Lowest and highest value of each tensor by picture, (size, tensors), and whether all values are finite.
        """
        found = self.results.of(fed)
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

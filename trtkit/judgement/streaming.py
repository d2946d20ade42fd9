"""Pictures read and prepared on a second thread while the model runs on those before."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.data import read_picture
from trtkit.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trtkit.data import Dataset, Fit, Labels

__all__ = ["Ready", "Sample", "samples"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ready:
    """A picture ready to run.

    Attributes:
        picture: The network's input, BGR uint8.
        fit: Where the picture lies in it.
        labels: In pixels of the original picture.
    """

    picture: NDArray[np.uint8]
    fit: Fit
    labels: Labels


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One picture file.

    Attributes:
        path: The file.
        ready: None where it can't be read.
        read: Seconds spent reading picture and labels.
        prepared: Seconds spent fitting the picture to the input.
    """

    path: Path
    ready: Ready | None = None
    read: float = 0.0
    prepared: float = 0.0


def samples(
    paths: Sequence[Path],
    dataset: Dataset,
    prepare: Callable[..., tuple[Any, Fit]],
    size: tuple[int, int],
    *,
    ahead: int,
) -> Generator[Sample, None, None]:
    """Yield pictures in order, at most `ahead` of them read before they are wanted.

    Memory does not grow with the number of pictures. One thread reads, since more would take the processor from the
    model.

    Args:
        paths: What to read.
        dataset: Whose labels.
        prepare: The task's way from a BGR picture to (input, fit).
        size: (height, width) of the input.
        ahead: Pictures read in advance.

    Yields:
        A sample for each path.

    Raises:
        DataError: A label file contradicts the data set.
    """

    def load(path: Path) -> Sample:
        start = time.perf_counter()
        try:
            picture = read_picture(path)
        except DataError:
            return Sample(path=path, read=time.perf_counter() - start)
        labels = dataset.labels(path).scaled((picture.shape[0], picture.shape[1]))
        between = time.perf_counter()
        fitted, fit = prepare(picture, size)
        ready = Ready(picture=fitted, fit=fit, labels=labels)
        return Sample(path=path, ready=ready, read=between - start, prepared=time.perf_counter() - between)

    waiting: collections.deque[Future[Sample]] = collections.deque()
    with ThreadPoolExecutor(1, thread_name_prefix="trtkit-pictures") as pool:
        try:
            for path in paths:
                waiting.append(pool.submit(load, path))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

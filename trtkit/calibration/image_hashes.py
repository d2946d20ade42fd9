"""What the doctor remembers of each image: small enough to hold thousands of them, telling enough to compare them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from trtkit.errors import DataError

if TYPE_CHECKING:
    from trtkit.data import Dataset
    from trtkit.progress import Reporter

__all__ = ["ImageFingerprints", "find_near_duplicates", "fingerprint_images"]

_THUMB = 32

DIFFERING_BITS = 10
"""Most bits of 64 in which the gradient hashes of near-duplicates differ."""

ALIKE = 0.98
"""Correlation of 32 x 32 thumbnails from which two images count as nearly the same."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageFingerprints:
    """Fingerprints of n images.

    Attributes:
        paths: The images that could be read.
        unreadable: Those that could not.
        content: SHA-256 of each file.
        brightness: Mean gray level of each, in 0..1, shape (n,).
        contrast: Standard deviation of the gray levels, in 0..0.5, shape (n,).
        aspect: Width over height, shape (n,).
        bits: Signs of the horizontal gradients on an 8 x 9 grid (dHash: N. Krawetz, "Kind of Like That", 2013), as -1
            and 1, shape (n, 64), float32.
        thumbs: Thumbnails with mean 0 and length 1, shape (n, 1024), float32; all 0 for an image of one color.
        counts: Objects of each class, shape (n, classes), int64; no columns where labels were not read.
        sizes: Square root of each object's share of the image's area, of all images together.
        owner: Which image each of `sizes` belongs to.
    """

    paths: tuple[Path, ...]
    unreadable: tuple[Path, ...]
    content: tuple[str, ...]
    brightness: NDArray[np.float64]
    contrast: NDArray[np.float64]
    aspect: NDArray[np.float64]
    bits: NDArray[np.float32]
    thumbs: NDArray[np.float32]
    counts: NDArray[np.int64]
    sizes: NDArray[np.float64]
    owner: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, paths: Sequence[Path]) -> ImageFingerprints:
        """The fingerprints of some of the images, in the order they are in here."""
        wanted = set(paths)
        places = np.array([index for index, path in enumerate(self.paths) if path in wanted], np.int64)
        mine = np.isin(self.owner, places)
        renumbered = {old: new for new, old in enumerate(places.tolist())}
        return ImageFingerprints(
            paths=tuple(self.paths[index] for index in places),
            unreadable=tuple(path for path in self.unreadable if path in wanted),
            content=tuple(self.content[index] for index in places),
            brightness=self.brightness[places],
            contrast=self.contrast[places],
            aspect=self.aspect[places],
            bits=self.bits[places],
            thumbs=self.thumbs[places],
            counts=self.counts[places],
            sizes=self.sizes[mine],
            owner=np.array([renumbered[index] for index in self.owner[mine].tolist()], np.int64),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _One:
    content: str
    brightness: float
    contrast: float
    aspect: float
    bits: NDArray[np.float32]
    thumb: NDArray[np.float32]


def fingerprint_images(paths: Sequence[Path], dataset: Dataset, reporter: Reporter, stage: str) -> ImageFingerprints:
    """Read images, and their labels where there are any.

    Args:
        paths: The images.
        dataset: Whose labels.
        reporter: Receives a step for each image.
        stage: The name of these steps.

    Raises:
        DataError: A label file contradicts the data set.
        CancelledError: The caller cancelled.
    """
    found: list[_One] = []
    good: list[Path] = []
    bad: list[Path] = []
    reporter.step(stage, 0, len(paths))
    with ThreadPoolExecutor(2) as pool:
        for index, (path, one) in enumerate(zip(paths, pool.map(_fingerprint, paths), strict=True)):
            if one is None:
                bad.append(path)
            else:
                good.append(path)
                found.append(one)
            reporter.step(stage, index + 1, len(paths))
    counts = np.zeros((len(good), len(dataset.names)), np.int64)
    sizes: list[float] = []
    owner: list[int] = []
    for index, path in enumerate(good):
        labels = dataset.labels(path)
        np.add.at(counts[index], labels.classes, 1)
        sides = labels.boxes[:, 2:] - labels.boxes[:, :2]
        sizes += np.sqrt(np.maximum(sides.prod(axis=1), 0)).tolist()
        owner += [index] * len(labels.boxes)
    return ImageFingerprints(
        paths=tuple(good),
        unreadable=tuple(bad),
        content=tuple(one.content for one in found),
        brightness=np.array([one.brightness for one in found]),
        contrast=np.array([one.contrast for one in found]),
        aspect=np.array([one.aspect for one in found]),
        bits=np.array([one.bits for one in found], np.float32).reshape(-1, 64),
        thumbs=np.array([one.thumb for one in found], np.float32).reshape(-1, _THUMB * _THUMB),
        counts=counts,
        sizes=np.array(sizes, np.float64),
        owner=np.array(owner, np.int64),
    )


def find_near_duplicates(one: ImageFingerprints, other: ImageFingerprints | None = None) -> list[tuple[int, int]]:
    """Pairs of images that are the same or nearly so.

    Gradient hashes choose who is compared, thumbnails decide: a hash alone calls two images alike that share a sky.

    Args:
        one: Images.
        other: Other images; None compares `one` with itself, each pair once.

    Returns:
        Places in `one` and in `other`, sorted.
    """
    second = one if other is None else other
    pairs: list[tuple[int, int]] = []
    if not len(one) or not len(second):
        return pairs
    for index in range(len(one)):
        start = index + 1 if other is None else 0
        # The product of signs counts the equal bits minus the differing ones.
        differing = (64 - second.bits[start:] @ one.bits[index]) / 2
        for place in (np.flatnonzero(differing <= DIFFERING_BITS) + start).tolist():
            if one.thumbs[index].any() or second.thumbs[place].any():
                alike = float(one.thumbs[index] @ second.thumbs[place]) >= ALIKE
            else:
                alike = abs(one.brightness[index] - second.brightness[place]) < 1 / 64
            if alike or one.content[index] == second.content[place]:
                pairs.append((index, place))
    return pairs


def _fingerprint(path: Path) -> _One | None:
    from trtkit.data import read_image

    try:
        image = read_image(path)
    except DataError:
        return None
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    grid = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    thumb = cv2.resize(gray, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA).astype(np.float32).reshape(-1)
    thumb -= thumb.mean()
    length = float(np.linalg.norm(thumb))
    # Less than one gray level of spread is noise of the encoder, not an image.
    thumb = thumb / length if length > _THUMB else np.zeros_like(thumb)
    return _One(
        content=hashlib.sha256(path.read_bytes()).hexdigest(),
        brightness=float(gray.mean()) / 255,
        contrast=float(gray.std()) / 255,
        aspect=image.shape[1] / image.shape[0],
        bits=np.where(grid[:, 1:] > grid[:, :-1], 1.0, -1.0).astype(np.float32).reshape(-1),
        thumb=thumb.astype(np.float32),
    )

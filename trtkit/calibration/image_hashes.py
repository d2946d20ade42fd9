"""Fingerprints of images: hashes, thumbnails and statistics, small enough to compare thousands of images."""

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

from trtkit.data.dataset import try_labels, warn_of_skipped
from trtkit.errors import DataError

if TYPE_CHECKING:
    from trtkit.data import Dataset
    from trtkit.progress import Reporter

__all__ = ["ImageFingerprints", "find_near_duplicates", "fingerprint_images"]

THUMBNAIL_SIDE = 32

MAX_HASH_DISTANCE = 10
"""Largest Hamming distance between the 64-bit gradient hashes of near-duplicates."""

MIN_CORRELATION = 0.98
"""Smallest correlation between the 32 x 32 thumbnails of near-duplicates."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageFingerprints:
    """Fingerprints of n images.

    Attributes:
        paths: Images that could be read.
        unreadable: Images that could not be read.
        content_hashes: SHA-256 of each file.
        brightness: (n,) mean gray level, in 0..1.
        contrast: (n,) standard deviation of the gray levels, in 0..0.5.
        aspect: (n,) width over height.
        gradient_hashes: (n, 64) float32, -1 or 1: signs of horizontal gradients on an 8 x 9 grid (dHash: N. Krawetz,
            "Kind of Like That", 2013).
        thumbnails: (n, 1024) float32 with mean 0 and length 1; all 0 for an image of one color.
        counts: (n, classes) int64, objects of each class.
        sizes: (objects,) square root of each object's share of its image's area.
        image_indices: (objects,) index of each object's image.
    """

    paths: tuple[Path, ...]
    unreadable: tuple[Path, ...]
    content_hashes: tuple[str, ...]
    brightness: NDArray[np.float64]
    contrast: NDArray[np.float64]
    aspect: NDArray[np.float64]
    gradient_hashes: NDArray[np.float32]
    thumbnails: NDArray[np.float32]
    counts: NDArray[np.int64]
    sizes: NDArray[np.float64]
    image_indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, paths: Sequence[Path]) -> ImageFingerprints:
        """The fingerprints of some of the images, in the order of this object."""
        wanted = set(paths)
        indices = np.array([index for index, path in enumerate(self.paths) if path in wanted], np.int64)
        objects = np.isin(self.image_indices, indices)
        renumbered = {old: new for new, old in enumerate(indices.tolist())}
        return ImageFingerprints(
            paths=tuple(self.paths[index] for index in indices),
            unreadable=tuple(path for path in self.unreadable if path in wanted),
            content_hashes=tuple(self.content_hashes[index] for index in indices),
            brightness=self.brightness[indices],
            contrast=self.contrast[indices],
            aspect=self.aspect[indices],
            gradient_hashes=self.gradient_hashes[indices],
            thumbnails=self.thumbnails[indices],
            counts=self.counts[indices],
            sizes=self.sizes[objects],
            image_indices=np.array([renumbered[index] for index in self.image_indices[objects].tolist()], np.int64),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Fingerprint:
    content_hash: str
    brightness: float
    contrast: float
    aspect: float
    gradient_hash: NDArray[np.float32]
    thumbnail: NDArray[np.float32]


def fingerprint_images(paths: Sequence[Path], dataset: Dataset, reporter: Reporter, stage: str) -> ImageFingerprints:
    """Compute the fingerprints of images and read their labels, if there are any.

    Args:
        paths: The images.
        dataset: The data set, for its labels.
        reporter: Receives an event for each image.
        stage: Stage of these events.

    Raises:
        DataError: An image has no class in the data set.
        CancelledError: The caller cancelled.
    """
    fingerprints: list[_Fingerprint] = []
    readable: list[Path] = []
    unreadable: list[Path] = []
    reporter.step(stage, 0, len(paths))
    with ThreadPoolExecutor(2) as pool:
        for index, (path, fingerprint) in enumerate(zip(paths, pool.map(_fingerprint, paths), strict=True)):
            if fingerprint is None:
                unreadable.append(path)
            else:
                readable.append(path)
                fingerprints.append(fingerprint)
            reporter.step(stage, index + 1, len(paths))
    counts = np.zeros((len(readable), len(dataset.names)), np.int64)
    sizes: list[float] = []
    image_indices: list[int] = []
    errors: list[DataError] = []
    for index, path in enumerate(readable if dataset.labeled else ()):
        labels = try_labels(dataset, path, errors)
        if labels is None:
            continue
        np.add.at(counts[index], labels.classes, 1)
        sides = labels.boxes[:, 2:] - labels.boxes[:, :2]
        sizes += np.sqrt(np.maximum(sides.prod(axis=1), 0)).tolist()
        image_indices += [index] * len(labels.boxes)
    warn_of_skipped(errors, "counted without labels")
    return ImageFingerprints(
        paths=tuple(readable),
        unreadable=tuple(unreadable),
        content_hashes=tuple(one.content_hash for one in fingerprints),
        brightness=np.array([one.brightness for one in fingerprints]),
        contrast=np.array([one.contrast for one in fingerprints]),
        aspect=np.array([one.aspect for one in fingerprints]),
        gradient_hashes=np.array([one.gradient_hash for one in fingerprints], np.float32).reshape(-1, 64),
        thumbnails=np.array([one.thumbnail for one in fingerprints], np.float32).reshape(-1, THUMBNAIL_SIDE**2),
        counts=counts,
        sizes=np.array(sizes, np.float64),
        image_indices=np.array(image_indices, np.int64),
    )


def find_near_duplicates(one: ImageFingerprints, other: ImageFingerprints | None = None) -> list[tuple[int, int]]:
    """Find pairs of identical or nearly identical images.

    Gradient hashes select candidates, the correlation of thumbnails decides: images with the same sky, for example,
    have similar hashes.

    Args:
        one: Images.
        other: Other images; None compares the images of `one` with each other.

    Returns:
        Indices into `one` and `other`, sorted; each pair once.
    """
    second = one if other is None else other
    pairs: list[tuple[int, int]] = []
    if not len(one) or not len(second):
        return pairs
    for index in range(len(one)):
        start = index + 1 if other is None else 0
        # The product of signs is the number of equal bits minus that of differing bits.
        distances = (64 - second.gradient_hashes[start:] @ one.gradient_hashes[index]) / 2
        for candidate in (np.flatnonzero(distances <= MAX_HASH_DISTANCE) + start).tolist():
            if one.thumbnails[index].any() or second.thumbnails[candidate].any():
                similar = float(one.thumbnails[index] @ second.thumbnails[candidate]) >= MIN_CORRELATION
            else:
                similar = abs(one.brightness[index] - second.brightness[candidate]) < 1 / 64
            if similar or one.content_hashes[index] == second.content_hashes[candidate]:
                pairs.append((index, candidate))
    return pairs


def _fingerprint(path: Path) -> _Fingerprint | None:
    from trtkit.data.image_files import read_display_image

    try:
        image = read_display_image(path)
    except DataError:
        return None
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    grid = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    small = cv2.resize(gray, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    thumbnail = small.astype(np.float32).reshape(-1)
    thumbnail -= thumbnail.mean()
    length = float(np.linalg.norm(thumbnail))
    # A standard deviation below one gray level is compression noise.
    thumbnail = thumbnail / length if length > THUMBNAIL_SIDE else np.zeros_like(thumbnail)
    return _Fingerprint(
        content_hash=hashlib.sha256(path.read_bytes()).hexdigest(),
        brightness=float(gray.mean()) / 255,
        contrast=float(gray.std()) / 255,
        aspect=image.shape[1] / image.shape[0],
        gradient_hash=np.where(grid[:, 1:] > grid[:, :-1], 1.0, -1.0).astype(np.float32).reshape(-1),
        thumbnail=thumbnail.astype(np.float32),
    )

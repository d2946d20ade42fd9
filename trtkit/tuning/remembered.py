"""Outputs computed elsewhere, judged as if a runner had just computed them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trtkit.backends.base import Runner
from trtkit.errors import EngineError
from trtkit.sources.card import Card

__all__ = ["Remembered"]


class Remembered(Runner):
    """A runner that looks up what came out for a picture.

    Args:
        card: The model's description.
        name: What computed the outputs.
        precision: "fp32" or "int8".
        imgsz: Height and width of the inputs, pixels.
        hash: SHA-256 of the model.
    """

    engine = False
    passport = None
    path = None
    batch = 1
    dynamic = False

    def __init__(self, card: Card, *, name: str, precision: str, imgsz: tuple[int, int], hash: str) -> None:
        self.card = card
        self.name = name
        self.precision = precision
        self.imgsz = imgsz
        self.hash = hash
        self.known: dict[bytes, dict[str, NDArray[np.float32]]] = {}

    def remember(self, picture: NDArray[np.float32], outputs: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep what came out for an input (1, C, H, W)."""
        self.known[_digest(picture)] = {name: np.asarray(value, np.float32) for name, value in outputs.items()}

    def infer(self, feeds: NDArray[np.float32] | Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What came out for these pictures.

        Raises:
            EngineError: One of them was never seen.
        """
        pictures = next(iter(feeds.values())) if isinstance(feeds, Mapping) else feeds
        self.refuse_batch(len(pictures))
        found = [self.known.get(_digest(picture[None])) for picture in pictures]
        if any(one is None for one in found):
            raise EngineError("look up a picture's outputs", "this picture never ran", "remember it first")
        known = [one for one in found if one is not None]
        return {name: np.concatenate([one[name] for one in known]) for name in known[0]}

    def close(self) -> None:
        """Forget everything."""
        self.known.clear()


def _digest(picture: NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(picture).tobytes(), digest_size=16).digest()

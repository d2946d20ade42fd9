"""Weights that depend on their names alone, so that two implementations get the same weights without a file."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping

import numpy as np


def uniform(name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    # Uniform doubles come straight from the generator's bits, which numpy keeps from version to version.
    return np.random.default_rng(zlib.crc32(name.encode())).random(shape) * (high - low) + low


GAIN = 1.4
"""What compensates SiLU."""


def deterministic_weight(name: str, shape: tuple[int, ...], gain: float = GAIN) -> np.ndarray:
    """A float32 weight of this name and shape, scaled so that activations stay near 1."""
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if name.endswith("dfl.conv.weight"):
        value = np.arange(math.prod(shape)).reshape(shape)
    elif kind in ("running_var", "weight") and len(shape) == 1:
        value = uniform(name, shape, 0.7, 1.3)
    elif len(shape) == 1:
        value = uniform(name, shape, -0.3, 0.3)
        if re.search(r"\.cv2\.\d\.2\.bias$", name):
            # Small distances keep boxes below 200 pixels, where FP32 resolves 2e-5.
            value -= 0.4 * (np.arange(shape[0]) % 16)
    else:
        bound = gain * math.sqrt(3 / math.prod(shape[1:]))
        value = uniform(name, shape, -bound, bound)
    return np.asarray(value, np.float32)


def deterministic_weights(shapes: Mapping[str, tuple[int, ...]], gain: float = GAIN) -> dict[str, np.ndarray]:
    return {name: deterministic_weight(name, tuple(shape), gain) for name, shape in shapes.items()}


def deterministic_input(batch: int, height: int, width: int) -> np.ndarray:
    """Images of smooth stripes and noise, NCHW float32 between 0 and 1."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    stripes = np.stack([np.sin(rows / (5 + c)) * np.cos(columns / (7 - c)) for c in range(3)])[None]
    noise = uniform("input", (batch, 3, height, width), -0.25, 0.25)
    return np.asarray(0.5 + 0.25 * stripes + noise, np.float32)

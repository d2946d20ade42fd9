"""TensorRT calibration cache: a header that names the calibrator, then one line per tensor with its scale.

    TRT-8600-MinMaxCalibration
    images: 3c010a14

A scale is a float32, written as the eight hex digits of its bits, most significant first.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trtkit.calibration.collector import get_model_batch
from trtkit.errors import CalibrationError
from trtkit.files import hash_parts, read_limited
from trtkit.graph.qdq import INT8_MAX, plan_qdq, quantizable_tensors
from trtkit.results import Provenance

if TYPE_CHECKING:
    from trtkit.models import Model


__all__ = [
    "format_cache",
    "parse_cache",
    "read_cache_ranges",
]

MAX_BYTES = 16 * 2**20
"""Largest cache file: 200,000 tensors."""

_CALIBRATORS = {"minmax": "MinMaxCalibration", "entropy": "EntropyCalibration2"}

_HEADER = re.compile(r"TRT-(\d+)-(\w+)")


def format_cache(ranges: Mapping[str, tuple[float, float]], *, algorithm: str = "minmax", version: str = "8600") -> str:
    """Format scales as text of a TensorRT calibration cache.

    Args:
        ranges: Minimum and maximum by tensor; a scale is the larger magnitude over 127.
        algorithm: Calibration algorithm; "entropy" names TensorRT's entropy calibrator in the header, every other one
            its min-max calibrator.
        version: TensorRT version as digits.
    """
    lines = [f"TRT-{version}-{_CALIBRATORS.get(algorithm, _CALIBRATORS['minmax'])}"]
    for name, (low, high) in ranges.items():
        lines.append(f"{name}: {struct.pack('>f', max(abs(low), abs(high)) / INT8_MAX).hex()}")
    return "\n".join(lines) + "\n"


def parse_cache(text: str) -> tuple[str, str, dict[str, float]]:
    """Parse the text of a TensorRT calibration cache.

    Args:
        text: Content of the file.

    Returns:
        TensorRT version as digits, name of the calibrator, and scale by tensor.

    Raises:
        CalibrationError: The text is not a calibration cache; the error has the line number.
    """
    asked = "read a TensorRT calibration cache"
    lines = text.splitlines()
    header = _HEADER.fullmatch(lines[0].strip()) if lines else None
    if header is None:
        raise CalibrationError(
            asked,
            f"its first line is {lines[0][:60]!r}" if lines else "it is empty",
            "pass a file that starts like TRT-8600-MinMaxCalibration",
            code="calibration-cache-header",
            line=1,
        )
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        # Tensor names may contain colons.
        name, _, digits = line.rpartition(": ")
        try:
            (scale,) = struct.unpack(">f", bytes.fromhex(digits.strip()))
        except (ValueError, struct.error):
            raise CalibrationError(
                asked,
                f"line {number} is {line[:60]!r}",
                "write 'tensor: ' and eight hex digits",
                code="calibration-cache-line",
                line=number,
            ) from None
        if not name or not 0 <= scale < float("inf"):
            raise CalibrationError(
                asked,
                f"line {number} gives tensor {name[:60]!r} the scale {scale}",
                "calibrate the model again",
                code="calibration-cache-scale",
                line=number,
                tensor=name,
                value=scale,
            )
        scales[name] = float(scale)
    return header[1], header[2], scales


def read_cache_ranges(
    source: str | Path, model: Model | str | Path
) -> tuple[dict[str, tuple[float, float]], Provenance]:
    """Read the ranges in a TensorRT calibration cache.

    Args:
        source: The file, or its text.
        model: The model it belongs to.

    Returns:
        Ranges by tensor, and their provenance.

    Raises:
        CalibrationError: The text is not a calibration cache, or lacks tensors of the model's default QDQ placement.
    """
    from trtkit.graph.torch_export import trace
    from trtkit.models import load

    is_text = isinstance(source, str) and source.lstrip().startswith("TRT-")
    try:
        text = str(source) if is_text else read_limited(source, MAX_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:  # no UTF-8 included
        raise CalibrationError(
            f"read TensorRT calibration cache {source}",
            f"it can't be read ({getattr(error, 'strerror', None) or error})",
            "pass a file that starts like TRT-8600-MinMaxCalibration",
            code="calibration-cache-unreadable",
            path=Path(source),
        ) from error
    version, calibrator, scales = parse_cache(text)
    loaded = load(model)
    graph = trace(loaded, batch=get_model_batch(loaded) or 1, dynamic_batch=True)
    ranges = {
        name: (-scales[name] * INT8_MAX, scales[name] * INT8_MAX)
        for name in quantizable_tensors(graph)
        if name in scales
    }
    missing = [name for name in plan_qdq(graph).tensors if name not in ranges]
    if missing:
        raise CalibrationError(
            f"use a TensorRT calibration cache for {loaded.stem}",
            f"it has no scale for {len(missing)} tensors, such as {missing[0]!r}",
            "use the cache of this graph, or calibrate the model",
            code="calibration-cache-tensor-missing",
            names=tuple(missing),
        )
    return ranges, Provenance(
        model_hash=loaded.hash,
        data_hash=None,
        runner=f"TensorRT {_format_version(version)}",
        settings={"calibrator": calibrator, "cache_hash": hash_parts(text)},
    )


def _format_version(digits: str) -> str:
    """A header's version, "8.6.0" from 8600 and "10.13.2" from 101302."""
    number = int(digits)
    step = 100 if number >= 10_000 else 10
    major, minor, patch = number // (step * 100), number // 100 % step, number % 100
    return f"{major}.{minor}.{patch}"

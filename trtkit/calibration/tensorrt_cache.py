"""TensorRT's calibration cache: a line that names the calibrator, then a scale in hex for each tensor."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trtkit.errors import CalibrationError
from trtkit.files import hash_parts
from trtkit.graph.qdq import INT8_MAX, plan_qdq, quantizable_tensors
from trtkit.results import Provenance

if TYPE_CHECKING:
    from trtkit.models import Model


__all__ = [
    "format_cache",
    "parse_cache",
    "read_cache_ranges",
]


# TensorRT's own calibration cache: a line that names the calibrator, then a scale in hex for each tensor.
#
#     TRT-8600-MinMaxCalibration
#     images: 3c010a14
#
# A scale is a float32, written as the eight hex digits of its bits, most significant first.


_CALIBRATORS = {"minmax": "MinMaxCalibration", "entropy": "EntropyCalibration2"}

_HEADER = re.compile(r"TRT-(\d+)-(\w+)")


def format_cache(ranges: Mapping[str, tuple[float, float]], *, algorithm: str = "minmax", version: str = "8600") -> str:
    """Scales as TensorRT's cache text.

    Args:
        ranges: Lowest and highest value by tensor; a scale is the larger magnitude over 127.
        algorithm: "entropy" names TensorRT's entropy calibrator in the header, all others its min-max calibrator.
        version: TensorRT's version as its digits.
    """
    lines = [f"TRT-{version}-{_CALIBRATORS.get(algorithm, _CALIBRATORS['minmax'])}"]
    for name, (low, high) in ranges.items():
        lines.append(f"{name}: {struct.pack('>f', max(abs(low), abs(high)) / INT8_MAX).hex()}")
    return "\n".join(lines) + "\n"


def parse_cache(text: str) -> tuple[str, str, dict[str, float]]:
    """Take TensorRT's cache text apart.

    Returns:
        TensorRT's version digits, the calibrator's name, and the scale of each tensor.

    Raises:
        CalibrationError: It is no such text; the line is named.
    """
    asked = "read a TensorRT calibration cache"
    lines = text.splitlines()
    header = _HEADER.fullmatch(lines[0].strip()) if lines else None
    if header is None:
        found = f"its first line is {lines[0][:60]!r}" if lines else "it is empty"
        raise CalibrationError(asked, found, "give a file that starts like TRT-8600-MinMaxCalibration")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        # Names hold colons themselves.
        name, _, digits = line.rpartition(": ")
        try:
            (scale,) = struct.unpack(">f", bytes.fromhex(digits.strip()))
        except (ValueError, struct.error):
            raise CalibrationError(
                asked, f"line {number} is {line[:60]!r}", "write 'tensor: ' and eight hex digits"
            ) from None
        if not name or not 0 <= scale < float("inf"):
            raise CalibrationError(asked, f"line {number} gives {name!r} the scale {scale}", "calibrate again")
        scales[name] = float(scale)
    return header[1], header[2], scales


def read_cache_ranges(
    source: str | Path, model: Model | str | Path
) -> tuple[dict[str, tuple[float, float]], Provenance]:
    """The ranges in TensorRT's calibration cache, by tensor, and where they come from.

    Args:
        source: The file, or its text.
        model: The model it belongs to.

    Raises:
        CalibrationError: It is no such text, or lacks tensors that the model's default placement needs.
    """
    from trtkit.graph.torch_export import trace
    from trtkit.models import load

    is_text = isinstance(source, str) and source.lstrip().startswith("TRT-")
    text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
    version, calibrator, scales = parse_cache(text)
    loaded = load(model)
    graph = trace(loaded, dynamic_batch=True)
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
            "use the cache of this very graph, or calibrate the model",
        )
    return ranges, Provenance(
        model_hash=loaded.hash,
        data_hash=None,
        runner=f"TensorRT {'.'.join(version)}",
        settings={"calibrator": calibrator, "cache_hash": hash_parts(text)},
    )

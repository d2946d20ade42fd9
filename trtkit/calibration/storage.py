"""Cache of calibrations on disk; one is reused only if model, data, settings and versions are the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtkit.calibration.calibration import Calibration
from trtkit.errors import TrtkitError
from trtkit.files import hash_parts
from trtkit.results import Provenance

__all__ = [
    "CalibrationKey",
    "find_calibration",
    "store_calibration",
]

_MISSING = "none"

# Packages that change the result: tracing, simplification, inference, counting.
_PACKAGES = ("trtkit", "torch", "onnx", "onnxslim", "onnxruntime")

# Settings that are paths; the content is hashed instead.
_PATH_SETTINGS = ("data",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationKey:
    """Everything a calibration depends on; calibrations with equal keys are interchangeable.

    Attributes:
        model: SHA-256 of architecture and weights.
        data: SHA-256 of the sampled images and their labels.
        settings: Every setting, with `preprocessing` (see `hash_preprocessing`).
        seed: Seed of the sample.
        versions: Versions of the packages that change the result.
        runner: Name of the runner.
    """

    model: str
    data: str
    settings: Mapping[str, Any]
    seed: int | None
    versions: Mapping[str, str]
    runner: str

    @classmethod
    def from_provenance(cls, provenance: Provenance) -> CalibrationKey:
        """The key of a calibration with this provenance."""
        return cls(
            model=provenance.model_hash,
            data=provenance.data_hash or "",
            settings={name: value for name, value in provenance.settings.items() if name not in _PATH_SETTINGS},
            seed=provenance.seed,
            versions={name: version for name, version in provenance.versions.items() if name in _PACKAGES},
            runner=provenance.runner,
        )

    @property
    def hash(self) -> str:
        """SHA-256 of all fields, 64 hex digits."""
        return hash_parts(json.dumps(dataclasses.asdict(self), sort_keys=True))

    def differences(self, other: CalibrationKey) -> tuple[str, ...]:
        """Differences from another key, such as "the model's weights or architecture (1f..., not 3a...)".

        Args:
            other: The other key.

        Returns:
            One entry per difference; () for equal keys.
        """
        differences = []
        for name, what in (("model", "the model's weights or architecture"), ("data", "the images or labels")):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                differences.append(f"{what} ({theirs[:12] or _MISSING}, not {ours[:12] or _MISSING})")
        for field in ("settings", "versions"):
            ours, theirs = getattr(self, field), getattr(other, field)
            for name in sorted({*ours, *theirs}):
                one, two = ours.get(name, _MISSING), theirs.get(name, _MISSING)
                if one != two:
                    values = f"{two}, not {one}" if name != "preprocessing" else f"{str(two)[:12]}, not {str(one)[:12]}"
                    differences.append(f"{name} ({values})")
        for name in ("seed", "runner"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                differences.append(f"{name} ({theirs}, not {ours})")
        return tuple(differences)


def find_calibration(folder: str | Path, key: CalibrationKey) -> tuple[Calibration | None, str]:
    """Find the calibration with a key.

    Args:
        folder: The cache.
        key: The key.

    Returns:
        The calibration and "", or None and the reason: how the closest entry differs.
    """
    folder = Path(folder)
    entry = folder / key.hash[:16]
    all_differences: list[tuple[str, ...]] = []
    for path in sorted(folder.glob(f"*/{Calibration.kind}.json")):
        try:
            stored = CalibrationKey.from_provenance(Calibration.load_provenance(path.parent))
            differences = key.differences(stored)
            if not differences and path.parent == entry:
                return Calibration.load(entry), ""
        except (OSError, ValueError, KeyError, TypeError, TrtkitError) as error:
            if path.parent == entry:
                return None, f"the entry can't be read ({error})"
            continue
        if differences:
            all_differences.append(differences)
    if not all_differences:
        return None, "the cache is empty"
    closest = min(all_differences, key=len)
    return None, f"the closest entry differs in {'; '.join(closest)}"


def store_calibration(folder: str | Path, calibration: Calibration) -> Path:
    """Write a calibration into the cache.

    Args:
        folder: The cache.
        calibration: The calibration.

    Returns:
        The folder of the entry.

    Raises:
        OutputError: The folder can't be written.
    """
    return calibration.save(Path(folder) / CalibrationKey.from_provenance(calibration.provenance).hash[:16])

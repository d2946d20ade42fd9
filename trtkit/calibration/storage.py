"""Calibrations on disk, each used again only for exactly what it was measured on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.calibration.calibration import Calibration
from trtkit.errors import TrtkitError
from trtkit.files import hash_parts
from trtkit.results import Provenance

if TYPE_CHECKING:
    from trtkit.calibration.calibration import Calibration

__all__ = [
    "CalibrationKey",
    "find_calibration",
    "store_calibration",
]

_UNSAID = "nothing"

# Versions that shape what a pass finds: who traces, who simplifies, who runs, who measures.
_PACKAGES = ("trtkit", "torch", "onnx", "onnxslim", "onnxruntime")

# Settings that say where things lie, not what they are.
_PLACES = ("data",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationKey:
    """What a calibration depends on; two are interchangeable when all of it is the same.

    Attributes:
        model: SHA-256 of architecture and weights.
        data: SHA-256 of the images that were drawn, with their labels.
        settings: Every setting, `preprocessing` (the hash of what becomes of fixed images) among them.
        seed: Seed of the sample.
        versions: Of the packages that shape the result.
        runner: What ran the pass.
    """

    model: str
    data: str
    settings: Mapping[str, Any]
    seed: int | None
    versions: Mapping[str, str]
    runner: str

    @classmethod
    def from_provenance(cls, provenance: Provenance) -> CalibrationKey:
        """The key that an origin amounts to."""
        return cls(
            model=provenance.model_hash,
            data=provenance.data_hash or "",
            settings={name: value for name, value in provenance.settings.items() if name not in _PLACES},
            seed=provenance.seed,
            versions={name: version for name, version in provenance.versions.items() if name in _PACKAGES},
            runner=provenance.runner,
        )

    @property
    def hash(self) -> str:
        """SHA-256 of all of it, 64 hex digits."""
        return hash_parts(json.dumps(dataclasses.asdict(self), sort_keys=True))

    def differences(self, other: CalibrationKey) -> tuple[str, ...]:
        """What differs from another key, in words: `the model's weights (1f..., not 3a...)`; () where nothing does."""
        found = []
        for name, what in (("model", "the model's weights or architecture"), ("data", "the images or labels")):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                found.append(f"{what} ({theirs[:12] or _UNSAID}, not {ours[:12] or _UNSAID})")
        for field in ("settings", "versions"):
            ours, theirs = getattr(self, field), getattr(other, field)
            for name in sorted({*ours, *theirs}):
                one, two = ours.get(name, _UNSAID), theirs.get(name, _UNSAID)
                if one != two:
                    values = f"{two}, not {one}" if name != "preprocessing" else f"{str(two)[:12]}, not {str(one)[:12]}"
                    found.append(f"{name} ({values})")
        for name in ("seed", "runner"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                found.append(f"{name} ({theirs}, not {ours})")
        return tuple(found)


def find_calibration(folder: str | Path, key: CalibrationKey) -> tuple[Calibration | None, str]:
    """Look for a calibration of exactly this key.

    Args:
        folder: The cache.
        key: What is wanted.

    Returns:
        The calibration and "", or None and why none was used: what differs in the one that comes closest.
    """
    folder = Path(folder)
    place = folder / key.hash[:16]
    reasons: list[tuple[str, ...]] = []
    for path in sorted(folder.glob(f"*/{Calibration.kind}.json")):
        try:
            stored = CalibrationKey.from_provenance(Calibration.load_provenance(path.parent))
            reason = key.differences(stored)
            if not reason and path.parent == place:
                return Calibration.load(place), ""
        except (OSError, ValueError, KeyError, TypeError, TrtkitError) as error:
            if path.parent == place:
                return None, f"the entry can't be read ({error})"
            continue
        if reason:
            reasons.append(reason)
    if not reasons:
        return None, "the cache holds none yet"
    closest = sorted(reasons, key=len)[0]
    return None, f"measured on something else: {'; '.join(closest)}"


def store_calibration(folder: str | Path, calibration: Calibration) -> Path:
    """Write a calibration into the cache.

    Returns:
        Its folder.

    Raises:
        OutputError: The folder can't be written.
    """
    return calibration.save(Path(folder) / CalibrationKey.from_provenance(calibration.provenance).hash[:16])

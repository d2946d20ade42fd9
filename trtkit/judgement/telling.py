"""What a comparison knows beside its frames: the facts that its verdict and its report tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtkit.judgement.joining import headline
from trtkit.recipe import rounded_imgsz

if TYPE_CHECKING:
    from trtkit.artifact import Artifact
    from trtkit.backends import Passport
    from trtkit.calibration import Calibration
    from trtkit.judgement.evaluation import Evaluation
    from trtkit.sources import Model

__all__ = ["told"]


def told(
    model: Model,
    made: Mapping[str, Mapping[str, Artifact]],
    judged: Mapping[str, Evaluation],
    ranges: Calibration | None,
    imgsz: int | tuple[int, int] | None,
) -> dict[str, Any]:
    """What no frame holds, JSON-ready.

    Args:
        model: What was compared.
        made: Files by precision and format.
        judged: Evaluations by precision.
        ranges: The calibration behind INT8, if there was one.
        imgsz: The picture size that was asked for, pixels.
    """
    reference = "fp32" if "fp32" in made else next(iter(made))
    first = judged[reference]
    passports = {label: files["engine"].passport for label, files in made.items() if "engine" in files}
    calibration = None
    if ranges is not None:
        calibration = {name: getattr(ranges, name) for name in ("algorithm", "percentile", "images", "split", "hash")}
    return {
        "model": model.stem,
        "task": model.task,
        "imgsz": list(made[reference]["onnx"].card.imgsz),
        "pictures": first.pictures,
        "skipped": list(first.skipped),
        "reference": reference,
        "metrics": [list(pair) for pair in headline(first.metrics)],
        "all_metrics": list(first.metrics),
        "target": next((passport.gpu or passport.sm for passport in passports.values() if passport), None),
        "engines": {label: _shown(passport) for label, passport in passports.items() if passport},
        "files": {label: {kind: str(file.path) for kind, file in files.items()} for label, files in made.items()},
        "calibration": calibration,
        "recipes": {
            label: {kind: file.recipe.to_dict() for kind, file in files.items()} for label, files in made.items()
        },
        "notes": _notes(model, imgsz, judged),
    }


def _notes(model: Model, imgsz: int | tuple[int, int] | None, judged: Mapping[str, Evaluation]) -> list[str]:
    notes = list(dict.fromkeys(note for one in judged.values() for note in one.notes))
    if imgsz is not None and (size := rounded_imgsz(imgsz, model.stride)) != rounded_imgsz(imgsz, 1):
        notes.append(f"imgsz {imgsz} was rounded up to {size[0]}x{size[1]}, a multiple of the stride {model.stride}")
    return notes


def _shown(passport: Passport) -> dict[str, Any]:
    """What a reader asks an engine for; the rest stays in its file."""
    names = ("tensorrt", "sm", "gpu", "driver", "batch", "dynamic", "plan_size", "build_seconds", "created")
    shown = {name: getattr(passport, name) for name in names if getattr(passport, name) not in ("", None)}
    return {**shown, "layers": len(passport.layers)} if passport.layers else shown

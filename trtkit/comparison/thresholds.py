"""Confidence thresholds of a comparison: matched with FP16's, and written into the metadata of the files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trtkit.comparison.verdict import choose_baseline
from trtkit.evaluation.thresholds import match_thresholds, threshold_facts

if TYPE_CHECKING:
    import polars as pl

    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.exporter import Artifact

__all__ = ["match_all_thresholds", "write_thresholds"]


def match_all_thresholds(evaluations: Mapping[str, Evaluation], conf: float, seed: int) -> dict[str, pl.DataFrame]:
    """Match the thresholds of INT8 and candidates with FP16's, or with the reference's if FP16 was not compared.

    Args:
        evaluations: Evaluations by precision.
        conf: The user's confidence threshold.
        seed: Seed of the resamples.

    Returns:
        `match_thresholds` by precision; {} for tasks without boxes.
    """
    reference = "fp32" if "fp32" in evaluations else next(iter(evaluations))
    thresholds = {}
    for precision, evaluation in evaluations.items():
        baseline = choose_baseline(precision, evaluations, reference)
        if precision not in (reference, "fp16"):
            rows = match_thresholds(evaluations[baseline], evaluation, conf=conf, seed=seed)
            if not rows.is_empty():
                thresholds[precision] = rows
    return thresholds


def write_thresholds(
    artifacts: Mapping[str, Mapping[str, Artifact]],
    thresholds: Mapping[str, pl.DataFrame],
    staging: Path,
    evaluations: Mapping[str, Evaluation],
    conf: float,
) -> dict[str, dict[str, Artifact]]:
    """Write thresholds into the metadata of the files that a comparison made.

    Args:
        artifacts: Files by precision and format.
        thresholds: From `match_all_thresholds`.
        staging: The folder of the comparison's own files; others are left as they are.
        evaluations: Evaluations by precision.
        conf: The user's confidence threshold.

    Returns:
        The artifacts, with their new sizes.
    """
    from trtkit.backends.engine_file import add_engine_metadata
    from trtkit.graph.onnx_file import add_metadata

    reference = "fp32" if "fp32" in evaluations else next(iter(evaluations))
    written = {precision: dict(files) for precision, files in artifacts.items()}
    for precision, rows in thresholds.items():
        facts = threshold_facts(
            rows,
            reference=choose_baseline(precision, evaluations, reference),
            conf=conf,
            eval_images=evaluations[precision].image_count,
        )
        for kind, file in artifacts.get(precision, {}).items():
            if file.path.parent == staging:
                (add_metadata if kind == "onnx" else add_engine_metadata)(file.path, {"thresholds": facts})
                written[precision][kind] = dataclasses.replace(file, size=file.path.stat().st_size)
    return written

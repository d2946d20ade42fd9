"""The report's part about what changed: objects won and lost, and the worst of them as pictures."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtkit.judgement.comparison import Comparison

__all__ = ["what_changed"]

SHOWN = 8
"""Pictures a precision: the report stays one file that opens at once."""


def what_changed(comparison: Comparison) -> list[str]:
    """HTML for every precision but the reference; nothing where the detections were not kept."""
    reference = comparison.about["reference"]
    others = [name for name in comparison.rows["precision"].unique(maintain_order=True) if name != reference]
    if not others or "path" not in comparison.pictures.columns:
        return []
    first = reference.upper()
    note = (
        f"Objects that {first} finds at confidence 0.25 and others do not, and the other way round; the worst first. "
        f"On the left {first}, on the right the other: what changed in thick lines, what else was found in thin ones, "
        "labels in white."
    )
    if comparison.about["task"] == "classify":
        note = (
            f"Pictures whose likeliest class is right with {first} and wrong with others, and the other way round; the "
            f"worst first. On the left {first}, on the right the other, with their three likeliest classes; below, the "
            "class that is right and its score."
        )
    parts = ["<h2>What changed</h2>", f'<p class="note">{_text(note)}</p>']
    for precision in others:
        told = comparison.changes(precision)
        counts = dict(told.group_by("change").len().iter_rows())
        parts.append(f"<h3>{_text(precision.upper())}: {_counted(counts)}</h3>")
        drawn = [_figure(row) for row in comparison.gallery(precision, most=SHOWN).iter_rows(named=True) if row["png"]]
        if drawn:
            parts.append(f'<div class="gallery">{"".join(drawn)}</div>')
    return parts


def _counted(counts: Mapping[str, int]) -> str:
    """ "8 lost, 4 won, 26 new errors, 1 error gone"; a classifier makes no errors of place."""
    lost, won, new, gone = (counts.get(name, 0) for name in ("lost", "won", "new error", "error gone"))
    told = f"{lost} lost, {won} won"
    if new or gone:
        told += f", {new} new error{'' if new == 1 else 's'}, {gone} error{'' if gone == 1 else 's'} gone"
    return told


def _figure(row: Mapping[str, Any]) -> str:
    scores = ["none" if row[name] is None else f"{row[name]:.2f}" for name in ("score_reference", "score")]
    beneath = ""
    if row["beneath"] is not None:
        alike = row["beneath"] == row["name"]
        beneath = ", badly placed or twice" if alike else f" where the label is {row['beneath']}"
    told = f"{row['change']}: {row['name']}{beneath}, score {scores[0]} to {scores[1]}"
    source = f"data:image/png;base64,{base64.b64encode(row['png']).decode('ascii')}"
    return f'<figure><img alt="{_text(told)}" src="{source}"><figcaption>{_text(told)}</figcaption></figure>'


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)

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
    parts = [
        "<h2>What changed</h2>",
        f'<p class="note">Objects that {_text(reference.upper())} finds at confidence 0.25 and others do not, and the '
        f"other way round; the worst first. On the left {_text(reference.upper())}, on the right the other; white is "
        "the label.</p>",
    ]
    for precision in others:
        told = comparison.changes(precision)
        counts = dict(told.group_by("change").len().iter_rows())
        sorts = {"lost": "lost", "won": "won", "new error": "new errors", "error gone": "errors gone"}
        listed = ", ".join(f"{counts.get(sort, 0)} {name}" for sort, name in sorts.items())
        parts.append(f"<h3>{_text(precision.upper())}: {listed}</h3>")
        drawn = [_figure(row) for row in comparison.gallery(precision, most=SHOWN).iter_rows(named=True) if row["png"]]
        if drawn:
            parts.append(f'<div class="gallery">{"".join(drawn)}</div>')
    return parts


def _figure(row: Mapping[str, Any]) -> str:
    scores = ["none" if row[name] is None else f"{row[name]:.2f}" for name in ("score_reference", "score")]
    told = f"{row['change']}: {row['name']}, score {scores[0]} to {scores[1]}"
    source = f"data:image/png;base64,{base64.b64encode(row['png']).decode('ascii')}"
    return (
        f'<figure><img alt="{_text(told)}" src="{source}" loading="lazy">'
        f"<figcaption>{_text(told)}</figcaption></figure>"
    )


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)

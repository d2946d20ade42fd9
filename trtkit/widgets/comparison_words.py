"""A comparison's tables and pictures as HTML."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.widgets.comparison_state import others
from trtkit.widgets.controls import note_html
from trtkit.widgets.tables import table_html

if TYPE_CHECKING:
    from trtkit.widgets.comparison_state import DashboardState, GalleryState

__all__ = ["cards", "changes_table", "classes_table", "headline_table", "verdict"]

SIGNS = {"lost": "▼ lost", "new error": "▼ new error", "won": "▲ won", "error gone": "▲ error gone"}
"""Harm points down, gain up, so that no colour has to say it."""


def verdict(state: DashboardState) -> str:
    """What the comparison says, in sentences."""
    said = [f"<li>{html.escape(line)}</li>" for line in state.comparison.verdict()]
    first = len(others(state.comparison)) + 1
    model = html.escape(str(state.comparison.about["model"]))
    rest = f"<details><summary>What else the numbers say</summary><ul>{''.join(said[first:])}</ul></details>"
    return (
        f"<h3>What each precision of {model} costs and buys</h3><ul>{''.join(said[:first])}</ul>"
        f"{rest if said[first:] else ''}"
    )


def headline_table(state: DashboardState) -> str:
    """Accuracy with intervals, times and sizes, one row a precision; the one that stands out is marked."""
    frame = state.headline()
    headings: dict[str, str] = {
        "p50_ms": "half within, ms", "p99_ms": "99 % within, ms", "pictures_per_s": "pictures/s", "onnx_mb": "ONNX, MB",
        "engine_mb": "engine, MB",
    }  # fmt: skip
    digits = {"p50_ms": 2, "p99_ms": 2, "pictures_per_s": 1, "onnx_mb": 1, "engine_mb": 1}
    for metric, _ in state.comparison.about["metrics"]:
        headings |= {f"delta {metric}": "change", f"interval {metric}": "95 % interval"}
        digits |= {metric: 4, f"delta {metric}": 4}
    marked = {place: "trtkit-marked" for place, name in enumerate(frame["precision"]) if name == state.precision}
    runners = ", ".join(state.comparison.rows["runner"].unique(maintain_order=True))
    clock = "" if state.comparison.rows["engine"].all() else "; these times are not TensorRT's"
    caption = (
        f"Changes against {state.reference.upper()} with their 95 % intervals; batch {state.batch}, {runners}{clock}"
    )
    return table_html(frame, caption=caption, headings=headings, digits=digits, marked=marked)


def classes_table(state: DashboardState) -> str:
    """One row a class, the one that loses most first; the one that stands out is marked."""
    frame = state.by_class()
    headings = {"name": "class", "instances": "labels", "reference": state.reference.upper(),
                "value": state.precision.upper(), "delta": "change", "interval": "95 % interval",
                "measurable": "more than chance"}  # fmt: skip
    digits = dict.fromkeys(("reference", "value", "delta"), 4)
    marked = {place: "trtkit-marked" for place, name in enumerate(frame["name"]) if name == state.name}
    told = table_html(frame, caption=f"{state.metric} by class", headings=headings, digits=digits, marked=marked)
    return f"<div class='trtkit-scroll' tabindex='0'>{told}</div>"


def changes_table(state: DashboardState) -> str:
    """How many objects were lost and won."""
    if state.precision == state.reference:
        return note_html(f"{state.reference.upper()} is what the others are told against: nothing changes in it.")
    of = f" of class {state.name}" if state.name else ""
    caption = f"What {state.precision.upper()} changes{of} at confidence 0.25; tk.gallery(comparison) draws it"
    frame = state.changed().rename({"what": ""})
    return table_html(frame, caption=caption)


def cards(state: GalleryState) -> str:
    """The page's changes as pictures: the reference on the left, the precision on the right, the label in white."""
    frame = state.drawn()
    if frame.is_empty():
        return note_html("Nothing of this kind changed.", kind="good")
    missing = int(frame["png"].null_count())
    told = "".join(_card(row, state) for row in frame.iter_rows(named=True))
    note = note_html(f"{missing} pictures are no longer where they were judged, and can't be drawn.", kind="warning")
    return f"{note if missing else ''}<div class='trtkit-cards'>{told}</div>"


def _card(row: dict[str, Any], state: GalleryState) -> str:
    before, after = ("none" if row[name] is None else f"{row[name]:.2f}" for name in ("score_reference", "score"))
    name = html.escape(str(row["name"]))
    told = f"{SIGNS[row['change']]}: {name}, score {before} to {after}"
    file = html.escape(Path(row["path"]).name)
    alt = f"{told}, in {file}; {state.reference} on the left, {state.precision} on the right"
    picture = ""
    if row["png"] is not None:
        source = base64.b64encode(row["png"]).decode("ascii")
        kind = "png" if row["png"][:4] == b"\x89PNG" else "jpeg"
        picture = f"<img alt=\"{html.escape(alt, quote=True)}\" src='data:image/{kind};base64,{source}' loading='lazy'>"
    heads = f"<span class='trtkit-soft'>{state.reference.upper()} | {state.precision.upper()} · {file}</span>"
    return f"<figure>{picture}<figcaption><b>{told}</b><br>{heads}</figcaption></figure>"

"""What the tuner says of its state: its headline, and what to take away."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from trtkit.widgets.controls import note_html
from trtkit.widgets.tuner_state import TunerState

__all__ = ["headline", "take_away"]


def headline(state: TunerState, notes: Sequence[str] = ()) -> str:
    """What is tuned, and what it was measured on; HTML.

    Args:
        state: The tuner's.
        notes: What a reader should know besides.
    """
    name = html.escape(Path(state.model).name or "a calibration")
    parts = [f"<h3>Tune INT8 of {name}</h3>"]
    if state.readings is not None:
        found = state.readings.calibration
        pictures = f" on {found.images} pictures of {found.split}" if found.images else ""
        told = f"{len(found.seen) or len(found.ranges)} tensors measured{pictures}, {found.origin.runner}"
        parts.append(f"<p class='trtkit-soft'>{html.escape(told)}</p>")
    else:
        parts.append("<p class='trtkit-soft'>Its tensors are measured first; nothing else is looked at twice.</p>")
    parts += [note_html(f"Note: {note}.", kind="warning") for note in notes]
    if state.found is not None and not state.found.reached:
        told = f"No mix is within a loss of {state.found.max_drop:g}; the one that was found loses least."
        parts.append(note_html(told, kind="warning"))
    return "".join(parts)


def take_away(state: TunerState) -> str:
    """The keep list, the Python and the command line of what is chosen; HTML, "" before there is a calibration."""
    tuned = state.tuned()
    if tuned is None:
        return ""
    keep = "\n".join(repr(pattern) + "," for pattern in tuned.keep) or "nothing beyond what stays high by default"
    command = tuned.to_command(f"{state.folder}/calibration")
    blocks = (
        ("keep", "The keep list", keep),
        ("python", "Python", tuned.to_python()),
        ("command", "Command line", command),
    )
    shown = "".join(
        f"<p class='trtkit-soft'>{title}</p>"
        f"<pre class='trtkit-code trtkit-{name}' tabindex='0' aria-label='{title}'>{html.escape(text)}</pre>"
        for name, title, text in blocks
    )
    return f"<h4>Take it with you</h4>{shown}"

"""gallery(): images of the objects that a precision loses and gains, the largest score drop first."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.comparison.comparison import Comparison
from trtkit.errors import DataError
from trtkit.html import render
from trtkit.recipe import format_label
from trtkit.widgets.comparison.dashboard import ALL_CLASSES, ComparisonWidget
from trtkit.widgets.comparison.state import CHANGES, GalleryState, list_compared_precisions
from trtkit.widgets.ui.controls import (
    NARROW_WIDTH,
    SHORT_LABEL,
    WRAPPED_ROW,
    make_button,
    make_control,
    render_note,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["CHANGE_LABELS", "Gallery", "gallery", "render_change_cards"]

CHANGE_LABELS = {
    "lost": "▼ lost",
    "false positive added": "▼ false positive added",
    "gained": "▲ gained",
    "false positive removed": "▲ false positive removed",
}
"""Labels of the kinds of change; the arrow tells losses from gains without color."""


def render_change_cards(state: GalleryState) -> str:
    """The changes of the page as images: reference left, precision right, labels in white."""
    frame = state.page_frame()
    if frame.is_empty():
        return render_note("There are no such changes.", kind="good")
    cards = [_describe_card(row) for row in frame.iter_rows(named=True)]
    markup = render(
        "widgets/comparison/templates/cards.html.j2", cards=cards, reference=state.reference, precision=state.precision
    )
    missing = int(frame["png"].null_count())
    if not missing:
        return markup
    note = render_note(f"{missing} images can't be shown: their files no longer exist.", kind="warning")
    return "".join((note, markup))


def _describe_card(row: dict[str, Any]) -> dict[str, str]:
    before, after = ("none" if row[name] is None else f"{row[name]:.2f}" for name in ("score_reference", "score"))
    image = row["png"]
    return {
        "label": f"{CHANGE_LABELS[row['change']]}: {row['name']}, score {before} to {after}",
        "file": Path(row["path"]).name,
        "format": "png" if image is not None and image[:4] == b"\x89PNG" else "jpeg",
        "data": "" if image is None else base64.b64encode(image).decode("ascii"),
    }


class Gallery(ComparisonWidget):
    """The gallery widget; every control has a method that does the same.

    Attributes:
        state: The changes that are shown; None until there is a comparison.
    """

    def __init__(self, source: Comparison | str | Path | None, precision: str | None) -> None:
        self.state: GalleryState | None = None
        self._precision = precision
        super().__init__(source, "gallery")

    def choose(self, **choices: Any) -> None:
        """Show another `precision`, other `kinds` of change, one class (`class_name`) or another threshold (`conf`).

        Raises:
            DataError: There is no comparison yet.
            RecipeError: The comparison has no such value.
        """
        self._set_state(self._require_state().with_choices(**choices))

    def turn_page(self, pages: int = 1) -> None:
        """Go some pages forward, or back for a negative number."""
        self._set_state(self._require_state().with_page_turned(pages))

    def create_content(self, comparison: Comparison) -> list[ipywidgets.Widget]:
        """The controls and images of a comparison."""
        self.state = state = GalleryState.from_comparison(comparison, self._precision)
        narrow = ipywidgets.Layout(width=NARROW_WIDTH)
        self.precision = make_control(
            ipywidgets.ToggleButtons, "Precision", "The precision whose changes against the reference are shown",
            name="precision", value=state.precision, style={**SHORT_LABEL, "button_width": "6rem"},
            options=[(format_label(name), name) for name in list_compared_precisions(comparison)],
        )  # fmt: skip
        names = list(comparison.classes["name"].unique(maintain_order=True))
        self.class_name = make_control(
            ipywidgets.Dropdown, "Class", "Show changes of this class only", name="class",
            options=[(ALL_CLASSES, ""), *((name, name) for name in names)], style=SHORT_LABEL, layout=narrow,
        )  # fmt: skip
        self.conf = make_control(
            ipywidgets.FloatSlider, "Confidence", "Detections with a lower score are ignored", name="conf",
            value=state.conf, min=0.05, max=0.95, step=0.05, continuous_update=False, style=SHORT_LABEL, layout=narrow,
        )  # fmt: skip
        self.kinds = {
            kind: make_control(
                ipywidgets.Checkbox, kind, f"Show {explanation}", name=f"kind-{kind.replace(' ', '-')}", indent=False,
                layout=ipywidgets.Layout(width="auto"), style={},
            )
            for kind, explanation in CHANGES.items()
        }  # fmt: skip
        for box in self.kinds.values():
            self._observe(box, self._choose_kinds, "checked")
        controls = {"precision": self.precision, "class_name": self.class_name, "conf": self.conf}
        for choice, control in controls.items():
            self._observe(control, self.choose, choice)
        turn_page = self._guard(self.turn_page)
        width = ipywidgets.Layout(width="8rem")
        self.previous = make_button(
            "◀ Previous", "The previous page", lambda: turn_page(-1), name="previous", layout=width
        )
        self.next = make_button("Next ▶", "The next page", lambda: turn_page(1), name="next", layout=width)
        self.page, self.cards = ipywidgets.HTML(), ipywidgets.HTML()
        self.page.add_class("trtkit-gallery-page")
        self.cards.add_class("trtkit-change-cards")
        self._render()
        heading = render("widgets/comparison/templates/gallery_heading.html.j2", model=comparison.about["model"])
        row = ipywidgets.Layout(**WRAPPED_ROW)
        return [
            ipywidgets.HTML(heading),
            ipywidgets.HBox(list(controls.values()), layout=row),
            ipywidgets.HBox([*self.kinds.values(), self.previous, self.next, self.page], layout=row),
            self.cards,
        ]

    def _choose_kinds(self, checked: bool) -> None:
        """Show the kinds of change whose boxes are checked."""
        self.choose(kinds=tuple(kind for kind, box in self.kinds.items() if box.value))

    def figures(self) -> Sequence[go.Figure]:
        """None: the gallery shows images."""
        return []

    def static_parts(self) -> Sequence[go.Figure | str]:
        """The current images, for the saved notebook."""
        if self.state is None:
            return [render_note("The comparison was still running when this page was saved.")]
        heading = render(
            "widgets/comparison/templates/gallery_static_heading.html.j2",
            precision=self.state.precision,
            reference=self.state.reference,
        )
        return [heading, self.cards.value]

    def _require_state(self) -> GalleryState:
        if self.state is None:
            raise DataError(
                "choose in the gallery", "there is no comparison yet", "call .wait() first", code="gallery-empty"
            )
        return self.state

    def _set_state(self, state: GalleryState) -> None:
        self.state = state
        self._render()
        self.refresh_static()

    def _restore_controls(self) -> None:
        self._render()

    def _render(self) -> None:
        state = self._require_state()
        counts = state.counts
        self._updating = True
        try:
            self.precision.value, self.class_name.value = state.precision, state.class_name
            self.conf.value = state.conf
            for kind, box in self.kinds.items():
                box.value, box.description = kind in state.kinds, f"{CHANGE_LABELS[kind]} ({counts[kind]})"
        finally:
            self._updating = False
        self.previous.disabled, self.next.disabled = state.page == 0, state.page >= state.page_count - 1
        self.page.value = render(
            "widgets/comparison/templates/page.html.j2", page=state.page + 1, page_count=state.page_count
        )
        self.cards.value = render_change_cards(state)


def gallery(comparison: Comparison | str | Path | None = None, precision: str | None = None) -> Gallery:
    """Show the objects that a precision loses and gains against the reference, the largest score drop first.

    Args:
        comparison: From `compare`, or the folder of a saved one. None uses the one that `trtkit demo` saved, or else
            compares the embedded model in the background.
        precision: The precision to show; None takes the lowest.

    Returns:
        The widget; `.choose(...)` and `.turn_page()` do what its controls do.

    Raises:
        DataError: The folder holds no comparison.
        RecipeError: The precision was not compared.
    """
    return Gallery(comparison, precision)

"""gallery(): the images where a precision lost or won an object, the ones that hurt most first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.comparison.comparison import Comparison
from trtkit.errors import DataError
from trtkit.widgets.comparison.dashboard import CHANGE_LABELS, ComparisonWidget, render_change_cards
from trtkit.widgets.comparison.state import CHANGES, GalleryState, list_compared_precisions
from trtkit.widgets.ui.controls import NARROW_WIDTH, SHORT_LABEL, WRAPPED_ROW, make_button, make_control, render_note

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Gallery", "gallery"]

ALL_CLASSES = "all classes"


class Gallery(ComparisonWidget):
    """The gallery; everything that a click does is a method too.

    Attributes:
        state: What is drawn; None as long as there is no comparison.
    """

    def __init__(self, source: Comparison | str | Path | None, precision: str | None) -> None:
        self.state: GalleryState | None = None
        self._precision, self._quiet = precision, False
        super().__init__(source, "gallery")

    def choose(self, **choices: Any) -> None:
        """Draw another `precision`, other `kinds` of change, one class (`name`), or from another score on (`conf`)."""
        self._become(self._known().choosing(**choices))

    def turn(self, pages: int = 1) -> None:
        """Go some pages on, or back."""
        self._become(self._known().turning(pages))

    def parts(self, comparison: Comparison) -> list[ipywidgets.Widget]:
        """Controls and images of a comparison."""
        self.state = state = GalleryState.of(comparison, self._precision)
        self.precision = make_control(
            ipywidgets.ToggleButtons, "Precision", "Whose changes against the reference are drawn", name="precision",
            options=[(name.upper(), name) for name in list_compared_precisions(comparison)], value=state.precision,
            style={**SHORT_LABEL, "button_width": "6rem"},
        )  # fmt: skip
        names = list(comparison.classes["name"].unique(maintain_order=True))
        self.class_name = make_control(
            ipywidgets.Dropdown, "Class", "Draw changes of this class alone", name="class",
            options=[(ALL_CLASSES, ""), *((name, name) for name in names)], style=SHORT_LABEL, layout=ipywidgets.Layout(width=NARROW_WIDTH),
        )  # fmt: skip
        self.conf = make_control(
            ipywidgets.FloatSlider, "Score from", "Detections below this score count as none", name="conf",
            value=state.conf, min=0.05, max=0.95, step=0.05, continuous_update=False, style=SHORT_LABEL,
            layout=ipywidgets.Layout(width=NARROW_WIDTH),
        )  # fmt: skip
        self.kinds = {
            kind: make_control(
                ipywidgets.Checkbox, kind, f"Draw {told}", name=f"kind-{kind.replace(' ', '-')}", indent=False,
                layout=ipywidgets.Layout(width="auto"), style={},
            )
            for kind, told in CHANGES.items()
        }  # fmt: skip
        asked = self._asked(self.choose_kinds, self._render)
        for box in self.kinds.values():
            box.observe(lambda change: None if self._quiet else asked(), "value")
        for control, what in ((self.precision, "precision"), (self.class_name, "name"), (self.conf, "conf")):
            control.observe(self._observer(what), "value")
        turn = self._asked(self.turn, self._render)
        narrow = ipywidgets.Layout(width="7rem")
        self.back = make_button("◀ Before", "The page before", lambda: turn(-1), name="before", layout=narrow)
        self.on = make_button("Next ▶", "The next page", lambda: turn(1), name="next", layout=narrow)
        self.place, self.images = ipywidgets.HTML(), ipywidgets.HTML()
        self.place.add_class("trtkit-place")
        self.images.add_class("trtkit-images")
        self._render()
        model = comparison.about["model"]
        row = ipywidgets.Layout(**WRAPPED_ROW)
        return [
            ipywidgets.HTML(f"<h3>What each precision of {model} loses and wins, the most harmful first</h3>"),
            ipywidgets.HBox([self.precision, self.class_name, self.conf], layout=row),
            ipywidgets.HBox([*self.kinds.values(), self.back, self.on, self.place], layout=row),
            self.images,
        ]

    def choose_kinds(self) -> None:
        """Draw the kinds whose boxes are ticked."""
        self.choose(kinds=tuple(kind for kind, box in self.kinds.items() if box.value))

    def figures(self) -> Sequence[go.Figure]:
        """There are none: the gallery shows images."""
        return []

    def still(self) -> Sequence[go.Figure | str]:
        """The images as they stand, for what outlives the kernel."""
        if self.state is None:
            return [render_note("The comparison was still running when this page was written.")]
        return [f"<h3>{self.state.precision.upper()} against {self.state.reference.upper()}</h3>", self.images.value]

    def _known(self) -> GalleryState:
        if self.state is None:
            raise DataError("choose in the gallery", "there is no comparison yet", "wait for it: .wait()")
        return self.state

    def _observer(self, what: str) -> Any:
        asked = self._asked(lambda value: self.choose(**{what: value}), self._render)
        return lambda change: None if self._quiet else asked(change["new"])

    def _become(self, state: GalleryState) -> None:
        self.state = state
        self._render()
        self.renew()

    def _render(self) -> None:
        state = self._known()
        counts = state.counts
        self._quiet = True
        try:
            self.precision.value, self.class_name.value, self.conf.value = state.precision, state.name, state.conf
            for kind, box in self.kinds.items():
                box.value, box.description = kind in state.kinds, f"{CHANGE_LABELS[kind]} ({counts[kind]})"
        finally:
            self._quiet = False
        self.back.disabled, self.on.disabled = state.page == 0, state.page >= state.pages - 1
        self.place.value = f"<span role='status'>page {state.page + 1} of {state.pages}</span>"
        self.images.value = render_change_cards(state)


def gallery(comparison: Comparison | str | Path | None = None, precision: str | None = None) -> Gallery:
    """Look at the objects that a precision lost and won against the reference, the most harmful first.

    Args:
        comparison: From `compare`, or the folder of a saved one. None takes what `trtkit demo` left, and compares the
            embedded model in the background where it left nothing.
        precision: Whose changes to draw; None takes the lowest one.

    Returns:
        The widget; `.choose(...)` and `.turn()` do what its controls do.

    Raises:
        DataError: The folder holds no comparison.
        RecipeError: The precision was not compared.
    """
    return Gallery(comparison, precision)

"""Look of every figure: one palette, one template, legible on light and dark pages and without color."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from trtkit.plotting.notebook import register_renderer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "BLUE",
    "GREEN",
    "INK",
    "LINE",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILION",
    "TraceStyle",
    "escape_text",
    "escape_texts",
    "hatch",
    "stacked_figure",
    "template",
    "trace_style",
]

# Palette of M. Okabe and K. Ito, "Color Universal Design", 2008, distinct for people with any common color blindness.
# Black and yellow are left out: one of them is invisible on a dark or a light page.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
# Grays of equal contrast (4.5 to 1) with white and with near-black.
INK, LINE = "#777777", "rgba(128,128,128,0.25)"


PANEL_GAP = 70
"""Height between two panels: the ticks of the upper and the title of the lower one, pixels."""

SUBTITLE_WIDTH, LINE_HEIGHT = 50, 21
"""Characters of a subtitle that a page of 420 pixels has room for, and pixels of each further line."""

_MARKUP = re.compile(r"[&<>$]|%(?=\{)")


def escape_text(text: object) -> str:
    """A name for a figure's text: plotly shows it as it is, instead of reading tags, `%{...}` and TeX in it.

    Everything that a figure shows of a model, data set or file passes here: plotly renders `<b>`, `<br>` and
    `<a href>` in titles, ticks, legends and hover text. `customdata` that comes back from a click stays as it is.

    Args:
        text: A str, or anything with a str.
    """
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", str(text))


def escape_texts(texts: Iterable[object]) -> list[str]:
    """`escape_text` of each; None, as in a column with nulls, is "".

    Args:
        texts: Such as a column of names.
    """
    return ["" if text is None else escape_text(text) for text in texts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceStyle:
    """Look of one label in every figure, distinct without color.

    Attributes:
        color: Hex color.
        symbol: Plotly marker symbol.
        pattern: Plotly fill pattern.
        dash: Plotly line dash.
    """

    color: str
    symbol: str
    pattern: str
    dash: str


_PRECISIONS = {
    "fp32": TraceStyle(color=BLUE, symbol="circle", pattern="", dash="solid"),
    "fp16": TraceStyle(color=ORANGE, symbol="square", pattern="/", dash="dash"),
    "int8": TraceStyle(color=GREEN, symbol="diamond", pattern="x", dash="dot"),
}
_OTHERS = (
    TraceStyle(color=VERMILION, symbol="triangle-up", pattern="\\", dash="dashdot"),
    TraceStyle(color=PURPLE, symbol="cross", pattern="+", dash="longdash"),
    TraceStyle(color=SKY, symbol="star", pattern=".", dash="longdashdot"),
)


def trace_style(label: str, labels: Sequence[str] = ()) -> TraceStyle:
    """The style of a label.

    Args:
        label: A precision has a fixed style; any other label takes one by its position in `labels`.
        labels: All labels of the figure.
    """
    if label in _PRECISIONS:
        return _PRECISIONS[label]
    others = [name for name in labels if name not in _PRECISIONS]
    return _OTHERS[(others.index(label) if label in others else 0) % len(_OTHERS)]


def template() -> go.layout.Template:
    """Plotly's empty template with a transparent background and grays legible on light and dark pages."""
    # Every figure takes this template before a notebook shows it.
    register_renderer()
    axis = {"gridcolor": LINE, "linecolor": LINE, "zerolinecolor": LINE, "ticks": "", "automargin": True}
    return go.layout.Template(
        layout={
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": INK, "family": "system-ui, sans-serif", "size": 13},
            "colorway": [BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY],
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"orientation": "h", "yanchor": "top", "y": -0.14, "xanchor": "left", "x": 0},
            "margin": {"l": 60, "r": 20, "t": 60, "b": 60},
            "hoverlabel": {"font": {"family": "system-ui, sans-serif"}},
        }
    )


def stacked_figure(panels: Sequence[tuple[str, str, int]], *, title: str = "") -> go.Figure:
    """A figure of panels below each other, with its legend below them.

    Panels beside each other overlap on narrow pages: what draws a notebook's figures scales them but moves nothing.

    Args:
        panels: Title, subtitle (such as the unit of the x axis, which needs no title then) and height in pixels.
        title: Title of the figure.
    """
    heights = [height for _, _, height in panels]
    subtitles = [textwrap.wrap(subtitle, SUBTITLE_WIDTH) or [""] for _, subtitle, _ in panels]
    gap = PANEL_GAP + LINE_HEIGHT * (max(map(len, subtitles)) - 1)
    total = sum(heights) + gap * (len(heights) - 1)
    figure = make_subplots(
        rows=len(heights),
        cols=1,
        row_heights=heights,
        vertical_spacing=gap / total if len(heights) > 1 else 0,
        subplot_titles=[
            f"<b>{escape_text(name)}</b><br><span style='font-size:0.75em'>{subtitle}</span>"
            for (name, _, _), subtitle in zip(panels, map("<br>".join, map(escape_texts, subtitles)), strict=True)
        ],
    )
    figure.update_annotations(x=0, xanchor="left", align="left")
    top = gap + (40 if title else 0)
    figure.update_layout(
        template=template(), height=total + top + 100, margin={"t": top, "b": 100, "l": 70}, legend={"y": -35 / total}
    )
    return figure.update_layout(title={"text": escape_text(title), "x": 0, "font": {"size": 14}}) if title else figure


def hatch(shape: str, *, size: int = 7, opacity: float = 0.7) -> dict[str, Any]:
    """Plotly's settings of a white pattern over a bar's own color.

    Args:
        shape: Plotly fill pattern, "" for none.
        size: Period of the pattern, pixels.
        opacity: Of the pattern, 0..1.
    """
    return {"shape": shape, "fillmode": "overlay", "fgcolor": "#ffffff", "fgopacity": opacity, "size": size}

"""A comparison as one HTML file that needs nothing else: no network, no notebook; light or dark."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.files import write_bytes
from trtkit.judgement.differences import RESAMPLES
from trtkit.report_changes import what_changed
from trtkit.report_tables import accuracy, costs, differences, engines, metrics, plain, table, times

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from trtkit.judgement.comparison import Comparison

__all__ = ["page", "summary", "write_report"]

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5a636e; --page: #ffffff; --card: #f5f7f9; --line: #d9dfe5;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a2abb5; --page: #14171a; --card: #1d2125;
  --line: #363c43; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
p.lead, p.note { color: var(--soft); margin: 0 0 1rem; }
p.note { font-size: .9rem; }
ul.verdict { background: var(--card); border-left: 4px solid var(--accent); margin: 1.5rem 0;
  padding: .9rem 1.2rem .9rem 2.2rem; }
ul.verdict li { margin: .2rem 0; }
.wide { overflow-x: auto; } .wide + .wide { margin-top: 1.4rem; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding: 0 0 .4rem; }
th, td { padding: .38rem .75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: normal; min-width: 5rem;
  max-width: 9.5rem; }
th.text, td.text { text-align: left; }
td.long { white-space: normal; overflow-wrap: anywhere; text-align: left; }
thead th { border-bottom: 2px solid var(--line); }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { background: var(--card); padding: .9rem 1.1rem; overflow-x: auto; font: .88rem/1.5 ui-monospace, monospace; }
code { font-family: ui-monospace, monospace; font-size: .92em; }
.figure { margin: .5rem 0 0; min-height: 20rem; }
.js-plotly-plot .main-svg text, .js-plotly-plot .infolayer text { fill: var(--ink) !important; }
.js-plotly-plot .hoverlayer text { fill: #ffffff !important; }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem; margin: .6rem 0 1rem; }
.gallery figure { margin: 0; max-width: 100%; } .gallery img { max-width: 100%; display: block; }
.gallery figcaption { color: var(--soft); font-size: .85rem; max-width: 30rem; }
@media print { body { font-size: 12px; } details { display: none; } }
"""


def write_report(comparison: Comparison, path: str | Path) -> Path:
    """Write the report.

    Args:
        comparison: What to show.
        path: The HTML file; replaced where it exists.

    Returns:
        The file.

    Raises:
        OutputError: The file can't be written.
    """
    return write_bytes(path, page(comparison).encode())


def page(comparison: Comparison) -> str:
    """The report as HTML text; plotly.js is in it, once."""
    from plotly.offline import get_plotlyjs

    about, origin = comparison.about, comparison.origin
    precisions = [name.upper() for name in comparison.rows["precision"].unique(maintain_order=True)]
    title = f"{about['model']}: {', '.join(precisions)}"
    figures = [("comparison", comparison.plot()), ("timing", comparison.timing().plot())]
    if len(comparison.classes):
        figures.append(("classes", comparison.plot_classes()))
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="lead">{_text(_lead(comparison))}</p>',
        '<ul class="verdict">' + "".join(f"<li>{_text(said)}</li>" for said in comparison.verdict()) + "</ul>",
        '<div class="figure" id="comparison"></div>',
        "<h2>The numbers</h2>",
        table(*accuracy(comparison)),
        table(*costs(comparison)),
        _folded("Every metric", table(*metrics(comparison))),
        *_differences(comparison),
        "<h2>How long a batch takes</h2>",
        f'<p class="note">{_text(_clock(comparison))}</p>',
        '<div class="figure" id="timing"></div>',
        _folded("Every time", table(*times(comparison))),
    ]
    if len(comparison.classes):
        parts += [
            "<h2>Class by class</h2>",
            '<p class="note">The class that loses most is on top.</p>',
            '<div class="figure" id="classes"></div>',
            _folded("As a table", table(*plain(comparison.classes))),
        ]
    parts += what_changed(comparison)
    if about["engines"]:
        parts += ["<h2>The engines</h2>", table(*engines(about["engines"]))]
    parts += [
        "<h2>Do it again</h2>",
        f"<pre><code>{_text(about['python'])}</code></pre>",
        f"<pre><code>{_text(about['command'])}</code></pre>",
        "<h2>Where the numbers come from</h2>",
        _pairs(_flat(origin.to_dict())),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{_text(title)}</title>\n<style>{STYLE}</style>\n'
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n"
        + "\n".join(_script(name, figure) for name, figure in figures)
        + "\n</body>\n</html>\n"
    )


def summary(comparison: Comparison) -> str:
    """The verdict and the numbers that decide as a piece of HTML, for a notebook's cell: light or dark."""
    said = "".join(f"<li>{_text(sentence)}</li>" for sentence in comparison.verdict())
    # The page's own ink and lines: a notebook's theme, light or dark, decides them.
    return (
        f"<p>{_text(_lead(comparison))}</p><ul>{said}</ul>" + table(*accuracy(comparison)) + table(*costs(comparison))
    )


def _lead(comparison: Comparison) -> str:
    about = comparison.about
    size = "x".join(str(side) for side in about["imgsz"])
    return (
        f"{about['task']} at {size}, judged on {about['pictures']} pictures of {about['split']} "
        f"({Path(about['data']).name}) by {comparison.origin.runner}, {comparison.origin.created[:10]}"
    )


def _clock(comparison: Comparison) -> str:
    rows = comparison.rows
    clock = "on the GPU alone" if (rows["clock"] == "gpu").all() else "around the whole call, copies included"
    names = ", ".join(rows["runner"].unique(maintain_order=True))
    whose = "TensorRT's" if rows["engine"].all() else "not TensorRT's"
    return f"{names}; measured {clock}; {whose}. A curve further left is faster, a steeper one steadier."


def _differences(comparison: Comparison) -> list[str]:
    """Every change with its interval, or nothing where none were computed."""
    if not len(comparison.differences):
        return []
    note = (
        f"Intervals by a paired bootstrap over the pictures ({RESAMPLES:,} resamples, seed {comparison.origin.seed}); "
        "a change is measurable where its interval leaves out 0."
    )
    shown = f'<p class="note">{note}</p>' + table(*differences(comparison))
    return [_folded("Every change with its interval", shown)]


def _pairs(values: Mapping[str, str]) -> str:
    lines = "".join(
        f'<tr><th class="text">{_text(name)}</th><td class="long">{_text(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<div class="wide"><table><tbody>{lines}</tbody></table></div>'


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one, names joined by spaces, values as short text."""
    flat: dict[str, str] = {}
    for name, inner in value.items():
        whole = f"{prefix}{name}".replace("_", " ")
        if isinstance(inner, Mapping):
            flat |= _flat(inner, whole + " ")
        elif inner is not None and inner != [] and inner != "":
            flat[whole] = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
    return flat


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{body}</details>"


def _script(name: str, figure: go.Figure) -> str:
    # "</" would end the script early if a class name held it.
    data = re.sub("</", r"<\\/", figure.to_json())
    options = json.dumps({"responsive": True, "displaylogo": False, "displayModeBar": False})
    drawn = f"Plotly.newPlot({json.dumps(name)}, figure.data, figure.layout, {options})"
    return f"<script>(() => {{ const figure = {data}; {drawn}; }})()</script>"


def _text(value: Any) -> str:
    return html.escape(str(value))

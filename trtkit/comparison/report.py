"""A comparison as one HTML file that needs nothing else: no network, no notebook; light or dark."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.comparison.verdict import NEGLIGIBLE_DELTA
from trtkit.evaluation.significance import RESAMPLES
from trtkit.files import write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import plotly.graph_objects as go
    import polars as pl

    from trtkit.comparison.comparison import Comparison

__all__ = [
    "Rows",
    "accuracy",
    "costs",
    "differences",
    "engines",
    "metrics",
    "page",
    "plain",
    "render_summary",
    "table",
    "times",
    "what_changed",
    "write_report",
]


# The report's part about what changed: objects won and lost, and the worst of them as images.


SHOWN = 8
"""Images a precision: the report stays one file that opens at once."""


def what_changed(comparison: Comparison) -> list[str]:
    """HTML for every precision but the reference; nothing where the detections were not kept."""
    reference = comparison.about["reference"]
    others = [name for name in comparison.rows["precision"].unique(maintain_order=True) if name != reference]
    if not others or "path" not in comparison.images.columns:
        return []
    first = reference.upper()
    note = (
        f"Objects that {first} finds at confidence 0.25 and others do not, and the other way round; the worst first. "
        f"On the left {first}, on the right the other: what changed in thick lines, what else was found in thin ones, "
        "labels in white."
    )
    if comparison.about["task"] == "classify":
        note = (
            f"Images whose likeliest class is right with {first} and wrong with others, and the other way round; the "
            f"worst first. On the left {first}, on the right the other, with their three likeliest classes; below, the "
            "class that is right and its score."
        )
    parts = ["<h2>What changed</h2>", f'<p class="note">{_text(note)}</p>']
    for precision in others:
        told = comparison.changes(precision)
        counts = dict(told.group_by("change").len().iter_rows())
        parts.append(f"<h3>{_text(precision.upper())}: {_counted(counts)}</h3>")
        drawn = [_figure(row) for row in comparison.gallery(precision, limit=SHOWN).iter_rows(named=True) if row["png"]]
        if drawn:
            parts.append(f'<div class="gallery">{"".join(drawn)}</div>')
    return parts


def _counted(counts: Mapping[str, int]) -> str:
    """ "8 lost, 4 won, 26 new errors, 1 error gone"; a classifier makes no errors of place."""
    lost, won, new, gone = (counts.get(name, 0) for name in ("lost", "gained", "new error", "error gone"))
    told = f"{lost} lost, {won} won"
    if new or gone:
        told += f", {new} new error{'' if new == 1 else 's'}, {gone} error{'' if gone == 1 else 's'} gone"
    return told


def _figure(row: Mapping[str, Any]) -> str:
    scores = ["none" if row[name] is None else f"{row[name]:.2f}" for name in ("score_reference", "score")]
    beneath = ""
    if row["label_class"] is not None:
        alike = row["label_class"] == row["name"]
        beneath = ", badly placed or twice" if alike else f" where the label is {row['label_class']}"
    told = f"{row['change']}: {row['name']}{beneath}, score {scores[0]} to {scores[1]}"
    source = f"data:image/png;base64,{base64.b64encode(row['png']).decode('ascii')}"
    return f'<figure><img alt="{_text(told)}" src="{source}"><figcaption>{_text(told)}</figcaption></figure>'


# The report's tables: accuracy, costs, times, engines and every change, as HTML.


Rows = tuple[Sequence[str], Sequence[Sequence[Any]], int]


def accuracy(comparison: Comparison) -> Rows:
    """One row an accuracy that decides: its value in each precision, and its change with the 95 % interval."""
    once = comparison.rows.unique("precision", keep="first", maintain_order=True)
    reference = comparison.about["reference"]
    heads, lines = ["accuracy"], [[name] for _, name in comparison.about["metrics"]]
    for row in once.iter_rows(named=True):
        changed = row["precision"] != reference
        heads += [row["precision"].upper(), *(["change [95 % interval]"] if changed else [])]
        for line, (column, _) in zip(lines, comparison.about["metrics"], strict=True):
            line += [f"{row[column]:.4f}", *([_changed(row, column)] if changed else [])]
    return heads, lines, 1


def costs(comparison: Comparison) -> Rows:
    """One row a precision and batch: time, throughput, file sizes and the time to build."""
    several = comparison.rows["batch"].n_unique() > 1
    heads = ["precision", *(["batch"] if several else []), "p50 ms an image", "p99 ms an image", "images/s"]
    heads += ["ONNX MB", "engine MB", "build s"]
    lines = []
    for row in comparison.rows.iter_rows(named=True):
        line: list[Any] = [row["precision"].upper(), *([row["batch"]] if several else [])]
        line += [_number(row[name] and row[name] / row["batch"], 2) for name in ("p50_ms", "p99_ms")]
        line += [_number(row["images_per_s"], 1), _number(row["onnx_mb"], 1)]
        line += [_number(row["engine_mb"], 1), _number(row["build_s"], 1)]
        lines.append(line)
    return heads, lines, 1


def metrics(comparison: Comparison) -> Rows:
    """Every metric in each precision."""
    once = comparison.rows.unique("precision", keep="first", maintain_order=True)
    names = comparison.about["all_metrics"]
    lines = [[name, *(_number(value, 4) for value in once[name])] for name in names]
    return ["metric", *(label.upper() for label in once["precision"])], lines, 1


def differences(comparison: Comparison) -> Rows:
    """Every change with its interval, of all, by class and by size."""
    lines = [
        [
            row["precision"].upper(), row["metric"], {"all": "all"}.get(row["scope"], row["name"]),
            _number(row["reference"], 4), _number(row["value"], 4), _change(row["delta"]),
            None if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}",
            "yes" if row["significant"] else "no",
        ]
        for row in comparison.differences.iter_rows(named=True)
    ]  # fmt: skip
    return ["precision", "metric", "of", "before", "after", "change", "95 % interval", "significant"], lines, 3


def times(comparison: Comparison) -> Rows:
    """Every figure of `Timing.frame()`."""
    frame = comparison.timing().frame()
    kept = ["label", "runner", "clock", "imgsz", "batch", "runs"]
    numbers = ["mean_ms", "std_ms", "min_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms", "image_ms", "images_per_s"]
    lines = [
        [*(row[name] for name in kept), *(_number(row[name], 2) for name in numbers)]
        for row in frame.iter_rows(named=True)
    ]
    return [*kept, *(name.replace("_ms", " ms").replace("_per_s", "/s") for name in numbers)], lines, 4


def plain(frame: pl.DataFrame) -> Rows:
    """A frame as it is."""
    lines = [[_number(value, 4) if isinstance(value, float) else value for value in row] for row in frame.iter_rows()]
    return frame.columns, lines, 1


def engines(shown: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Facts of the engines by precision."""
    names = list(dict.fromkeys(name for facts in shown.values() for name in facts))
    lines = [[name.replace("_", " "), *(_short(facts.get(name)) for facts in shown.values())] for name in names]
    return ["", *(label.upper() for label in shown)], lines, 1 + len(shown)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "" if value is None else text if len(text) <= 60 else text[:57] + "..."


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:,.{digits}f}"


def _changed(row: Mapping[str, Any], column: str) -> str:
    """A change and, where it is known, its 95 % interval."""
    told = _change(row[f"delta {column}"])
    low, high = row.get(f"delta {column} low"), row.get(f"delta {column} high")
    return told if low is None or high is None or low == high == 0 else f"{told} [{low:+.4f}, {high:+.4f}]"


def _change(value: float) -> str:
    return "0" if abs(value) < NEGLIGIBLE_DELTA else f"{value:+.4f}"


def table(heads: Sequence[str], lines: Sequence[Sequence[Any]], texts: int) -> str:
    """A table whose first `texts` columns are words."""

    def cell(tag: str, place: int, value: Any) -> str:
        kind = ' class="text"' if place < texts else ""
        return f"<{tag}{kind}>{'–' if value is None else _text(value)}</{tag}>"

    head = "".join(cell("th", place, name) for place, name in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(cell("td", place, value) for place, value in enumerate(line)) + "</tr>" for line in lines
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


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

    about, provenance = comparison.about, comparison.provenance
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
        _pairs(_flat(provenance.to_dict())),
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


def render_summary(comparison: Comparison) -> str:
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
        f"{about['task']} at {size}, judged on {about['eval_images']} images of {about['split']} "
        f"({Path(about['data']).name}) by {comparison.provenance.runner}, {comparison.provenance.created[:10]}"
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
        f"Intervals by a paired bootstrap over the images ({RESAMPLES:,} resamples, seed {comparison.provenance.seed}); "
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

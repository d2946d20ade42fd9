"""Names that would run a script, end one, or format a figure's text, in every place that shows a name."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import polars as pl
from example_comparison import PYCOCOTOOLS, ULTRALYTICS, example_comparison
from layer_rows import FP16_LAYERS, INT8_LAYERS

import trtkit as tk
from trtkit.comparison.report import render_report
from trtkit.html import facts_html, table_html
from trtkit.inspection import read_layers
from trtkit.plotting import calibration, comparison, engine, evaluation, tuning
from trtkit.plotting.notebook import mime_bundle
from trtkit.tasks.base import ImageGrid

NAMES = (
    '<img src=x onerror="window.hacked=1">',
    "</script><script>window.hacked=1</script>",
    "<!--<script>",
    '"\' onmouseover="window.hacked=1" x=\'',
    '<a href="javascript:window.hacked=1">link</a>',
    "<b>bold</b>%{x}$a$&lt;<extra>",
    "<svg onload=window.hacked=1>",
    "a\u2028b\u2029c",
    "{{ 7 * 7 }}{% raw %}",
    "<br>plain",
)
"""Ten, as many as the classes of `example_comparison`."""


def hostile_comparison():
    """`example_comparison` whose model, data, classes and metrics of a stranger are hostile."""
    whole = example_comparison(model=NAMES[0], data=f"x/{NAMES[4]}", command=NAMES[1], python=NAMES[2])
    renamed = {str(index): name for index, name in enumerate(NAMES)}
    classes = whole.classes.with_columns(pl.col("name").replace(renamed), instances=pl.lit(5))
    differences = pl.DataFrame(
        [
            {"precision": "int8", "metric": metric, "scope": scope, "class": None, "name": name, "reference": 0.5,
             "value": 0.45, "delta": -0.05, "low": -0.07, "high": -0.02, "significant": True}
            for metric in (ULTRALYTICS, PYCOCOTOOLS)
            for scope, name in (("all", ""), *(("class", name) for name in NAMES))
        ],
        schema_overrides={"class": pl.Int64},
    )  # fmt: skip
    runners = whole.runners.with_columns(runner=pl.lit(NAMES[6]))
    rows = whole.rows.with_columns(runner=pl.lit(NAMES[6]))
    # A stranger's file may name a precision anything.
    label = {"int8": NAMES[0]}
    rename = [pl.col("precision").replace(label)]
    return replace(
        whole,
        classes=classes.with_columns(rename),
        differences=differences.with_columns(rename),
        rows=rows.with_columns(rename),
        runners=runners.with_columns(pl.col("label").replace(label)),
        samples=whole.samples.with_columns(pl.col("label").replace(label)),
        about={**whole.about, "engines": {NAMES[0]: {"tensorrt": NAMES[1], "sm": NAMES[4]}}},
    )


def hostile_figures():
    """Every figure of `trtkit.plotting`, by name."""
    names = list(NAMES)
    whole, count = hostile_comparison(), len(names)
    numbers = [0.1 * (index + 1) for index in range(count)]
    settings = {"reference": "fp32", "focus": NAMES[0]}
    layers = pl.DataFrame({"node": names, "block": names, "macs": [1] * count, "sqnr_only": numbers, "gain": numbers,
                           "kept_fp16": [index % 2 == 0 for index in range(count)]})  # fmt: skip
    trials = pl.DataFrame({"assignment": names, "algorithm": names, "int8_share": numbers, "metric": numbers,
                           "loss": numbers, "loss_low": numbers, "loss_high": numbers, "cost": numbers,
                           "unit": ["ms"] * count, "pareto": [True] * count, "chosen": [True] * count})  # fmt: skip
    points = pl.DataFrame({"label": names, "kind": ["searched"] * count, "row": range(count), "metric": numbers,
                           "int8_share": [0.0, *numbers[1:]], "loss": numbers, "loss_low": numbers,
                           "loss_high": numbers, "pareto": [True] * count})  # fmt: skip
    sweep = pl.DataFrame({"algorithm": names, "percentile": [None] * count, "calibration_images": [8] * count,
                          "loss": numbers, "loss_low": numbers, "loss_high": numbers},
                         schema_overrides={"percentile": pl.Float64})  # fmt: skip
    int8 = pl.DataFrame({"label": names, "metric": names, "value": numbers, "value_float": numbers, "loss": numbers,
                         "loss_low": numbers, "loss_high": numbers})  # fmt: skip
    ranges = pl.DataFrame({"tensor": names, "low": [-1.0] * count, "high": [1.0] * count, "reach": numbers,
                           "largest": [1.0] * count, "covered": numbers, "clipped": numbers})  # fmt: skip
    bins = pl.DataFrame({"middle": [0.5, 1.5], "width": [1.0, 1.0], "count": [3, 4]})
    sets = pl.DataFrame({"set": names, "brightness": numbers, "contrast": numbers, "aspect": numbers})
    kinds = {"kind": pl.Series(names[:3]), "name": pl.Series(names[3:6]), "type": pl.Series(names[:3]),
             "onnx_nodes": pl.Series([names[:2]] * 3), "index": pl.Series(range(3))}  # fmt: skip
    shares = pl.DataFrame({"engine": names, "precision": names, "layers": [1] * count, "ms": numbers})
    pairs = pl.DataFrame({"node": names, "block": names, "precision": names, "other_precision": names, "ms": numbers,
                          "other_ms": numbers[::-1], "delta_ms": numbers})  # fmt: skip
    losses = pl.DataFrame({"task": names, "metric": names, "precision": names, "value": numbers, "delta": numbers,
                           "low": numbers, "high": numbers})  # fmt: skip
    per_class = pl.DataFrame({"name": names, "mAP50-95(B)": numbers, "mAP50(B)": numbers, "top1": numbers,
                              "top5": numbers})  # fmt: skip
    load = pl.DataFrame({"batch": [1, 1], "concurrency": [1, 2], "images_per_s": [5.0, 9.0], "p50_ms": [200.0, 210.0],
                         "p99_ms": [220.0, 260.0]})  # fmt: skip
    published = pl.DataFrame({"precision": names, "batch": 1, "p50_ms": numbers, "p99_ms": numbers})
    nothing = pl.DataFrame({"class": []}, schema={"class": pl.Int64})
    looks = {name: index for index, name in enumerate(names)}
    timed = pl.DataFrame(FP16_LAYERS).with_columns(**kinds)
    return {
        "comparison": whole.plot(),
        "accuracy": comparison.accuracy_figure(whole.differences, [ULTRALYTICS], **settings, name=NAMES[4]),
        "classes change": comparison.classes_change_figure(whole.differences, ULTRALYTICS, **settings),
        "classes": whole.plot_classes(),
        "latency": comparison.latency_figure(whole.samples, whole.runners, 1, focus=NAMES[0]),
        "unmeasured latency": comparison.unmeasured_latency_figure(
            names, unmeasured=NAMES[0], published=published, source=NAMES[4]
        ),
        "size": comparison.size_figure(whole.rows, focus=NAMES[0]),
        "losses": comparison.losses_figure(losses),
        "timing": whole.timing().plot(),
        "evaluation": evaluation.evaluation_figure(per_class, nothing, nothing, kinds=["B"], title=NAMES[0]),
        "load": evaluation.load_figure(load, title=NAMES[2]),
        "classification": evaluation.classification_figure(per_class, title=NAMES[1]),
        "overview": calibration.overview_figure(ranges, np.zeros((2, count)), selected=NAMES[0], algorithm=NAMES[4]),
        "histogram": calibration.histogram_figure(
            bins, 1.0, largest=2.0, algorithm=NAMES[0], others=dict.fromkeys(names, 1.0), looks=looks
        ),
        "ranges": calibration.ranges_figure(ranges, title=NAMES[5]),
        "tensor": calibration.tensor_figure(
            bins, dict.fromkeys(names, 1.0), tensor=NAMES[4], largest=2.0, looks=looks
        ),
        "diagnosis": calibration.diagnosis_figure(sets),
        "sweep": tuning.sweep_figure(
            sweep, sufficient=sweep.row(0, named=True), metric=NAMES[0], title=NAMES[4], looks=looks
        ),
        "sensitivity": tuning.sensitivity_figure(layers),
        "search": tuning.search_figure(trials, metric=NAMES[0], value_float=0.5, max_drop=0.1),
        "int8 evaluation": tuning.int8_evaluation_figure(int8),
        "layer ranking": tuning.layer_ranking_figure(layers, selected=NAMES[0]),
        "int8 share": tuning.int8_share_figure(
            points, metric=NAMES[4], value_float=0.5, max_drop=0.1, share_now=0.5
        ),
        "layers": engine.layers_figure(timed, timed=True, selected=0),
        "shares": engine.shares_figure(shares, timed=True),
        "engine diff": engine.engine_diff_figure(pairs, (NAMES[0], NAMES[4])),
        "engine strips": engine.engine_diff_figure(
            pairs.with_columns(delta_ms=pl.lit(None, pl.Float64)), (NAMES[0], NAMES[4])
        ),
        "verification": engine.verification_figure(
            pl.DataFrame({"path": NAMES, "output": NAMES}).with_columns(batch=1, difference=0.1, limit=0.2)
        ),
    }  # fmt: skip


def hostile_pages():
    """HTML of every place outside the figures that shows a name, by name; `library` is needed by none of them."""
    whole = hostile_comparison()
    layers = FP16_LAYERS.with_columns(pl.Series("name", NAMES[:3]), pl.lit(NAMES[4]).alias("tactic"))
    engines = [
        replace(read_layers(layers, name=NAMES[0]), facts={NAMES[1]: NAMES[4]}),
        read_layers(INT8_LAYERS, name="b"),
    ]
    image = np.zeros((4, 4, 3), np.uint8)
    return {
        "report": render_report(whole),
        "dashboard": tk.dashboard(whole).static_html(),
        "summary": whole._repr_html_(),
        "timing": whole.timing()._repr_html_(),
        "table": table_html(pl.DataFrame({NAMES[0]: NAMES}), caption=NAMES[1], headings={}, row_classes={0: NAMES[3]}),
        "facts": facts_html(dict(zip(NAMES, NAMES, strict=True)), caption=NAMES[1]),
        "images": ImageGrid(images=(image,) * len(NAMES), captions=NAMES)._repr_html_(),
        "explorer": tk.explorer(*engines).static_html(),
        "figure": mime_bundle({"data": [], "layout": {"title": {"text": NAMES[1]}}}, library=False)["text/html"],
    }


class Parts(HTMLParser):
    """What a page is made of: its elements with attributes, scripts and text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts += [value for _, value in attributes if value]

    def handle_data(self, data):
        self.texts.append(data)


def shown_texts(figure):
    """All texts that plotly renders in a figure: `customdata` is among them where a hover template shows it."""

    def walk(value, name=""):
        if isinstance(value, dict):
            hovered = "customdata" in str(value.get("hovertemplate", ""))
            for key, inner in value.items():
                if key != "legendgroup" and (key != "customdata" or hovered):
                    yield from walk(inner, key)
        elif isinstance(value, (list, tuple, np.ndarray)):
            for inner in value:
                yield from walk(inner, name)
        elif isinstance(value, str):
            yield value

    data = figure.to_dict()
    return list(walk({"data": data["data"], "layout": {**data["layout"], "template": {}}}))


def plain(text):
    """What plotly shows of a text: without our own tags, entities decoded, as one line."""
    return html.unescape(re.sub(r"</?(b|br|span|extra)\b[^<>]*>", " ", text))

"""The report: one file without network access that shows the comparison."""

import html.parser
import re

import pytest
from example_comparison import ACCURACY, example_comparison

from trtkit.comparison.report import render_report, render_summary, write_report


class Outline(html.parser.HTMLParser):
    """Tags, links, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words, self.stack = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "link"):
            self.stack.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.stack):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def whole():
    return render_report(example_comparison(batches=(1, 8)))


def test_every_tag_is_closed_and_no_link_leaves_the_file(whole):
    outline = Outline(whole)
    assert outline.stack == []
    assert [link for link in outline.links if not link.startswith("data:")] == []
    assert "@import" not in whole


def test_it_contains_plotly_once(whole):
    assert len(re.findall(r"<script [^>]*data-trtkit-library>", whole)) == 1
    # Two figures: no engine was timed.
    assert whole.count("drawFigure(") - whole.count("function drawFigure(") == 2
    timed = render_report(example_comparison(where="gpu"))
    assert timed.count("drawFigure(") - timed.count("function drawFigure(") == 3


def test_it_is_small(whole):
    # plotly.js makes up most of it; images of changed objects come on top.
    assert len(whole) < 1_200_000


def test_it_contains_verdict_numbers_code_and_provenance(whole):
    text = Outline(whole).text
    comparison = example_comparison(batches=(1, 8))
    for sentence in comparison.findings():
        assert sentence in text
    for ultralytics, coco in ACCURACY.values():
        assert f"{ultralytics:.4f}" in text
        assert f"{coco:.4f}" in text
    assert comparison.about["python"] in text
    assert comparison.about["command"] in text
    assert comparison.provenance.model_hash in text
    assert "not TensorRT's" in text


def test_it_has_a_light_and_a_dark_theme(whole):
    assert "prefers-color-scheme: dark" in whole
    assert "color-scheme: light dark" in whole


def test_names_are_escaped():
    comparison = example_comparison(model="</script><img src=x onerror=alert(1)>")
    page = render_report(comparison)
    assert "img" not in Outline(page).tags
    assert "</script><img" not in page


def test_a_report_without_engines():
    comparison = example_comparison(built=False)
    text = Outline(render_report(comparison)).text
    assert "Engines" not in text
    assert "No TensorRT engine was built" in text


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_the_stages_of_predict_are_below_the_latency(where):
    text = Outline(render_report(example_comparison(where=where))).text
    below = text.partition("Stages of predict")[2]
    # Copies exist on a GPU only; FP32 takes 34 ms on this processor, 1 ms on this GPU.
    copies = ["upload", "download"] if where == "gpu" else []
    order = ["decode", "preprocess", "upload", "engine", "download", "postprocess", "predict"]
    wanted = [stage for stage in order if stage in copies or stage not in ("upload", "download")]
    assert re.search(r"label\s+batch\s+" + r"\s+".join(wanted), below)
    assert ("which does not predict TensorRT's latency" in below) == (where == "cpu")
    assert re.search(r"FP32\s+1\s+[\d.]+ \[[\d.]+, [\d.]+\]", below)


def test_writing_replaces_the_file(tmp_path):
    path = tmp_path / "deep" / "report.html"
    write_report(example_comparison(), path)
    assert write_report(example_comparison(), path) == path
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_summary_has_the_verdict_and_the_primary_numbers():
    comparison = example_comparison()
    shown = Outline(render_summary(comparison))
    assert comparison._repr_html_() == render_summary(comparison)
    advice = [line for verdict in comparison.verdicts.values() for line in verdict.advice]
    assert shown.tags.count("li") == len(comparison.findings()) + len(comparison.verdicts) + len(advice)
    for verdict in comparison.verdicts.values():
        assert verdict.sentence in shown.text
    for sentence in comparison.findings():
        assert sentence in shown.text
    for value, _ in ACCURACY.values():
        assert f"{value:.4f}" in shown.text
    assert not {"script", "style", "html"} & set(shown.tags)

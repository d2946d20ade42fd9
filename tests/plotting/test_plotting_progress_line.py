"""ProgressLine: displayed once, then updated in place."""

import IPython.display
import pytest

from trtkit.plotting import notebook
from trtkit.progress import Event


class Handle:
    def __init__(self, shown):
        self.shown = shown

    def update(self, bundle, raw):
        assert raw
        self.shown.append(bundle)


@pytest.fixture
def shown(monkeypatch):
    bundles = []

    def display(bundle, *, raw, display_id):
        assert raw
        assert display_id
        bundles.append(bundle)
        return Handle(bundles)

    monkeypatch.setattr(IPython.display, "display", display)
    return bundles


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(notebook.time, "perf_counter", lambda: now[0])
    return now


def texts(shown):
    return [bundle["text/plain"] for bundle in shown]


def test_stage_count_and_seconds(shown, clock):
    line = notebook.ProgressLine()
    assert line.text == ""
    line(Event(stage="calibrate", done=0, total=64))
    clock[0] += 12
    line(Event(stage="calibrate", done=8, total=64))
    assert line.text == texts(shown)[-1] == "calibrate · 8 of 64 · 12 s"


def test_quick_events_are_skipped_except_new_stages_and_ends(shown, clock):
    line = notebook.ProgressLine()
    for done in range(5):
        clock[0] += 0.01
        line(Event(stage="evaluate", done=done, total=4))
    line(Event(stage="build", done=0))
    assert list(dict.fromkeys(texts(shown))) == ["evaluate · 0 of 4 · 0 s", "evaluate · 4 of 4 · 0 s", "build · 0 s"]


def test_the_text_is_escaped(shown, clock):
    notebook.ProgressLine()(Event(stage="<b>", done=1))
    assert "&lt;b&gt;" in shown[0]["text/html"]
    assert "<b>" not in shown[0]["text/html"]


def test_without_a_notebook_nothing_breaks(monkeypatch, clock):
    monkeypatch.setattr(IPython.display, "display", lambda *bundle, **settings: None)
    line = notebook.ProgressLine()
    line(Event(stage="a", done=0, total=2))
    line(Event(stage="a", done=2, total=2))
    assert line.text == "a · 2 of 2 · 0 s"

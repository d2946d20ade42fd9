"""Errors as one sentence, controls and notes, and the view of a job."""

from __future__ import annotations

import threading
import time
from html.parser import HTMLParser
from typing import Any

import pytest

from trtkit.errors import DataError
from trtkit.progress import Reporter
from trtkit.progress_line import SHORTEST_STEP
from trtkit.widgets.ui import controls
from trtkit.widgets.ui.controls import (
    ErrorBox,
    catch_errors,
    format_error,
    make_button,
    make_control,
    render_error,
    render_note,
)
from trtkit.widgets.ui.jobs import JobView


class Outside(HTMLParser):
    """Collects the text outside and inside of `<details>`."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.folded = 0
        self.seen, self.hidden, self.open = "", "", False
        self.feed(str(markup))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "details":
            self.folded += 1
            self.open = self.open or "open" in dict(attrs)

    def handle_endtag(self, tag: str) -> None:
        self.folded -= tag == "details"

    def handle_data(self, data: str) -> None:
        if self.folded:
            self.hidden += data
        else:
            self.seen += data


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001
        return caught


def test_a_trtkit_error_is_its_own_sentence() -> None:
    error = DataError("read data set x.yaml", "there is no such file", "give its path")
    assert format_error(error) == "Read data set x.yaml: there is no such file; give its path."


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("first line\nsecond line"), "ValueError: first line"),
        (RuntimeError(), "RuntimeError: no message"),
        (KeyboardInterrupt(), "KeyboardInterrupt: no message"),
    ],
)
def test_another_error_is_its_type_and_first_line(error: BaseException, words: str) -> None:
    assert format_error(error) == words


def test_the_traceback_is_folded_and_escaped() -> None:
    shown = Outside(render_error(raised(ValueError("<b>5 & 6</b>"))))
    assert " ".join(shown.seen.replace("✕", "").split()) == "Error. ValueError: <b>5 & 6</b>"
    assert "Traceback (most recent call last)" in shown.hidden
    assert "in raised" in shown.hidden
    assert not shown.open


def test_a_callback_s_error_is_shown_and_cleared_by_the_next_call() -> None:
    box = ErrorBox()
    errors: list[BaseException] = [ValueError("wrong"), KeyboardInterrupt()]

    @catch_errors(box.show)
    def callback() -> None:
        if errors:
            raise errors.pop(0)

    callback()
    assert "ValueError: wrong" in box.value
    assert box.layout.display == ""
    callback()
    assert "KeyboardInterrupt" in box.value
    callback()
    assert (box.value, box.layout.display) == ("", "none")


def test_a_control_has_a_label_a_tooltip_and_a_name() -> None:
    import ipywidgets

    control = make_control(ipywidgets.Text, "Model", "Its path", name="model-path", value="x")
    assert (control.description, control.tooltip, control.value) == ("Model", "Its path", "x")
    assert "trtkit-model-path" in control._dom_classes
    pressed = []
    button = make_button("Go", "Begin", lambda: pressed.append(1), name="go")
    button.click()
    assert (button.description, button.tooltip, pressed) == ("Go", "Begin", [1])


@pytest.mark.parametrize("kind", list(controls.ICONS))
def test_a_note_has_an_icon_besides_its_color(kind: str) -> None:
    markup = render_note("a < b", kind=kind, detail="more")
    assert f">{controls.ICONS[kind]}</span>" in markup
    assert "a &lt; b" in markup
    assert len(set(controls.ICONS.values())) == len(controls.ICONS)


class Stopped:
    """A call that reports a step, waits, and returns or raises."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, *, progress: Any, cancel: Any) -> str:
        reporter = Reporter(progress, cancel)
        reporter.step("count <up>", 1, 4, "a line & more")
        self.reached.set()
        assert self.go.wait(60)
        reporter.step("count <up>", 4, 4)
        if self.error is not None:
            raise self.error
        return "answer"


def test_a_job_shows_stage_bar_log_and_cancel_while_it_runs() -> None:
    view = JobView("counting")
    assert view.layout.display == "none"
    call = Stopped()
    view.start(call)
    assert call.reached.wait(60)
    assert view.layout.display == view.bar.layout.display == view.cancel.layout.display == ""
    assert view.stage.value == "count &lt;up&gt; · 1 of 4"
    assert (view.bar.value, view.bar.max) == (1, 4)
    assert "a line &amp; more" in view.messages.value
    assert "<details" not in view.messages.value
    assert not view.cancel.disabled
    call.go.set()
    view.job.wait()
    assert view.stage.value.startswith("✓ Done in")
    assert view.bar.layout.display == view.cancel.layout.display == "none"
    assert "<details" in view.messages.value


def test_finished_steps_stand_above_the_running_one() -> None:
    view = JobView("counting")
    assert view.finished.layout.display == "none"
    reached, go = threading.Event(), threading.Event()

    def call(*, progress: Any, cancel: Any) -> None:
        reporter = Reporter(progress, cancel)
        reporter.step("count <up>", 0, None)
        time.sleep(1.1 * SHORTEST_STEP)
        reporter.step("write", 0, None)
        reached.set()
        assert go.wait(60)

    view.start(call)
    assert reached.wait(60)
    assert view.finished.layout.display == ""
    assert view.finished.value.startswith("count &lt;up&gt;: 0.")
    go.set()
    view.job.wait()
    assert view.finished.layout.display == "none"


def test_cancel_shows_that_the_job_stops_and_that_it_has() -> None:
    ended: list[str] = []
    view = JobView("counting", lambda job: ended.append(job.state))
    call = Stopped()
    view.start(call)
    assert call.reached.wait(60)
    view.cancel.click()
    assert view.cancel.disabled
    assert view.stage.value.startswith("Stopping")
    call.go.set()
    view.job.wait()
    assert view.stage.value.startswith("Cancelled after")
    assert ended == ["cancelled"]


def test_a_failed_job_shows_its_error_and_a_new_run_clears_it() -> None:
    view = JobView("counting")
    call = Stopped(DataError("read x", "it is empty", "fill it"))
    view.start(call)
    call.go.set()
    view.job.wait()
    assert view.stage.value.startswith("✕ Failed")
    assert "Read x: it is empty; fill it." in view.error_box.value
    call = Stopped()
    view.start(call)
    assert view.error_box.value == ""
    call.go.set()
    view.job.wait()


def test_a_log_with_a_warning_stays_open() -> None:
    import warnings

    def warn(*, progress: Any, cancel: Any) -> None:
        warnings.warn("careful", stacklevel=1)

    view = JobView("warning")
    view.start(warn)
    view.job.wait()
    assert "note: careful" in view.messages.value
    assert "<details" not in view.messages.value

"""The line of progress: its words, its time left, where it is shown, and verbs that show it by themselves."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import IPython.display
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from trtkit import progress_line
from trtkit.cli.output import ProgressBars
from trtkit.progress import CancelToken, Cost, Event, Plan, Progress, Reporter, start_work
from trtkit.progress_line import ProgressLine, ProgressText, escape_controls, format_clock, format_time_left, verb


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


# Words


def test_stage_count_step_and_time_left(clock: list[float]) -> None:
    plan = Plan(verb="a", steps=("calibrate", "evaluate int8", "evaluate fp16"))
    plan = Plan(verb="a", steps=plan.steps, costs={name: Cost(kind="run", images=400) for name in plan.steps[1:]})
    text, at = ProgressText(), 0
    assert text.describe() == "starting"
    for step, stage, done, total in (
        (0, "load", 0, 1),
        (1, "calibrate", 0, None),
        (2, "evaluate int8", 0, 400),
        (2, "evaluate int8", 100, 400),
    ):
        clock[0] += at
        text.add(Event(stage=stage, done=done, total=total, plan=plan if step else None, step=step))
        at = 10
    # 300 images of this step and 400 of the next one, 10 per second.
    assert text.describe() == "evaluate int8 · 100 of 400 · step 2 of 3, about 1 min left"
    assert text.estimate_time_left() == 70
    clock[0] += 25
    # It goes on between events.
    assert text.describe() == "evaluate int8 · 100 of 400 · step 2 of 3, about 50 s left"
    clock[0] += 100
    # It took longer than estimated: nothing is known of what is left.
    assert text.describe() == "evaluate int8 · 100 of 400 · step 2 of 3"


def test_steps_of_one_kind_are_estimated_by_each_other(clock: list[float]) -> None:
    costs = {f"evaluate {name}": Cost(kind="run", images=100) for name in "abc"}
    plan = Plan(verb="a", steps=(*costs, "write"), costs={**costs})
    text = ProgressText()
    text.add(Event(stage="evaluate a", done=0, total=100, plan=plan, step=1))
    clock[0] += 20
    text.add(Event(stage="evaluate a", done=100, total=100, plan=plan, step=1))
    text.add(Event(stage="evaluate b", done=0, plan=plan, step=2))
    assert text.estimate_time_left() == 40
    # The last one measured counts: INT8 takes another time than FP32.
    for done in (0, 50):
        text.add(Event(stage="evaluate b", done=done, total=100, plan=plan, step=2))
        clock[0] += 25
    clock[0] -= 25
    assert text.estimate_time_left() == 25 + 50
    text.add(Event(stage="write", done=0, plan=plan, step=4))
    assert text.estimate_time_left() is None


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ({}, 30),
        ({"build": Cost(kind="build")}, None),
        ({"build": Cost(kind="run", images=10)}, 40),
        ({"build": Cost(kind="other", images=10)}, None),
        ({"build": Cost(kind="other", seconds=5)}, 35),
        ({"build": Cost(kind="run", images=10, seconds=4)}, 34),
    ],
)
def test_there_is_no_time_left_while_that_of_a_step_is_unknown(
    costs: dict[str, Cost], expected: float | None, clock: list[float]
) -> None:
    plan = Plan(verb="a", steps=("run", "build"), costs={"run": Cost(kind="run", images=40), **costs})
    text = ProgressText()
    for done in (0, 10):
        text.add(Event(stage="run", done=done, total=40, plan=plan, step=1))
        clock[0] += 10
    clock[0] -= 10
    assert text.estimate_time_left() == expected


def test_too_little_is_no_measure_and_warm_up_counts_nothing(clock: list[float]) -> None:
    plan = Plan(verb="a", steps=("run", "write"))
    text = ProgressText()
    for seconds, done in ((0, 0), (50, 0), (2, 10)):
        clock[0] += seconds
        text.add(Event(stage="run", done=done, total=100, plan=plan, step=1))
        assert text.estimate_time_left() is None
    clock[0] += 2
    text.add(Event(stage="run", done=20, total=100, plan=plan, step=1))
    assert text.estimate_time_left() == 16
    # The share of a stage of another name is not known.
    text.add(Event(stage="write", done=0, plan=plan, step=2))
    clock[0] += 10
    text.add(Event(stage="part", done=50, total=100, plan=plan, step=2))
    assert text.estimate_time_left() is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.1, "less than 10 s left"),
        (11, "about 20 s left"),
        (50, "about 50 s left"),
        (51, "about 1 min left"),
        (89, "about 1 min left"),
        (91, "about 2 min left"),
        (3600, "about 60 min left"),
        (9000, "about 2 h left"),
    ],
)
def test_words_of_the_time_left(seconds: float, words: str) -> None:
    assert format_time_left(seconds) == words


def test_clock() -> None:
    assert [format_clock(seconds) for seconds in (0.9, 67, 3723)] == ["0:00", "1:07", "1:02:03"]


@settings(max_examples=50)
@given(
    st.text(min_size=1, max_size=60),
    st.integers(0, 10**6),
    st.one_of(st.none(), st.integers(0, 10**6)),
    st.integers(1, 99),
    st.floats(0, 10**6),
)
def test_a_line_fits_80_columns_whatever_is_shown(
    stage: str, done: int, total: int | None, steps: int, left: float
) -> None:
    plan = Plan(verb="a", steps=("a",) * steps)
    text = ProgressText()
    text.estimate_time_left = lambda: left  # type: ignore[method-assign]
    text.add(Event(stage=stage, done=done, total=total, plan=plan, step=steps))
    line = text.describe(72)
    assert len(line) <= 72
    assert escape_controls(line) == line
    assert (f"step {steps} of {steps}" in line) is (steps > 1)
    assert format_time_left(left) in line


# The terminal of the command line


def show_work(console: Console, seconds: float = 0.0) -> None:
    plan = Plan(verb="a", steps=("calibrate with an algorithm of a long name", "evaluate int8"))
    with ProgressBars(console) as bars:
        reporter = Reporter(bars)
        reporter.step("load", 0, 1)
        start_work(plan, reporter)
        for step in plan.steps:
            reporter.begin(step)
            for done in (0, 1, 400):
                # Parts of a step get no line of their own once it is finished.
                reporter.step("a part", done, 400)
                reporter.step(step, done, 400)
                bars.live.refresh()
                time.sleep(seconds)
        reporter.finish()


def test_at_80_columns_the_running_step_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.StringIO()
    show_work(Console(file=sink, force_terminal=True, color_system=None, width=80, height=24))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sink.getvalue()).replace("\r", "\n")
    lines = [line.rstrip() for line in shown.split("\n") if line.strip()]
    assert max(map(len, lines)) <= 80
    assert "evaluate int8 · 1 of 400 · step 2 of 2 · 0:00" in lines
    assert any(line.startswith("calibrate with an alg") and "step 1 of 2" in line for line in lines)


def test_in_a_pipe_steps_are_plain_lines() -> None:
    sink = io.StringIO()
    show_work(Console(file=sink, force_terminal=False, color_system=None, width=80), seconds=0.08)
    lines = sink.getvalue().splitlines()
    assert [line.rsplit(" ", 2)[0] for line in lines] == [
        "calibrate with an algorithm of a long name (step 1 of 2):",
        "evaluate int8 (step 2 of 2):",
    ]


# Notebook


class Handle:
    def __init__(self, shown: list[dict[str, str]]) -> None:
        self.shown = shown

    def update(self, bundle: dict[str, str], raw: bool) -> None:
        assert raw
        self.shown.append(bundle)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What a kernel displays."""
    bundles: list[dict[str, str]] = []

    def display(bundle: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        bundles.append(bundle)
        return Handle(bundles)

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(progress_line, "_in_kernel", lambda: True)
    return bundles


def texts(shown: list[dict[str, str]]) -> list[str]:
    return [bundle["text/plain"] for bundle in shown]


def test_count_and_clock(shown: list[dict[str, str]], clock: list[float]) -> None:
    line = ProgressLine()
    assert line.text == ""
    line(Event(stage="calibrate", done=0, total=64))
    clock[0] += 12
    line(Event(stage="calibrate", done=8, total=64))
    assert line.text == texts(shown)[-1] == "calibrate · 8 of 64 · 0:12"


def test_quick_events_are_skipped_except_new_stages_and_ends(shown: list[dict[str, str]], clock: list[float]) -> None:
    line = ProgressLine()
    for done in range(5):
        clock[0] += 0.01
        line(Event(stage="evaluate", done=done, total=4))
    line(Event(stage="build", done=0))
    assert texts(shown) == ["evaluate · 0 of 4 · 0:00", "evaluate · 4 of 4 · 0:00", "build · 0:00"]


def test_the_text_is_escaped(shown: list[dict[str, str]], clock: list[float]) -> None:
    ProgressLine()(Event(stage="<b>", done=1))
    assert "&lt;b&gt;" in shown[0]["text/html"]
    assert "<b>" not in shown[0]["text/html"]


def test_a_line_that_is_passed_tells_the_end(shown: list[dict[str, str]]) -> None:
    line = ProgressLine()
    work(progress=line)
    assert texts(shown)[:2] == ["load · 0:00", "first · step 1 of 2 · 0:00"]
    assert line.text == texts(shown)[-1] == "work · done in 0:00"


def test_finished_steps_are_lines_that_a_notebook_folds_at_the_end(
    shown: list[dict[str, str]], clock: list[float]
) -> None:
    def go_on() -> None:
        clock[0] += 7.4

    work(call=go_on, progress=ProgressLine())
    assert not any("<details>" in bundle["text/html"] for bundle in shown[:-1])
    assert shown[-1]["text/html"] == (
        "<div style='opacity:.7'><details><summary><span role='status'>work · done in 0:07</span></summary>"
        "second (step 2 of 2): 7.4 s</details></div>"
    )


def test_a_running_step_stands_below_the_finished_ones(shown: list[dict[str, str]], clock: list[float]) -> None:
    line = ProgressLine()
    for stage in ("<a>", "b", "c"):
        line(Event(stage=stage, done=0))
        clock[0] += 2
    assert shown[-1]["text/html"] == (
        "<div style='opacity:.7'>&lt;a&gt;: 2.0 s<br>b: 2.0 s<br><span role='status'>c · 0:04</span></div>"
    )
    # A step that took no time is not worth a line.
    line(Event(stage="d", done=0))
    line(Event(stage="e", done=0))
    assert "d: " not in shown[-1]["text/html"]


# Elsewhere


def test_without_notebook_and_terminal_each_stage_is_a_line(clock: list[float], capsys: Any) -> None:
    line = ProgressLine()
    for done in range(5):
        clock[0] += 1
        line(Event(stage="a", done=done, total=4))
    line(Event(stage="b", done=0))
    assert capsys.readouterr().err == "a · 0 of 4 · 0:00\nb · 0:04\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal_one_line_is_replaced_and_the_last_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    work(progress=ProgressLine())
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "first · step 1 of 2 · 0:00" in shown
    assert shown.rstrip().endswith("work · done in 0:00")
    assert shown.count("\n") == 1


def test_in_a_terminal_finished_steps_stand_above(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    def go_on() -> None:
        clock[0] += 7.4

    work(call=go_on, progress=ProgressLine())
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "")
    before, after = shown.splitlines()[-2:]
    assert before.endswith("second (step 2 of 2): 7.4 s")
    assert after.strip().endswith("work · done in 0:07")


def test_threads_that_report_at_once_share_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock's thread and that of the work: two live displays on one terminal are an error of rich."""
    views: list[SlowView] = []

    class SlowView:
        def __init__(self) -> None:
            views.append(self)
            time.sleep(0.02)

        def show(self, text: str, finished: Any, *, is_over: bool) -> None:
            """Nothing is shown."""

    monkeypatch.setattr("trtkit.progress_line._select_view", SlowView)
    line, gate = ProgressLine(), threading.Barrier(4)

    def report(number: int) -> None:
        gate.wait()
        line(Event(stage=f"stage {number}", done=0))

    threads = [threading.Thread(target=report, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(views) == 1


# Verbs that are called without progress


def wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.001)


@verb
def work(
    seconds: float = 0.0,
    call: Callable[[], None] | None = None,
    *,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """A verb of two steps; the second one may call another verb."""
    reporter = Reporter(progress, cancel)
    start_work(Plan(verb="work", steps=("first", "second")), reporter)
    reporter.begin("first")
    wait(seconds)
    reporter.begin("second")
    if call is not None:
        call()
    reporter.finish()


@pytest.fixture
def quick_line(shown: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """A kernel whose lines appear after 10 ms instead of 1 s."""
    monkeypatch.setattr(progress_line, "DELAY_SECONDS", 0.01)
    monkeypatch.setattr(progress_line, "TICK_SECONDS", 0.005)
    for name in ("TRTKIT_PROGRESS", "CI"):
        monkeypatch.delenv(name, raising=False)
    return shown


def test_a_bare_call_shows_itself(quick_line: list[dict[str, str]]) -> None:
    work(0.05)
    assert texts(quick_line)[0] == "first · step 1 of 2 · 0:00"
    assert texts(quick_line)[-1] == "work · done in 0:00"
    assert threading.active_count() == len([one for one in threading.enumerate() if one.name != "trtkit progress"])


def test_a_bare_call_that_says_nothing_has_a_clock(quick_line: list[dict[str, str]]) -> None:
    @verb
    def silent(*, progress: Progress | None = None) -> None:
        wait(0.05)

    silent()
    assert texts(quick_line)[0] == "load · 0:00"


def test_a_quick_call_shows_nothing(quick_line: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_line, "DELAY_SECONDS", 60)
    work(0.02)
    assert quick_line == []


def test_a_call_that_fails_says_when(quick_line: list[dict[str, str]]) -> None:
    def fail() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        work(0.03, fail)
    assert texts(quick_line)[-1] == "work · stopped after 0:00"


def test_a_call_with_progress_has_no_second_line(quick_line: list[dict[str, str]]) -> None:
    events: list[Event] = []
    # A nested verb without progress shows nothing either.
    work(0.03, lambda: work(0.03), progress=events.append)
    assert [event.stage for event in events] == ["load", "first", "second", "done"]
    assert quick_line == []


def test_a_nested_verb_shows_no_line(quick_line: list[dict[str, str]]) -> None:
    work(0.03, lambda: work(0.03))
    ends = [text for text in texts(quick_line) if "done in" in text]
    assert ends == ["work · done in 0:00"]


def test_nothing_is_shown_in_other_threads(quick_line: list[dict[str, str]]) -> None:
    thread = threading.Thread(target=work, args=(0.05,))
    thread.start()
    thread.join()
    assert quick_line == []


@pytest.mark.parametrize("name", ["TRTKIT_PROGRESS", "CI"])
def test_the_environment_turns_bare_lines_off(
    name: str, quick_line: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "0" if name == "TRTKIT_PROGRESS" else "true")
    work(0.05)
    assert quick_line == []


def test_in_a_pipe_a_bare_call_is_silent(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_line, "DELAY_SECONDS", 0.0)
    work(0.02)
    assert capsys.readouterr() == ("", "")


def test_every_verb_takes_progress_and_cancel() -> None:
    import inspect

    import trtkit as tk
    from trtkit.arguments import is_verb

    verbs = [value for name in tk.__all__ if callable(value := getattr(tk, name)) and is_verb(value)]
    assert len(verbs) >= 12
    for function in verbs:
        assert {"progress", "cancel"} <= set(inspect.signature(function).parameters), function

"""The last steps of the wizard as controls: build, accuracy and latency, engine and code. Callbacks only."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import ipywidgets

from trtkit.errors import TrtkitError
from trtkit.widgets.account import (
    accuracy_frame,
    accuracy_said,
    engine_facts,
    latency_frame,
    latency_said,
    passport_facts,
    recipe_facts,
)
from trtkit.widgets.controls import button, labelled, note_html
from trtkit.widgets.faults import sentence
from trtkit.widgets.figures import Picture
from trtkit.widgets.fold import Fold
from trtkit.widgets.job_view import JobView
from trtkit.widgets.outcome import build, data_to_judge, measure
from trtkit.widgets.session import Session
from trtkit.widgets.tables import facts_html, table_html
from trtkit.widgets.wizard_step import SHORT, WIDE, Desk, Step, said_html

if TYPE_CHECKING:
    from trtkit.widgets.outcome import Measured

__all__ = ["BuildStep", "CodePanel", "EngineStep", "ResultStep", "engine_html", "result_html"]

ACCURACY = {"metric": "Metric", "rule": "Rule", "value": "Result", "change": "Change", "interval": "95 % interval",
            "measurable": "More than chance"}  # fmt: skip
LATENCY = {"label": "Precision", "runner": "Run by", "clock": "Clock", "batch": "Batch", "runs": "Runs",
           "p50_ms": "Median, ms", "p90_ms": "90 % within, ms", "p99_ms": "99 % within, ms",
           "pictures_per_s": "Pictures a second"}  # fmt: skip


def result_html(measured: Measured, precision: str) -> tuple[str, str]:
    """Accuracy and latency, each as sentences and a table."""
    accuracy = said_html(*accuracy_said(measured, precision))
    if measured.evaluation is not None:
        digits = dict.fromkeys(("FP32", "value", "change"), 4)
        headings = {**ACCURACY, "value": precision.upper()}
        frame = accuracy_frame(measured)
        sure = frame.filter(frame["interval"].is_not_null()) if "interval" in frame.columns else frame
        accuracy += table_html(sure, headings=headings, digits=digits)
        if len(sure) < len(frame):
            rest = table_html(frame.filter(frame["interval"].is_null()), headings=headings, digits=digits)
            accuracy += f"<details><summary>Metrics without an interval</summary>{rest}</details>"
    latency = said_html(*latency_said(measured))
    latency += table_html(
        latency_frame(measured),
        headings=LATENCY,
        digits=dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "pictures_per_s"), 2),
    )
    return accuracy, latency


def engine_html(session: Session) -> str:
    """The file and its passport; a line where there is none yet."""
    if session.made is None:
        return note_html("Nothing was built yet; the code below builds it.")
    artifact = session.made.artifact
    whole = facts_html(engine_facts(artifact), caption="What was made")
    if artifact.passport is not None:
        whole += facts_html(passport_facts(artifact), caption="Passport, kept in the file itself")
    return (note_html(session.stale, kind="warning") if session.stale else "") + whole


class BuildStep(Step):
    """Build the file."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(
            desk,
            "build",
            "Build",
            "Other cells and steps work meanwhile. Cancel stops at the next step and leaves no file.",
        )
        self.facts = ipywidgets.HTML()
        self.overwrite = labelled(
            ipywidgets.Checkbox,
            "Replace the file if it is there",
            "Otherwise a file of that name is kept and nothing built",
            name="overwrite",
            layout=WIDE,
        )
        self.fills(self.overwrite, "overwrite")
        self.act = self.build = button(
            "Build",
            "Calibrate and build with the choices above",
            desk.guard(self.start),
            name="build",
            button_style="primary",
        )
        self.why = ipywidgets.HTML()
        self.view = JobView("the build", lambda job: desk.finish(job, Session.has_built))
        self.made = ipywidgets.HTML()
        self.made.add_class("trtkit-made")
        row = ipywidgets.HBox([self.build, self.why], layout=ipywidgets.Layout(align_items="center"))
        self.children = (self.heading, self.facts, self.overwrite, row, self.view, self.made)

    def show(self, session: Session) -> None:
        """Show a state."""
        why = session.blocked("build")
        rewrites = not why and session.rewrites
        self.overwrite.value = session.plan.overwrite or rewrites
        self.overwrite.disabled = rewrites
        self.build.disabled = bool(why or self.desk.busy)
        self.why.value = f"<span class='trtkit-reason'>{html.escape(why)}</span>" if why else ""
        self.facts.value = ""
        if not why and session.model is not None:
            self.facts.value = facts_html(
                recipe_facts(session.plan.recipe(), session.model), caption="What will be made"
            )
        self.made.value = ""
        if session.made is not None and not self.view.job.running:
            told = f"{session.made.artifact.path} · {session.made.artifact.size / 1e6:.1f} MB"
            self.made.value = note_html(told, kind="warning" if session.stale else "good", detail=session.stale)

    def start(self) -> None:
        """Build."""
        session = self.desk.session
        self.desk.begin(self.view, build, session.model, session.recipe())


class ResultStep(Step):
    """Measure what was built."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(
            desk,
            "result",
            "How accurate, how fast?",
            "The pictures of val judge the result and FP32 alike, and an interval says how much of the change may be "
            "chance. The engine is measured where it runs; elsewhere ONNX Runtime runs its graph, and says so.",
        )
        self.images = labelled(
            ipywidgets.IntText,
            "Pictures to judge by",
            "A seeded sample of val; 0 takes all",
            name="images",
            layout=SHORT,
        )
        self.fills(self.images, "images", lambda number: number if number > 0 else None)
        self.baseline = labelled(
            ipywidgets.Checkbox,
            "Compare with FP32",
            "Judge and time FP32 too, on the same pictures by the same runner",
            name="baseline",
            layout=WIDE,
        )
        self.fills(self.baseline, "baseline")
        self.act = self.measure = button(
            "Measure", "Judge and time what was built", desk.guard(self.start), name="measure"
        )
        self.view = JobView("the measurement", lambda job: desk.finish(job, Session.has_measured))
        self.accuracy, self.latency = ipywidgets.HTML(), ipywidgets.HTML()
        self.accuracy.add_class("trtkit-accuracy")
        self.latency.add_class("trtkit-latency")
        self.pictures = (Picture(), Picture())
        self._drawn: Measured | None = None
        self.children = (
            self.heading,
            self.images,
            self.baseline,
            self.measure,
            self.view,
            self.accuracy,
            self.pictures[0],
            self.latency,
            self.pictures[1],
        )

    def show(self, session: Session) -> None:
        """Show a state."""
        self.images.value = session.plan.images or 0
        self.baseline.value = session.plan.baseline
        self.baseline.disabled = session.made is not None and session.made.artifact.precision == "fp32"
        self.measure.disabled = bool(self.desk.busy) or session.made is None
        found = session.measured
        if found is None or session.made is None:
            self.accuracy.value = self.latency.value = ""
        else:
            accuracy, latency = result_html(found, session.made.artifact.precision)
            stale = note_html(session.stale, kind="warning") if session.stale else ""
            self.accuracy.value, self.latency.value = (
                f"{stale}<h4>Accuracy</h4>{accuracy}",
                f"<h4>Latency</h4>{latency}",
            )
        if found is not self._drawn:
            self._drawn = found
            for picture, figure in zip(self.pictures, (None, None) if found is None else found.figures, strict=True):
                picture.draw(figure)

    def start(self) -> None:
        """Measure."""
        session = self.desk.session
        assert session.model is not None
        data = data_to_judge(session.plan.data, session.model)
        plan = session.plan
        self.desk.begin(
            self.view, measure, session.model, session.made, data, images=plan.images, baseline=plan.baseline
        )


class EngineStep(Step):
    """What the user leaves with."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(
            desk,
            "engine",
            "Engine and code",
            "The file carries its passport: what it was made from, by what, and where it runs.",
        )
        self.facts = ipywidgets.HTML()
        self.facts.add_class("trtkit-engine-facts")
        self.children = (self.heading, self.facts)

    def show(self, session: Session) -> None:
        """Show a state."""
        self.facts.value = engine_html(session)


class CodePanel(Fold):
    """The Python and the command line that repeat the choices, below every step and always in step with them."""

    def __init__(self) -> None:
        self.python, self.command = ipywidgets.HTML(), ipywidgets.HTML()
        self.python.add_class("trtkit-python")
        self.command.add_class("trtkit-command")
        title = "Python and command line that repeat these choices"
        super().__init__(title, [self.python, self.command], name="code-panel")

    def show(self, session: Session) -> None:
        """Show a state."""
        try:
            python, command = session.code
        except TrtkitError as error:
            self.python.value, self.command.value = note_html(sentence(error), kind="problem"), ""
            return
        for widget, title, text in ((self.python, "Python", python), (self.command, "Command line", command)):
            code = f"<pre class='trtkit-code' tabindex='0'>{html.escape(text.rstrip())}</pre>"
            widget.value = f"<p class='trtkit-soft'>{title}</p>{code}"

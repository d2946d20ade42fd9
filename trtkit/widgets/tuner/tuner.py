"""tuner(): ranges and layers chosen by eye and by numbers, up to the keep list and the code that repeats it."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.calibration.algorithm_comparison import AlgorithmComparison
from trtkit.calibration.calibration import Calibration
from trtkit.errors import RecipeError
from trtkit.tuning.int8_evaluation import Int8Evaluation, evaluate_int8
from trtkit.tuning.search import Search
from trtkit.tuning.search_loop import search
from trtkit.tuning.sensitivity import Sensitivity, sensitivity
from trtkit.widgets.tuner.actions import TunerInputs, prepare_tuner, resolve_calibration
from trtkit.widgets.tuner.panels import AssignmentsPanel, LayersPanel, RangesPanel
from trtkit.widgets.tuner.state import TunerState
from trtkit.widgets.ui.controls import ErrorBox, catch_errors, render_note
from trtkit.widgets.ui.html import StaticOutput, style_widget
from trtkit.widgets.ui.jobs import JobView

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from trtkit.data import Dataset
    from trtkit.models import Model

__all__ = ["Tuner", "render_code", "render_heading", "tuner"]


# What the tuner says of its state: its headline, and what to take away.


def render_heading(state: TunerState, notes: Sequence[str] = ()) -> str:
    """What is tuned, and what it was measured on; HTML.

    Args:
        state: The tuner's.
        notes: What a reader should know besides.
    """
    name = html.escape(Path(state.model).name or "a calibration")
    parts = [f"<h3>Tune INT8 of {name}</h3>"]
    if state.readings is not None:
        found = state.readings.calibration
        images = f" on {found.images} images of {found.split}" if found.images else ""
        told = f"{len(found.stats) or len(found.ranges)} tensors measured{images}, {found.provenance.runner}"
        parts.append(f"<p class='trtkit-soft'>{html.escape(told)}</p>")
    else:
        parts.append("<p class='trtkit-soft'>Its tensors are measured first; nothing else is looked at twice.</p>")
    parts += [render_note(f"Note: {note}.", kind="warning") for note in notes]
    if state.found is not None and not state.found.reached:
        told = f"No mix is within a loss of {state.found.max_drop:g}; the one that was found loses least."
        parts.append(render_note(told, kind="warning"))
    return "".join(parts)


def render_code(state: TunerState) -> str:
    """The keep list, the Python and the command line of what is chosen; HTML, "" before there is a calibration."""
    tuned = state.tuned()
    if tuned is None:
        return ""
    keep = "\n".join(repr(pattern) + "," for pattern in tuned.keep) or "nothing beyond what stays high by default"
    command = tuned.to_command(f"{state.folder}/calibration")
    blocks = (
        ("keep", "The keep list", keep),
        ("python", "Python", tuned.to_python()),
        ("command", "Command line", command),
    )
    shown = "".join(
        f"<p class='trtkit-soft'>{title}</p>"
        f"<pre class='trtkit-code trtkit-{name}' tabindex='0' aria-label='{title}'>{html.escape(text)}</pre>"
        for name, title, text in blocks
    )
    return f"<h4>Take it with you</h4>{shown}"


class Tuner(StaticOutput):
    """The tuner; everything that a click does is a method too.

    Attributes:
        state: What is known and chosen; `state.tuned()` is what comes out.
        work: The job that runs beside the kernel's main thread, with its bar and its Cancel button.
        ranges: The part with algorithm, percentile and histograms.
        layers: The part with layers by cost.
        mixes: The part with judged mixes.
    """

    def __init__(
        self,
        state: TunerState,
        model: Model | str | Path | None,
        data: str | Path | Dataset | None,
        settings: dict[str, Any],
        *,
        click: bool | None = None,
    ) -> None:
        super().__init__()
        self.state = state
        self._model, self._data, self._settings = model, data, settings
        self._then = self._nothing
        self.fault = ErrorBox()
        shown = self._asked
        self.work = JobView("tuning", self._ended)
        self.ranges = RangesPanel(shown(self.use), shown(self.show_tensor), self.fault, click=click)
        self.layers = LayersPanel(
            shown(self.toggle), shown(self.keep), shown(self._measure_as_asked), self.fault, click=click
        )
        self.mixes = AssignmentsPanel(
            shown(self.take), shown(self.allow), shown(self.find), shown(self.judge), self.fault, click=click
        )
        self.head, self.code = ipywidgets.HTML(), ipywidgets.HTML()
        self.head.add_class("trtkit-tuner-head")
        self.code.add_class("trtkit-tuner-code")
        self.children = (
            style_widget(), self.hidden, self.head, self.work, self.fault, self.ranges, self.layers, self.mixes, self.code,
        )  # fmt: skip
        self.add_class("trtkit")
        self.add_class("trtkit-tuner")
        self._notes: tuple[str, ...] = ()
        self._render()

    # ---- what can be chosen

    def use(self, algorithm: str, percentile: float | None = None) -> None:
        """Read the ranges by another algorithm, without another pass."""
        self._become(self.state.using(algorithm, percentile))

    def show_tensor(self, name: str) -> None:
        """Show another tensor, or what a layer reads."""
        self._become(self.state.showing(name))

    def toggle(self, node: str) -> None:
        """Keep a layer high, or let it run in INT8 again; its input's histogram is shown."""
        self._become(self.state.toggled(node).showing(node) if self.state.layout else self.state.toggled(node))

    def keep(self, nodes: Iterable[str]) -> None:
        """Keep exactly these layers high."""
        self._become(self.state.keeping(nodes))

    def allow(self, max_drop: float) -> None:
        """Choose the loss that may be spent."""
        self._become(self.state.with_max_drop(max_drop))

    def take(self, place: int | None = None) -> None:
        """Take over a mix that the search judged: a row of its trials, or what it chose."""
        self._become(self.state.taking(place))

    # ---- what takes long

    def measure(self, images: int = 16) -> None:
        """Measure what INT8 costs each layer, in the background."""
        self._refuse("sensitivity")
        self._start(
            sensitivity, self._ranked, self._model, self._data, images=images, calibration=self.state.calibration,
            imgsz=self._imgsz(), seed=self._settings["seed"],
        )  # fmt: skip

    def find(self, max_drop: float | None = None, **settings: Any) -> None:
        """Search for the cheapest mix within the loss, in the background.

        Args:
            max_drop: The loss; None takes the one that was chosen.
            **settings: Further arguments of `trtkit.search`.
        """
        if max_drop is not None:
            self.allow(max_drop)
        self._refuse("search")
        assert self.state.readings is not None
        self._start(
            search, self._searched, self._model, self._data, self.state.max_drop,
            calibration=self.state.readings.calibration, imgsz=self._imgsz(), seed=self._settings["seed"],
            state=f"{self.state.folder}/state", **settings,
        )  # fmt: skip

    def judge(self) -> None:
        """Judge the mix that is chosen now against FP32, in the background."""
        self._refuse("judge")
        tuned = self.state.tuned()
        assert tuned is not None
        label = self.state.label + (f", {len(self.state.high)} kept high" if self.state.high else "")
        self._start(
            evaluate_int8, self._judged, self._model, self._data, self.state.calibration, tuned.keep, label=label,
            seed=self._settings["seed"], cache_dir=f"{self.state.folder}/state",
        )  # fmt: skip

    def cancel(self) -> None:
        """Stop what runs, at its next step."""
        self.work.job.cancel()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until what runs has ended; an interrupt cancels it first. See `Job.wait`."""
        return self.work.job.wait(timeout)

    # ---- what comes out

    @property
    def keep_list(self) -> tuple[str, ...]:
        """The `keep=` patterns, to paste."""
        tuned = self.state.tuned()
        return () if tuned is None else tuned.keep

    def to_python(self) -> str:
        """Python code that exports what is chosen; "" before there is a calibration."""
        tuned = self.state.tuned()
        return "" if tuned is None else tuned.to_python()

    def to_command(self) -> str:
        """The command lines that do the same; "" before there is a calibration."""
        tuned = self.state.tuned()
        return "" if tuned is None else tuned.to_command(f"{self.state.folder}/calibration")

    def figures(self) -> Sequence[go.Figure]:
        """The figures as they stand, in the order shown."""
        lives = (self.ranges.overview, self.ranges.histogram, self.layers.ranking, self.mixes.pareto)
        return [live.figure for live in lives if live.figure is not None]

    def still(self) -> Sequence[go.Figure | str]:
        """Figures and tables as they stand, for what outlives the kernel."""
        parts = [self.head.value, *self.figures()[:2], self.ranges.facts.value, *self.figures()[2:3]]
        return [*parts, self.layers.table.value, *self.figures()[3:], self.mixes.table.value, self.code.value]

    # ---- the machinery behind

    def _prepare(self) -> None:
        self._start(prepare_tuner, self._prepared, self._model, self._data, self.state.readings, **self._settings)

    def _prepared(self, found: TunerInputs) -> None:
        self._model = found.model
        state = self.state if self.state.readings is found.readings else self.state.measured(found.readings)
        state = state.with_layers(found.quantizable_layers)
        if state.sensitivity is None and found.sensitivity is not None:
            state = state.ranked(found.sensitivity)
        if state.found is None and found.search is not None:
            state = state.searched(found.search)
        self._notes = found.notes
        self.work.layout.display = "none"
        self._become(state)

    def _ranked(self, found: Sensitivity) -> None:
        found.save(f"{self.state.folder}/sensitivity")
        self._become(self.state.ranked(found))

    def _searched(self, found: Search) -> None:
        found.save(f"{self.state.folder}/search")
        self._become(self.state.searched(found))

    def _judged(self, found: Int8Evaluation) -> None:
        self._become(self.state.with_evaluation(found))

    def _measure_as_asked(self) -> None:
        self.measure(self.layers.image_count.value)

    def _imgsz(self) -> Any:
        assert self.state.readings is not None
        size = self.state.readings.calibration.provenance.settings.get("imgsz")
        return tuple(size) if isinstance(size, list) else size

    def _refuse(self, what: str) -> None:
        reason = self.state.refusal(what)
        if reason:
            raise RecipeError(f"do {what} in the tuner", reason, "give what is missing, or wait for it")

    def _start(self, call: Any, then: Any, *arguments: Any, **settings: Any) -> None:
        if self.work.job.running:
            raise RecipeError("start another job in the tuner", "one runs already", "wait for it, or cancel it")
        self.fault.show(None)
        self._then = then
        self.work.start(call, *arguments, **settings)
        self._busy()

    def _ended(self, job: Any) -> None:
        if job.state == "done":
            catch_errors(self.fault.show)(self._then)(job.result)
        self._render()

    def _nothing(self, result: Any) -> None:
        """What follows before anything was started."""

    def _become(self, state: TunerState) -> None:
        self.state = state
        self._render()

    def _render(self) -> None:
        for part in (self.ranges, self.layers, self.mixes):
            part.render(self.state)
        self._busy()
        self.head.value = render_heading(self.state, self._notes)
        self.code.value = render_code(self.state)
        self.renew()

    def _busy(self) -> None:
        """While a job runs no other can be started; ranges and layers stay free to choose."""
        if self.work.job.running:
            for made in (self.layers.measure, self.mixes.find, self.mixes.judge):
                made.disabled, made.tooltip = True, f"{self.work.job.name} runs; wait for it, or cancel it"

    def _asked(self, call: Callable[..., Any]) -> Callable[..., None]:
        """What a control calls: an error is shown, and the control falls back to what holds."""
        shown = catch_errors(self.fault.show)(call)

        def asked(*arguments: Any) -> None:
            shown(*arguments)
            if self.fault.value:
                self._render()

        return asked


def tuner(
    model: Model | str | Path | None = None,
    data: str | Path | None = None,
    calibration: Calibration | str | Path | None = None,
    *,
    sensitivity: Sensitivity | str | Path | None = None,
    search: Search | str | Path | None = None,
    calibration_images: int = 128,
    imgsz: int | tuple[int, int] | None = None,
    seed: int = 0,
    folder: str | Path = "runs/tuner",
    click: bool | None = None,
) -> Tuner:
    """Choose INT8's ranges and layers in a notebook: histograms, what INT8 costs each layer, and the search.

    Shows at once what it is given; the rest is measured in the background, and `folder` remembers it for the next time.

    Args:
        model: From `load`, or what `load` takes. None takes the embedded one, or none where a calibration is given.
        data: A data set's YAML file, with labels. None takes the embedded images for the embedded model.
        calibration: With histograms, or the folder of a saved one; None calibrates.
        sensitivity: An earlier result, or the folder of a saved one; None takes what `folder` holds.
        search: The same of a search.
        calibration_images: The largest number of images to calibrate on.
        imgsz: Height and width, pixels; None takes the model's.
        seed: Of samples.
        folder: Where calibration, sensitivity, search and finished steps are kept.
        click: Whether points can be clicked, in place; None does so where anywidget is installed.

    Returns:
        The widget. Its methods do what its controls do: `.use()`, `.toggle()`, `.keep()`, `.measure()`, `.find()`,
        `.judge()`, `.cancel()`, `.wait()`; `.to_python()`, `.to_command()` and `.keep_list` are what comes out.

    Raises:
        DataError: A folder holds no such result.
    """
    from trtkit import demo

    found, saved = resolve_calibration(calibration)
    if model is None and found is None:
        model, data = demo.model_path(), data if data is not None else demo.data_path()
    # A model from memory has no file; its name stands for one in the code to paste.
    file = getattr(model, "source", model) or getattr(model, "stem", "")
    state = TunerState(model=str(file), data=str(getattr(data, "path", data) or ""), folder=str(folder))
    if found is not None:
        state = state.measured(AlgorithmComparison(found), saved=saved)
    if sensitivity is not None:
        state = state.ranked(sensitivity if isinstance(sensitivity, Sensitivity) else Sensitivity.load(sensitivity))
    if search is not None:
        state = state.searched(search if isinstance(search, Search) else Search.load(search))
    settings = {"images": calibration_images, "imgsz": imgsz, "seed": seed, "folder": folder}
    made = Tuner(state, model, data, settings, click=click)
    if model is not None:
        made._prepare()
    return made

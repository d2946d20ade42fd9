"""tuner(): choose ranges and layers by histograms, sensitivity and search; shows the code of the export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ipywidgets

from trtkit.calibration.algorithm_comparison import AlgorithmComparison
from trtkit.calibration.algorithms import DEFAULTS
from trtkit.calibration.calibration import Calibration
from trtkit.codegen import needs_end2end
from trtkit.data.dataset import describe_images
from trtkit.errors import RecipeError, TrtkitError
from trtkit.html import render
from trtkit.models.model import Model
from trtkit.progress import CancelToken, Plan, Progress, Reporter
from trtkit.results import Result
from trtkit.tuning.int8_evaluation import Int8Evaluation, evaluate_int8
from trtkit.tuning.layers import QuantizableLayers, find_quantizable_layers
from trtkit.tuning.search import Search
from trtkit.tuning.search_loop import search
from trtkit.tuning.sensitivity import Sensitivity, sensitivity
from trtkit.widgets.tuner.panels import PROBE_IMAGES, AssignmentsPanel, LayersPanel, RangesPanel
from trtkit.widgets.tuner.state import TunerState
from trtkit.widgets.ui.controls import catch_errors, render_note
from trtkit.widgets.ui.output import JobWidget
from trtkit.widgets.ui.thumbnails import Thumbnails

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from trtkit.data import Dataset

__all__ = [
    "Tuner",
    "TunerInputs",
    "load_earlier_result",
    "prepare_tuner",
    "render_code",
    "render_heading",
    "resolve_calibration",
    "tuner",
]

R = TypeVar("R", bound=Result)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TunerInputs:
    """The inputs of the tuner.

    Attributes:
        model: The model.
        algorithm_comparison: Its calibration with the ranges of every algorithm.
        quantizable_layers: Its layers.
        sensitivity: An earlier sensitivity of this model, or None.
        search: An earlier search of this model, or None.
        notes: Notes for the user, such as why an earlier result was ignored.
    """

    model: Model
    algorithm_comparison: AlgorithmComparison
    quantizable_layers: QuantizableLayers
    sensitivity: Sensitivity | None
    search: Search | None
    notes: tuple[str, ...] = ()


def resolve_calibration(calibration: Calibration | str | Path | None) -> tuple[Calibration | None, str]:
    """Load a calibration if a folder was given.

    Args:
        calibration: A calibration, the folder of a saved one, or None.

    Returns:
        The calibration and its folder, "" for one that was passed as an object.

    Raises:
        DataError: The folder holds no calibration.
    """
    if calibration is None or isinstance(calibration, Calibration):
        return calibration, ""
    return Calibration.load(calibration), str(calibration)


def prepare_tuner(
    model: Model | str | Path,
    data: str | Path | Dataset | None,
    algorithm_comparison: AlgorithmComparison | None,
    *,
    calibration_images: int,
    imgsz: int | tuple[int, int] | None,
    seed: int,
    cache_dir: str | Path,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> TunerInputs:
    """Load the model, calibrate it unless a calibration is given, and read its layers.

    Args:
        model: From `load`, or what `load` accepts.
        data: The YAML file of a data set; None uses the task's embedded example set with a warning.
        algorithm_comparison: A calibration, or None.
        calibration_images: Maximum number of calibration images.
        imgsz: Height and width, pixels; None uses the model's.
        seed: Seed of the sample.
        cache_dir: Folder of calibrations, layers and earlier results.
        progress: Receives events.
        cancel: Checked at every step.

    Raises:
        CalibrationError: The calibration is of another model.
        ModelError, DataError: Model or data can't be read.
        CancelledError: The caller cancelled.
    """
    from trtkit.calibration import calibrate, check_fits
    from trtkit.models import load

    reporter, cache_dir = Reporter(progress, cancel), Path(cache_dir)
    calibrates = ["calibrate"] if algorithm_comparison is None else []
    steps = ("load the model", *calibrates, "read the model's layers", "compute ranges of all algorithms")
    reporter.start(Plan(verb="tuner", steps=steps))
    reporter.begin("load the model")
    loaded = load(model)
    if algorithm_comparison is None:
        reporter.begin("calibrate")
        calibration = calibrate(
            loaded, data, calibration_images=calibration_images, imgsz=imgsz, seed=seed, histograms=True,
            cache_dir=cache_dir / "calibrations", progress=reporter.progress, cancel=cancel,
        )  # fmt: skip
        algorithm_comparison = AlgorithmComparison(calibration)
    provenance = algorithm_comparison.calibration.provenance
    check_fits(algorithm_comparison.calibration, loaded)
    size = imgsz if imgsz is not None else provenance.settings.get("imgsz")
    reporter.begin("read the model's layers")
    quantizable_layers = find_quantizable_layers(
        loaded,
        tuple(size) if isinstance(size, list) else size,
        cache_dir=cache_dir / "state",
        progress=reporter.progress,
        cancel=cancel,
    )
    notes: list[str] = []
    sensitivity = load_earlier_result(Sensitivity, cache_dir / "sensitivity", loaded.hash, notes)
    search = load_earlier_result(Search, cache_dir / "search", loaded.hash, notes)
    reporter.begin("compute ranges of all algorithms")
    algorithm_comparison.compute_all(progress=reporter.progress, cancel=cancel)
    reporter.finish()
    return TunerInputs(
        model=loaded,
        algorithm_comparison=algorithm_comparison,
        quantizable_layers=quantizable_layers,
        sensitivity=sensitivity,
        search=search,
        notes=tuple(notes),
    )


def load_earlier_result(kind: type[R], folder: Path, model_hash: str, notes: list[str]) -> R | None:
    """Load the saved result of an earlier run.

    Args:
        kind: `Sensitivity` or `Search`.
        folder: Folder of the result.
        model_hash: Hash that the result has to be of.
        notes: Receives the reason if the result can't be used.

    Returns:
        None if there is no result of this model.
    """
    if not (folder / f"{kind.kind}.json").is_file():
        return None
    try:
        result = kind.load(folder)
    except (OSError, ValueError, KeyError, TypeError, TrtkitError) as error:
        notes.append(f"the result in {folder} can't be read ({error}) and was ignored")
        return None
    if result.provenance.model_hash != model_hash:
        notes.append(f"the result in {folder} is of another model and was ignored")
        return None
    return result


def render_heading(state: TunerState, notes: Sequence[str] = ()) -> str:
    """Model, calibration and notes; HTML.

    Args:
        state: State of the tuner.
        notes: Further notes for the user.
    """
    status = "The calibration runs first."
    if state.algorithm_comparison is not None:
        calibration = state.algorithm_comparison.calibration
        count = calibration.image_count
        images = f" on {describe_images(count, calibration.split)}" if count else ""
        count = len(calibration.stats) or len(calibration.ranges)
        status = f"{count} tensors calibrated{images}, {calibration.provenance.runner}"
    name = Path(state.model).name or "a calibration"
    parts: list[str] = [render("widgets/tuner/templates/heading.html.j2", name=name, status=status)]
    parts += [render_note(f"Note: {note}.", kind="warning") for note in notes]
    if state.search is not None and not state.search.reached:
        text = f"No precision assignment is within a loss of {state.search.max_drop:g}; the chosen one loses least."
        parts.append(render_note(text, kind="warning"))
    return "".join(parts)


def render_code(state: TunerState) -> str:
    """The keep list, the Python code and the command line of the current choices; HTML, "" before the calibration."""
    export = state.tuned_export()
    if export is None:
        return ""
    keep = "\n".join(f"{pattern!r}," for pattern in export.keep) or "no layers beyond those excluded by default"
    blocks = [
        {"name": "keep", "title": "Layers kept in FP16", "text": keep},
        {"name": "python", "title": "Python", "text": export.to_python()},
        {"name": "command", "title": "Command line", "text": export.to_command(f"{state.cache_dir}/calibration")},
    ]
    return render("widgets/tuner/templates/code.html.j2", blocks=blocks)


class Tuner(JobWidget):
    """The tuner widget; every control has a method that does the same.

    Args:
        state: The initial state.
        model: The model, or what `load` accepts; None if only a calibration was given.
        data: The data set, or None.
        settings: Keyword arguments of `prepare_tuner`.
        clickable: Whether points can be clicked; None enables it if anywidget is installed.

    Attributes:
        state: The current state; `state.tuned_export()` is the export of its choices.
        ranges: The panel of algorithm, percentile and histograms.
        layers: The panel of layers by sensitivity.
        assignments: The panel of evaluated precision assignments.
    """

    def __init__(
        self,
        state: TunerState,
        model: Model | str | Path | None,
        data: str | Path | Dataset | None,
        settings: dict[str, Any],
        *,
        clickable: bool | None = None,
    ) -> None:
        super().__init__("tuner", "tuning")
        self.state = state
        self._model, self._data, self._settings = model, data, settings
        self._on_result: Callable[[Any], None] | None = None
        self._notes: tuple[str, ...] = ()
        guard, error_box = self._guard, self.error_box
        self.ranges = RangesPanel(guard(self.choose_algorithm), guard(self.show_tensor), error_box, clickable=clickable)
        self.layers = LayersPanel(
            guard(self.toggle), guard(self.keep), guard(self._measure_with_controls), error_box, clickable=clickable
        )
        self.assignments = AssignmentsPanel(
            guard(self.apply_trial), guard(self.set_max_drop), guard(self.search), guard(self.evaluate), error_box,
            clickable=clickable,
        )  # fmt: skip
        self.heading, self.code = ipywidgets.HTML(), ipywidgets.HTML()
        self.heading.add_class("trtkit-tuner-heading")
        self.thumbnails = Thumbnails()
        self.code.add_class("trtkit-tuner-code")
        self._set_content(
            self.ranges, self.layers, self.assignments, self.code, heading=(self.heading, self.thumbnails)
        )
        self._render()

    # Choices.

    def choose_algorithm(self, algorithm: str, percentile: float | None = None) -> None:
        """Compute the ranges with another algorithm, from the same calibration pass.

        Raises:
            CalibrationError: There is no calibration yet, no such algorithm, or it is not available.
        """
        self._set_state(self.state.with_algorithm(algorithm, percentile))

    def show_tensor(self, name: str) -> None:
        """Show the histogram of a tensor, or of the input of a layer."""
        self._set_state(self.state.with_tensor(name))

    def toggle(self, node: str) -> None:
        """Move a layer to FP16, or back to INT8, and show the histogram of its input."""
        state = self.state.with_toggled(node)
        self._set_state(state.with_tensor(node) if state.quantizable_layers else state)

    def keep(self, nodes: Iterable[str]) -> None:
        """Keep exactly these layers in FP16."""
        self._set_state(self.state.with_kept(nodes))

    def set_max_drop(self, max_drop: float) -> None:
        """Set the largest allowed loss of the metric."""
        self._set_state(self.state.with_max_drop(max_drop))

    def apply_trial(self, row: int | None = None) -> None:
        """Apply a precision assignment of the search: a row of its trials, or None for the chosen one."""
        self._set_state(self.state.with_trial(row))

    # Background jobs.

    def measure_sensitivity(self, probe_images: int = PROBE_IMAGES) -> None:
        """Measure the sensitivity of each layer, in the background.

        Args:
            probe_images: Number of images.
        """
        self._require("sensitivity")
        self._start(
            sensitivity, self._on_sensitivity, self._model, self._data, probe_images=probe_images,
            calibration=self.state.calibration, imgsz=self._imgsz(), seed=self._settings["seed"],
        )  # fmt: skip

    def search(self, max_drop: float | None = None, **settings: Any) -> None:
        """Search for the cheapest precision assignment within the allowed loss, in the background.

        Args:
            max_drop: The allowed loss; None uses the current one.
            **settings: Further arguments of `trtkit.search`.
        """
        if max_drop is not None:
            self.set_max_drop(max_drop)
        self._require("search")
        assert self.state.algorithm_comparison is not None
        self._start(
            search, self._on_search, self._model, self._data, self.state.max_drop,
            calibration=self.state.algorithm_comparison.calibration, imgsz=self._imgsz(),
            seed=self._settings["seed"], cache_dir=f"{self.state.cache_dir}/state", **settings,
        )  # fmt: skip

    def evaluate(self) -> None:
        """Evaluate the current precision assignment against FP32, in the background; as `trtkit.evaluate_int8`."""
        self._require("evaluate")
        export = self.state.tuned_export()
        assert export is not None
        kept = len(self.state.kept_fp16)
        self._start(
            evaluate_int8, self._on_evaluation, self._model, self._data, self.state.calibration, export.keep,
            label=self.state.label + (f", {kept} kept in FP16" if kept else ""), seed=self._settings["seed"],
            cache_dir=f"{self.state.cache_dir}/state",
        )  # fmt: skip

    # Results.

    @property
    def keep_list(self) -> tuple[str, ...]:
        """The `keep=` patterns of the current choices."""
        export = self.state.tuned_export()
        return () if export is None else export.keep

    def to_python(self) -> str:
        """Python code that exports the current choices; "" before the calibration."""
        export = self.state.tuned_export()
        return "" if export is None else export.to_python()

    def to_command(self) -> str:
        """Command lines that export the current choices; "" before the calibration."""
        export = self.state.tuned_export()
        return "" if export is None else export.to_command(f"{self.state.cache_dir}/calibration")

    def figures(self) -> Sequence[go.Figure]:
        """The current figures, in their order on the page."""
        places = (self.ranges.overview, self.ranges.histogram, self.layers.ranking, self.assignments.pareto)
        return [place.figure for place in places if place.figure is not None]

    def static_parts(self) -> Sequence[go.Figure | str]:
        """The current figures and tables, for the saved notebook."""
        figures = self.figures()
        return [
            self.heading.value, *figures[:2], self.ranges.facts.value, *figures[2:3], self.layers.table.value,
            *figures[3:], self.assignments.table.value, self.code.value,
        ]  # fmt: skip

    # Internals.

    def prepare(self) -> None:
        """Load, calibrate and read the layers in the background; `tuner` calls it."""
        comparison = self.state.algorithm_comparison
        self._start(prepare_tuner, self._on_inputs, self._model, self._data, comparison, **self._settings)

    def _on_inputs(self, inputs: TunerInputs) -> None:
        self._model = inputs.model
        state = self.state
        if state.algorithm_comparison is not inputs.algorithm_comparison:
            state = state.with_calibration(inputs.algorithm_comparison)
        state = state.with_layers(inputs.quantizable_layers)
        if state.sensitivity is None and inputs.sensitivity is not None:
            state = state.with_sensitivity(inputs.sensitivity)
        if state.search is None and inputs.search is not None:
            state = state.with_search(inputs.search)
        self._notes = inputs.notes
        self.job_view.layout.display = "none"
        self._set_state(state)

    def _on_sensitivity(self, result: Sensitivity) -> None:
        result.save(f"{self.state.cache_dir}/sensitivity")
        self._set_state(self.state.with_sensitivity(result))

    def _on_search(self, result: Search) -> None:
        result.save(f"{self.state.cache_dir}/search")
        self._set_state(self.state.with_search(result))

    def _on_evaluation(self, result: Int8Evaluation) -> None:
        self._set_state(self.state.with_evaluation(result))

    def _measure_with_controls(self) -> None:
        self.measure_sensitivity(self.layers.probe_images.value)

    def _imgsz(self) -> Any:
        assert self.state.algorithm_comparison is not None
        size = self.state.algorithm_comparison.calibration.provenance.settings.get("imgsz")
        return tuple(size) if isinstance(size, list) else size

    def _require(self, action: str) -> None:
        reason = self.state.unavailable_reason(action)
        if reason:
            raise RecipeError(
                f"start {action!r} in the tuner",
                reason,
                "pass what is missing, or wait for it",
                code="tuner-action-unavailable",
                name=action,
            )

    def _start(
        self, call: Callable[..., Any], on_result: Callable[[Any], None], *arguments: Any, **settings: Any
    ) -> None:
        if self.job_view.job.running:
            raise RecipeError(
                "start another job in the tuner", "a job is running", "wait for it, or cancel it", code="tuner-busy"
            )
        self.error_box.show(None)
        self._on_result = on_result
        self.job_view.start(call, *arguments, **settings)
        self._disable_while_running()

    def _on_job_end(self, job: Any) -> None:
        if job.state == "done" and self._on_result is not None:
            catch_errors(self.error_box.show)(self._on_result)(job.result)
        self._render()

    def _set_state(self, state: TunerState) -> None:
        self.state = state
        self._render()

    def _restore_controls(self) -> None:
        self._render()

    def _render(self) -> None:
        for panel in (self.ranges, self.layers, self.assignments):
            panel.render(self.state)
        self._disable_while_running()
        self.heading.value = render_heading(self.state, self._notes)
        self.thumbnails.show(self.state.data)
        self.code.value = render_code(self.state)
        self.refresh_static()

    def _disable_while_running(self) -> None:
        """Allow one job at a time; ranges and layers can be chosen meanwhile."""
        if self.job_view.job.running:
            for button in (self.layers.measure, self.assignments.search, self.assignments.evaluate):
                button.disabled, button.tooltip = True, f"{self.job_view.job.name} runs; wait for it, or cancel it"


def tuner(
    model: Model | str | Path | None = None,
    data: str | Path | Dataset | None = None,
    calibration: Calibration | str | Path | None = None,
    *,
    sensitivity: Sensitivity | str | Path | None = None,
    search: Search | str | Path | None = None,
    calibration_images: int = DEFAULTS.calibration_images,
    imgsz: int | tuple[int, int] | None = None,
    seed: int = DEFAULTS.seed,
    cache_dir: str | Path = "runs/tuner",
    clickable: bool | None = None,
) -> Tuner:
    """Tune INT8 in a notebook: ranges by histograms, layers by sensitivity, and the search.

    Given results are shown at once; everything else is measured in the background and kept in `cache_dir`.

    Args:
        model: From `load`, or what `load` accepts. None uses the embedded model, or no model if a calibration is given.
        data: The YAML file of a labeled data set. None uses the embedded images for the embedded model.
        calibration: A calibration with histograms, or the folder of a saved one; None calibrates.
        sensitivity: A sensitivity, or the folder of a saved one; None uses the one in `cache_dir`.
        search: A search, or the folder of a saved one; None uses the one in `cache_dir`.
        calibration_images: Maximum number of calibration images.
        imgsz: Height and width, pixels; None uses the model's.
        seed: Seed of all samples.
        cache_dir: Folder of calibration, sensitivity, search and intermediate results.
        clickable: Whether points can be clicked; None enables it if anywidget is installed.

    Returns:
        The widget. Its methods do what its controls do: `.choose_algorithm()`, `.toggle()`, `.keep()`,
        `.measure_sensitivity()`, `.search()`, `.evaluate()`, `.cancel()`, `.wait()`; `.to_python()`, `.to_command()`
        and `.keep_list` return the export of its choices.

    Raises:
        DataError: A folder holds no such result.
    """
    from trtkit import demo

    loaded, path = resolve_calibration(calibration)
    if model is None and loaded is None:
        model, data = demo.model_path(), data if data is not None else demo.data_path()
    # A model from memory has no file; the code uses its name instead.
    file = getattr(model, "source", model) or getattr(model, "stem", "")
    state = TunerState(
        model=str(file),
        end2end=isinstance(model, Model) and needs_end2end(model),
        data=str(getattr(data, "path", data) or ""),
        cache_dir=str(cache_dir),
    )
    if loaded is not None:
        state = state.with_calibration(AlgorithmComparison(loaded), path=path)
    if sensitivity is not None:
        result = sensitivity if isinstance(sensitivity, Sensitivity) else Sensitivity.load(sensitivity)
        state = state.with_sensitivity(result)
    if search is not None:
        state = state.with_search(search if isinstance(search, Search) else Search.load(search))
    settings = {"calibration_images": calibration_images, "imgsz": imgsz, "seed": seed, "cache_dir": cache_dir}
    widget = Tuner(state, model, data, settings, clickable=clickable)
    if model is not None:
        widget.prepare()
    return widget

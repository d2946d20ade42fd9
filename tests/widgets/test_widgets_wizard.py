"""The wizard without a browser: every step, the ways between them, and real jobs on small images."""

from __future__ import annotations

import html
import threading
from pathlib import Path
from typing import Any

import machines
import onnx
import pytest
from wizard_steps import press, read_once, ready_wizard, small_recipe, with_model

import trtkit as tk
from trtkit import demo
from trtkit.comparison.cards import make_cards
from trtkit.deployment import list_targets
from trtkit.errors import OutputExistsError, TrtkitError
from trtkit.progress import Reporter
from trtkit.recipe import Recipe
from trtkit.widgets.wizard import output_steps
from trtkit.widgets.wizard import wizard as wizard_module
from trtkit.widgets.wizard.state import STEPS
from trtkit.widgets.wizard.wizard import wizard


@pytest.fixture
def small(tmp_path: Path) -> Recipe:
    return small_recipe(tmp_path)


@pytest.fixture(autouse=True)
def _read_once(model: tk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read_once(model, monkeypatch)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with the machine that the inspection shall find."""

    def be(machine: Any) -> None:
        monkeypatch.setattr(wizard_module, "inspect_machine", lambda: machine)

    return be


def test_it_starts_at_the_model_step_with_the_embedded_model() -> None:
    widget = ready_wizard()
    assert widget.state.step == "model"
    page: Any = widget.page("model")
    assert page.path.value == str(demo.model_path())
    assert "ONNX Runtime" in page.machine.value
    assert [widget.tabs[step].disabled for step in STEPS] == [False, True, True, True, True, True]
    assert widget.tabs["settings"].tooltip == "Read the model first."
    assert (widget.back.disabled, widget.next.disabled) == (True, True)
    assert "Read the model first." in widget.reason.value
    # A step that was not shown is not made.
    assert set(widget.steps) == {"model"}


def test_every_control_has_a_label_and_a_tooltip() -> None:
    widget = with_model()
    import ipywidgets

    pages = [widget.page(step) for step in STEPS]
    waiting: list[Any] = [*pages, widget]
    seen = 0
    while waiting:
        widget = waiting.pop()
        waiting += list(getattr(widget, "children", ()))
        if isinstance(widget, (ipywidgets.ValueWidget, ipywidgets.Button)) and not isinstance(
            widget, (ipywidgets.HTML, ipywidgets.IntProgress)
        ):
            # Option buttons get theirs when they are shown.
            if "trtkit-option" in widget._dom_classes and not widget.description:
                continue
            seen += 1
            assert widget.description, widget
            assert widget.tooltip, widget.description
    assert seen > 30


def test_reading_the_model_opens_the_next_step() -> None:
    widget = with_model()
    page: Any = widget.page("model")
    assert "yolo11t" in page.facts.value
    assert widget.tabs["model"].icon == "check"
    assert not widget.next.disabled
    widget.next.click()
    assert widget.state.step == "settings"
    assert not widget.code.toggle.value
    assert widget.code.children[1].layout.display == "none"
    widget.back.click()
    assert widget.state.step == "model"
    assert widget.next.button_style == "primary"


def test_a_wrong_path_shows_its_error_and_the_right_one_clears_it() -> None:
    widget = ready_wizard()
    page: Any = widget.page("model")
    page.path.value = "/nowhere/yolo.pt"
    page.read.click()
    page.view.job.wait()
    assert "/nowhere/yolo.pt" in page.view.error_box.value
    assert "<details>" in page.view.error_box.value
    assert widget.next.disabled
    assert "path was changed" not in widget.reason.value
    page.embedded.click()
    page.view.job.wait()
    assert page.view.error_box.value == ""
    assert not widget.next.disabled


def test_unavailable_options_are_disabled_and_state_the_reason(on: Any) -> None:
    on(machines.CROSS)
    widget = with_model()
    widget.go("settings")
    page: Any = widget.page("settings")
    closed = page.target.buttons["tensorrt"]
    assert closed.disabled
    assert "pip install" in closed.tooltip
    assert "pip install" in page.target.children[1].children[1].value
    assert page.precision.buttons["implicit"].disabled
    assert not page.precision.buttons["fp16"].disabled
    assert page.device.value == "none"
    assert page.device.options[0] == ("sm89: GeForce RTX 40 series, L4, L40", "none")


def test_thresholds_are_shown_where_the_graph_selects_boxes(on: Any, tmp_path: Path) -> None:
    on(machines.CROSS)
    widget = with_model()
    widget.go("settings")
    page: Any = widget.page("settings")

    def shown() -> list[str]:
        return [name for name in ("conf", "iou", "max_det") if getattr(page, name).layout.display != "none"]

    assert (shown(), page.conf.value, page.iou.value, page.max_det.value) == ([], 0.25, 0.7, 300)
    page.nms.value = True
    assert shown() == ["conf", "iou", "max_det"]
    page.conf.value, page.iou.value, page.max_det.value = 0.1, 0.5, 50
    recipe = widget.state.recipe()
    assert (recipe.conf, recipe.iou, recipe.max_det) == (0.1, 0.5, 50)
    assert "conf=0.1" in widget.code.python.value
    assert "--max-det=50" in widget.code.command.value
    page.conf.value = 1.0
    assert "conf=1.0" in page.problem.value
    page.conf.value = 0.1
    # Another head keeps the number of rows, and has no thresholds.
    widget._update(lambda state: state.fill(nms=False, end2end=True))
    assert shown() == ["max_det"]
    recipe = widget.state.recipe()
    assert (recipe.conf, recipe.iou, recipe.max_det) == (0.25, 0.7, 50)
    widget._update(lambda state: state.fill(end2end=False))
    assert shown() == []
    assert widget.state.recipe().max_det == 300


def test_settings_change_state_and_code_and_survive_going_forth_and_back(on: Any) -> None:
    on(machines.CROSS)
    widget = with_model()
    widget.go("settings")
    page: Any = widget.page("settings")
    page.precision.buttons["fp16"].value = True
    assert [button.value for button in page.precision.buttons.values()] == [False, True, False, False]
    # Pressing the selected button keeps it selected.
    page.precision.buttons["fp16"].value = False
    assert page.precision.buttons["fp16"].value
    page.target.buttons["tensorrt_rtx"].value = True
    page.device.value = "sm86"
    page.imgsz.value, page.batch.value, page.opt_level.value, page.dynamic.value = "320,640", 4, 2, True
    page.keep.value = "/model.23/*\n\n b "
    page.workspace.value, page.output.value = "1.5", "mine.engine"
    page.nms.value, page.simplify.value, page.isolate.value = True, False, True
    page.compatibility.value, page.weights.value = "ampere_plus", "refittable"
    # The embedded model is a YOLO11.
    assert page.end2end.disabled
    assert "one-to-one" in page.end2end_reason.value
    expected = Recipe(
        model=str(demo.model_path()), half=True, backend="tensorrt_rtx", device="sm86", imgsz=(320, 640), batch=4,
        opt_level=2, dynamic=True, keep=("/model.23/*", "b"), workspace=1.5, output="mine.engine", nms=True,
        simplify=False, isolate=True, data=str(demo.data_path()), compatibility="ampere_plus", weights="refittable",
    )  # fmt: skip
    assert widget.state.recipe() == expected
    assert "half=True" in widget.code.python.value
    assert "--device=sm86" in widget.code.command.value
    for step in ("images", "build", "engine", "model", "settings"):
        widget.go(step)
    assert widget.state.recipe() == expected
    assert (page.device.value, page.opt_level.value, page.dynamic.value) == ("sm86", 2, True)
    page.target.buttons["onnx"].value = True
    assert all(control.disabled for control in (page.device, page.workspace, page.opt_level, page.isolate))
    assert page.compatibility.disabled
    assert page.weights.disabled
    assert widget.state.recipe().device is None
    page.target.buttons["tensorrt_rtx"].value = True
    assert widget.state.recipe() == expected
    page.opt_level.value = page.dynamic.value = "none"
    assert (widget.state.recipe().opt_level, widget.state.recipe().dynamic) == (None, None)


def test_an_invalid_field_closes_the_later_steps_until_it_is_corrected() -> None:
    widget = with_model()
    widget.go("settings")
    page: Any = widget.page("settings")
    page.imgsz.value = "wide"
    assert "imgsz=wide" in page.problem.value
    assert "imgsz=wide" in widget.code.python.value
    assert widget.next.disabled
    assert all(widget.tabs[step].disabled for step in ("images", "build", "result", "engine"))
    page.imgsz.value = "96"
    assert page.problem.value == ""
    assert "imgsz=96" in widget.code.python.value


def test_images_are_examined_and_their_fields_follow_the_precision(small: Recipe) -> None:
    widget = with_model(small)
    page = press(widget, "images")
    assert "calibration images (train)" in page.findings.value
    assert "Objects of each class" in page.findings.value
    assert page.figure.figure is not None
    page.fraction.value = 0.1
    assert "other images" in page.findings.value
    page.source.buttons["saved"].value = True
    assert page.calibration.layout.display == ""
    assert page.examine.disabled
    assert "saved calibration" in page.reason.value
    page.calibration.value = "runs/calibration"
    assert widget.state.recipe().calibration == "runs/calibration"
    page.source.buttons["images"].value = True
    assert not page.examine.disabled
    widget.update(lambda state: state.fill(precision="fp16"))
    assert page.source.layout.display == page.calibration.layout.display == "none"
    assert page.check_overflow.layout.display == ""
    page.check_overflow.value = True
    assert widget.state.recipe().data == str(demo.data_path())
    page.check_overflow.value = False
    assert widget.state.recipe().data is None
    widget.update(lambda state: state.fill(precision="fp32"))
    assert page.check_overflow.layout.display == page.fraction.layout.display == "none"
    assert "FP32" in page.reason.value


def test_a_missing_data_set_is_an_error_of_its_step(small: Recipe) -> None:
    widget = with_model(small)
    widget.go("images")
    page: Any = widget.page("images")
    page.data.value = "/nowhere/data.yaml"
    page.examine.click()
    page.view.job.wait()
    assert "/nowhere/data.yaml" in page.view.error_box.value
    assert page.view.error_box.layout.display == ""


def test_it_builds_and_measures_and_its_code_repeats_the_build(small: Recipe, tmp_path: Path) -> None:
    widget = with_model(small)
    page = press(widget, "build")
    assert page.view.job.state == "done", page.view.error_box.value
    assert (tmp_path / "small.onnx").is_file()
    assert "small.onnx" in page.built.value
    assert page.overwrite.value
    assert page.overwrite.disabled
    widget.next.click()
    result: Any = widget.page("result")
    # All images, which the page says beside the field.
    assert result.eval_images.value == 0
    assert widget.state.form.eval_images is None
    assert "0 means all images" in result.children[1].children[1].value
    result.eval_images.value = 4
    assert widget.state.form.eval_images == 4
    page = press(widget, "result")
    assert page.view.job.state == "done", page.view.error_box.value
    assert "mAP50-95" in page.accuracy.value
    assert "95 % interval" in page.accuracy.value
    assert "not measured: an ONNX file was built" in page.latency.value
    assert [output.figure is not None for output in page.figures] == [True, False]
    comparison = widget.state.measurement.comparison
    assert str(comparison.verdicts["int8"]) in html.unescape(page.accuracy.value)
    assert comparison.frame()["precision"].to_list() == ["fp32", "int8"]
    # FP32 stands beside INT8 in the result: in the first card and in the figure of losses.
    assert [row.label for row in make_cards(comparison)[0].rows] == ["FP32", "INT8"]
    assert '<span class="name">FP32</span>' in page.accuracy.value
    widget.next.click()
    last: Any = widget.page("engine")
    assert "small.onnx" in last.facts.value
    assert widget.code.toggle.value
    assert widget.code.children[1].layout.display == ""
    assert last.target.options == list_targets("onnx")
    assert last.target.value == "triton"
    last.target.value = "onnxruntime"
    for _ in range(2):
        # The second one replaces the first, which the wizard wrote itself.
        last.deploy.click()
        last.view.job.wait()
        assert last.view.job.state == "done", last.view.error_box.value
    assert "small-onnxruntime" in last.deployed.value
    assert (tmp_path / "small-onnxruntime" / "check.py").exists()
    # The shown code makes the same graph again.
    before = onnx.load(tmp_path / "small.onnx").graph
    names: dict[str, Any] = {}
    exec(widget.state.code[0], names)
    assert onnx.load(tmp_path / "small.onnx").graph == before
    # Every step that shows results of the earlier settings says so, and none that it is done.
    for batch, display in ((2, "none"), (small.batch, "")):
        widget.update(lambda state, batch=batch: state.fill(batch=batch))
        for step, shown in (("build", "built"), ("result", "accuracy"), ("engine", "facts")):
            widget.go(step)
            page = widget.page(step)
            assert ("Build again" in getattr(page, shown).value) is (display == "none")
            assert page.view.layout.display == display


def test_an_existing_output_is_kept_without_overwrite(small: Recipe, tmp_path: Path) -> None:
    (tmp_path / "small.onnx").write_bytes(b"mine")
    widget = with_model(small)
    widget.go("build")
    page: Any = widget.page("build")
    # Said before the work, with the whole path.
    assert page.build.disabled
    assert str(tmp_path / "small.onnx") in page.reason.value
    assert str(tmp_path / "small.onnx") in page.place.value
    page.start()
    page.view.job.wait()
    assert isinstance(page.view.job.error, OutputExistsError)
    assert (tmp_path / "small.onnx").read_bytes() == b"mine"
    page.overwrite.value = True
    page = press(widget, "build")
    assert page.view.job.state == "done"
    assert page.view.error_box.value == ""


def test_images_of_another_task_are_named_when_they_are_chosen(small: Recipe) -> None:
    widget = with_model(small)
    widget.go("images")
    page: Any = widget.page("images")
    assert page.data_problem.value == ""
    page.data.value = str(demo.data_path("classify"))
    assert "class folders" in page.data_problem.value
    assert page.examine.disabled
    widget.go("build")
    build: Any = widget.page("build")
    assert build.build.disabled
    widget.go("images")
    page.data.value = str(demo.data_path())
    assert (page.data_problem.value, page.examine.disabled) == ("", False)


def test_cancel_during_calibration_leaves_no_file_and_the_same_form(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget = with_model(small)
    before = widget.state
    widget.go("build")
    page: Any = widget.page("build")
    real = page.view.job.on_event

    def watched(event: Any) -> None:
        real(event)
        if event.stage.startswith("calibrate"):
            page.view.cancel.click()

    monkeypatch.setattr(page.view.job, "on_event", watched)
    page.build.click()
    page.view.job.wait()
    assert page.view.job.state == "cancelled"
    assert "Cancelled" in page.view.stage.value
    assert not list(tmp_path.iterdir())
    assert widget.state.built is None
    assert widget.state.form == before.form
    assert not page.build.disabled
    assert widget.tabs["result"].disabled
    assert widget.busy == ""


class Held:
    """A call that waits until it is released."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self, *arguments: Any, progress: Any, cancel: Any, **settings: Any) -> Any:
        self.entered.set()
        assert self.go.wait(60)
        Reporter(progress, cancel).step("held", 1, 1)
        raise TrtkitError("hold", "it was released", "go on")


def test_while_a_job_runs_steps_and_settings_change_but_no_other_job_starts(
    small: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget = with_model(small)
    held = Held()
    monkeypatch.setattr(output_steps, "build", held)
    widget.go("build")
    build: Any = widget.page("build")
    build.build.click()
    assert held.entered.wait(60)
    assert build.build.disabled
    assert "build" in widget.busy
    widget.go("images")
    images: Any = widget.page("images")
    assert images.examine.disabled
    assert "build" in widget.reason.value
    with pytest.raises(TrtkitError) as e:
        images.start()
    assert e.value.code == "job-running"
    widget.go("settings")
    widget.page("settings").precision.buttons["fp16"].value = True  # type: ignore[attr-defined]
    assert widget.state.form.precision == "fp16"
    held.go.set()
    build.view.job.wait()
    assert "Hold: it was released; go on." in build.view.error_box.value
    assert widget.busy == ""


def test_a_failed_callback_shows_its_error_and_keeps_the_state() -> None:
    widget = ready_wizard()
    before = widget.state
    widget.tabs["build"].click()
    assert "Read the model first" in widget.error_box.value
    assert widget.state == before
    widget.update(lambda state: state)
    assert widget.error_box.value == ""


def test_a_failed_inspection_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no driver at all")

    monkeypatch.setattr(wizard_module, "inspect_machine", broken)
    widget = ready_wizard()
    assert "OSError: no driver at all" in widget.error_box.value


def test_the_public_name_is_the_function() -> None:
    assert tk.wizard is wizard

"""The wizard pressed without a browser: every page, every way between them, real work on small images."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import machines
import onnx
import pytest
from wizard_steps import made, press, read_once, small_recipe, with_model

import trtkit as tk
from trtkit import demo
from trtkit.errors import TrtkitError
from trtkit.progress import Reporter
from trtkit.recipe import Recipe
from trtkit.widgets.wizard import output_steps as wizard_results
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
    """Call it with a machine to be on it."""

    def be(machine: Any) -> None:
        monkeypatch.setattr(wizard_module, "inspect_machine", lambda: machine)

    return be


def test_it_appears_on_the_model_with_the_embedded_one_filled_in() -> None:
    found = made()
    assert found.session.step == "model"
    page: Any = found.page("model")
    assert page.path.value == str(demo.model_path())
    assert "ONNX Runtime" in page.machine.value
    assert [found.tabs[step].disabled for step in STEPS] == [False, True, True, True, True, True]
    assert found.tabs["choices"].tooltip == "Read the model first."
    assert (found.back.disabled, found.next.disabled) == (True, True)
    assert "Read the model first." in found.why.value
    # A page that nobody has seen is not made.
    assert set(found.steps) == {"model"}


def test_every_control_has_a_label_and_a_tooltip() -> None:
    found = with_model()
    import ipywidgets

    pages = [found.page(step) for step in STEPS]
    waiting: list[Any] = [*pages, found]
    seen = 0
    while waiting:
        widget = waiting.pop()
        waiting += list(getattr(widget, "children", ()))
        if isinstance(widget, (ipywidgets.ValueWidget, ipywidgets.Button)) and not isinstance(
            widget, (ipywidgets.HTML, ipywidgets.IntProgress)
        ):
            # Choices get theirs when they are shown.
            if "trtkit-choice" in widget._dom_classes and not widget.description:
                continue
            seen += 1
            assert widget.description, widget
            assert widget.tooltip, widget.description
    assert seen > 30


def test_a_model_is_read_and_the_way_on_opens() -> None:
    found = with_model()
    page: Any = found.page("model")
    assert "yolo11n" in page.facts.value
    assert found.tabs["model"].icon == "check"
    assert not found.next.disabled
    found.next.click()
    assert found.session.step == "choices"
    assert not found.code.toggle.value
    assert found.code.children[1].layout.display == "none"
    found.back.click()
    assert found.session.step == "model"
    assert found.next.button_style == "primary"


def test_a_wrong_path_shows_its_error_in_one_sentence_and_the_right_one_clears_it() -> None:
    found = made()
    page: Any = found.page("model")
    page.path.value = "/nowhere/yolo.pt"
    page.read.click()
    page.view.job.wait()
    assert "Load /nowhere/yolo.pt" in page.view.fault.value
    assert "<details>" in page.view.fault.value
    assert found.next.disabled
    assert "path was changed" not in found.why.value
    page.embedded.click()
    page.view.job.wait()
    assert page.view.fault.value == ""
    assert not found.next.disabled


def test_choices_show_what_this_machine_can_t_do_and_why(on: Any) -> None:
    on(machines.CROSS)
    found = with_model()
    found.go("choices")
    page: Any = found.page("choices")
    closed = page.target.buttons["tensorrt"]
    assert closed.disabled
    assert "pip install" in closed.tooltip
    assert "pip install" in page.target.children[1].children[1].value
    assert page.precision.buttons["implicit"].disabled
    assert not page.precision.buttons["fp16"].disabled
    assert page.device.value == "none"
    assert page.device.options[0] == ("sm89: GeForce RTX 40 series, L4, L40", "none")


def test_choices_change_state_and_code_and_survive_the_way_there_and_back(on: Any) -> None:
    on(machines.CROSS)
    found = with_model()
    found.go("choices")
    page: Any = found.page("choices")
    page.precision.buttons["fp16"].value = True
    assert [button.value for button in page.precision.buttons.values()] == [False, True, False, False]
    # Pressing what is down leaves it down.
    page.precision.buttons["fp16"].value = False
    assert page.precision.buttons["fp16"].value
    page.target.buttons["tensorrt_rtx"].value = True
    page.device.value = "sm86"
    page.imgsz.value, page.batch.value, page.opt_level.value, page.dynamic.value = "320,640", 4, 2, True
    page.keep.value = "/model.23/*\n\n b "
    page.workspace.value, page.output.value = "1.5", "mine.engine"
    page.nms.value, page.simplify.value, page.isolate.value = True, False, True
    expected = Recipe(
        model=str(demo.model_path()), half=True, backend="tensorrt_rtx", device="sm86", imgsz=(320, 640), batch=4,
        opt_level=2, dynamic=True, keep=("/model.23/*", "b"), workspace=1.5, output="mine.engine", nms=True, simplify=False,
        isolate=True, data=str(demo.data_path()),
    )  # fmt: skip
    assert found.session.recipe() == expected
    assert "half=True" in found.code.python.value
    assert "--device=sm86" in found.code.command.value
    for step in ("images", "build", "engine", "model", "choices"):
        found.go(step)
    assert found.session.recipe() == expected
    assert (page.device.value, page.opt_level.value, page.dynamic.value) == ("sm86", 2, True)
    page.target.buttons["onnx"].value = True
    assert all(control.disabled for control in (page.device, page.workspace, page.opt_level, page.isolate))
    assert found.session.recipe().device is None
    page.target.buttons["tensorrt_rtx"].value = True
    assert found.session.recipe() == expected
    page.opt_level.value = page.dynamic.value = "none"
    assert (found.session.recipe().opt_level, found.session.recipe().dynamic) == (None, None)


def test_a_field_that_makes_no_sense_closes_the_way_on_until_it_is_corrected() -> None:
    found = with_model()
    found.go("choices")
    page: Any = found.page("choices")
    page.imgsz.value = "wide"
    assert "no image size" in page.problem.value
    assert "no image size" in found.code.python.value
    assert found.next.disabled
    assert all(found.tabs[step].disabled for step in ("images", "build", "result", "engine"))
    page.imgsz.value = "96"
    assert page.problem.value == ""
    assert "imgsz=96" in found.code.python.value


def test_images_are_examined_and_what_they_are_for_follows_the_precision(small: Recipe) -> None:
    found = with_model(small)
    page = press(found, "images")
    assert "images of train" in page.findings.value
    assert "Objects of each class" in page.findings.value
    assert page.image.figure is not None
    page.fraction.value = 0.1
    assert "other images than are chosen now" in page.findings.value
    page.source.buttons["saved"].value = True
    assert page.calibration.layout.display == ""
    assert page.examine.disabled
    assert "saved calibration" in page.why.value
    page.calibration.value = "runs/calibration"
    assert found.session.recipe().calibration == "runs/calibration"
    page.source.buttons["images"].value = True
    assert not page.examine.disabled
    found.update(lambda session: session.fill(precision="fp16"))
    assert page.source.layout.display == page.calibration.layout.display == "none"
    assert page.check.layout.display == ""
    page.check.value = True
    assert found.session.recipe().data == str(demo.data_path())
    page.check.value = False
    assert found.session.recipe().data is None
    found.update(lambda session: session.fill(precision="fp32"))
    assert page.check.layout.display == page.fraction.layout.display == "none"
    assert "FP32 is not calibrated" in page.why.value


def test_a_data_set_that_is_not_there_is_told_where_it_was_asked_for(small: Recipe) -> None:
    found = with_model(small)
    found.go("images")
    page: Any = found.page("images")
    page.data.value = "/nowhere/data.yaml"
    page.examine.click()
    page.view.job.wait()
    assert "/nowhere/data.yaml" in page.view.fault.value
    assert page.view.fault.layout.display == ""


def test_it_builds_measures_and_leaves_file_passport_and_code(small: Recipe, tmp_path: Path) -> None:
    found = with_model(small)
    page = press(found, "build")
    assert page.view.job.state == "done", page.view.fault.value
    assert (tmp_path / "small.onnx").is_file()
    assert "small.onnx" in page.made.value
    assert page.overwrite.value
    assert page.overwrite.disabled
    found.next.click()
    result: Any = found.page("result")
    result.images.value = 4
    page = press(found, "result")
    assert page.view.job.state == "done", page.view.fault.value
    assert "mAP50-95" in page.accuracy.value
    assert "95 % interval" in page.accuracy.value
    assert "not TensorRT&#x27;s time" in page.latency.value
    assert all(image.figure is not None for image in page.figures)
    found.next.click()
    last: Any = found.page("engine")
    assert "small.onnx" in last.facts.value
    assert found.code.toggle.value
    assert found.code.children[1].layout.display == ""
    # The shown code makes the same graph again.
    before = onnx.load(tmp_path / "small.onnx").graph
    names: dict[str, Any] = {}
    exec(found.session.code[0], names)
    assert onnx.load(tmp_path / "small.onnx").graph == before
    # A change is told on every page that shows what was made before it.
    found.update(lambda session: session.fill(batch=2))
    for step, shown in (("build", "made"), ("result", "accuracy"), ("engine", "facts")):
        found.go(step)
        assert "Build again" in getattr(found.page(step), shown).value


def test_the_output_that_is_there_is_kept_unless_told_otherwise(small: Recipe, tmp_path: Path) -> None:
    (tmp_path / "small.onnx").write_bytes(b"mine")
    found = with_model(small)
    page = press(found, "build")
    assert page.view.job.state == "failed"
    assert "was kept" in page.view.fault.value
    assert (tmp_path / "small.onnx").read_bytes() == b"mine"
    page.overwrite.value = True
    page = press(found, "build")
    assert page.view.job.state == "done"
    assert page.view.fault.value == ""


def test_cancel_during_calibration_leaves_nothing_and_the_wizard_as_it_was(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = with_model(small)
    before = found.session
    found.go("build")
    page: Any = found.page("build")
    real = page.view.job.on_event

    def watched(event: Any) -> None:
        real(event)
        if event.stage.startswith("calibrate"):
            page.view.cancel.click()

    monkeypatch.setattr(page.view.job, "on_event", watched)
    page.build.click()
    page.view.job.wait()
    assert page.view.job.state == "cancelled"
    assert "nothing was left half-written" in page.view.stage.value
    assert not list(tmp_path.iterdir())
    assert found.session.made is None
    assert found.session.plan == before.plan
    assert not page.build.disabled
    assert found.tabs["result"].disabled
    assert found.busy == ""


class Held:
    """Work that waits until it is let go."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self, *arguments: Any, progress: Any, cancel: Any, **settings: Any) -> Any:
        self.entered.set()
        assert self.go.wait(60)
        Reporter(progress, cancel).step("held", 1, 1)
        raise TrtkitError("hold", "it was let go", "go on")


def test_while_one_job_runs_pages_turn_choices_change_and_no_other_job_starts(
    small: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = with_model(small)
    held = Held()
    monkeypatch.setattr(wizard_results, "build", held)
    found.go("build")
    build: Any = found.page("build")
    build.build.click()
    assert held.entered.wait(60)
    assert build.build.disabled
    assert "The build still runs." in found.busy
    found.go("images")
    images: Any = found.page("images")
    assert images.examine.disabled
    assert "The build still runs." in found.why.value
    with pytest.raises(TrtkitError, match="the build still runs"):
        images.start()
    found.go("choices")
    found.page("choices").precision.buttons["fp16"].value = True  # type: ignore[attr-defined]
    assert found.session.plan.precision == "fp16"
    held.go.set()
    build.view.job.wait()
    assert "Hold: it was let go; go on." in build.view.fault.value
    assert found.busy == ""


def test_a_callback_that_goes_wrong_shows_it_and_keeps_the_state() -> None:
    found = made()
    before = found.session
    found.tabs["build"].click()
    assert "Read the model first" in found.fault.value
    assert found.session == before
    found.update(lambda session: session)
    assert found.fault.value == ""


def test_a_machine_that_can_t_be_looked_at_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no driver at all")

    monkeypatch.setattr(wizard_module, "inspect_machine", broken)
    found = made()
    assert "OSError: no driver at all" in found.fault.value


def test_the_public_name_is_the_function() -> None:
    assert tk.wizard is wizard

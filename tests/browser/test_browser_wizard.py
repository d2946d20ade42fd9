"""The wizard in JupyterLab, clicked as a user does."""

import re

import pytest
from playwright.sync_api import expect

from trtkit import backends, demo
from trtkit.backends.capabilities import probe

pytestmark = pytest.mark.skipif(not probe("tensorrt_rtx").present, reason="TensorRT-RTX is not installed")


BEGIN = """\
import trtkit as tk
from trtkit.widgets.wizard import actions
actions.SECONDS = 0.1"""
"""Latency is measured for a short time: three seconds each show nothing more."""


def open_wizard(lab, name, **settings):
    """A wizard without a model, for a GPU that is not present."""
    recipe = {"model": "", "data": str(demo.data_path()), "int8": True, "device": "sm89", **settings}
    recipe["output"] = f"runs/{name}.engine"
    arguments = ", ".join(f"{key}={value!r}" for key, value in recipe.items())
    lab.open([BEGIN, f"wizard = tk.wizard(tk.Recipe({arguments}))\nwizard"])
    lab.run_all()
    expect(lab.find("wizard")).to_be_visible()


def read_model(lab, path):
    lab.fill("model-path", str(path))
    lab.click("read-model")


def go_to(lab, *steps):
    """Press Next until each step in turn is shown."""
    for step in steps:
        lab.click("next")
        expect(lab.find(f"page-{step}")).to_be_visible()


def stage(lab, step):
    return lab.find(f"page-{step}").locator(".trtkit-stage")


def test_from_a_model_to_an_engine_and_its_code(lab, screenshots):
    open_wizard(lab, "clicked", imgsz=96, fraction=0.05)
    read_model(lab, demo.model_path())
    expect(lab.find("model-facts")).to_contain_text("detect")
    go_to(lab, "settings")
    lab.both_themes("wizard", screenshots, "wizard-settings")
    go_to(lab, "images", "build")
    lab.click("build")
    expect(stage(lab, "build")).to_contain_text("Done in")
    go_to(lab, "result")
    lab.fill("eval-images", "6")
    lab.click("measure")
    expect(stage(lab, "result")).to_contain_text("Done in")
    expect(lab.find("accuracy")).to_contain_text("mAP50-95")
    lab.both_themes("wizard", screenshots, "wizard-result")
    go_to(lab, "engine")
    path = lab.folder / "runs" / "clicked.engine"
    first = backends.read_engine(path)
    assert (first.backend, first.passport.sm, first.passport.precision) == ("tensorrt_rtx", "sm89", "int8")
    expect(lab.find("engine-facts")).to_contain_text("sm89")
    lab.click("deploy")
    expect(lab.find("deployed")).to_contain_text("python check.py")
    assert list(lab.folder.glob("runs/clicked-*/check.py"))

    code = lab.find("python").locator("pre").inner_text()
    assert code.startswith("import trtkit as tk")
    path.unlink()
    shown = lab.run_new_cell(f"{code}\nartifact")
    assert "Artifact(runs/clicked.engine: int8 engine for sm89" in shown[-1]
    again = backends.read_engine(path).passport
    # The code replaces the file of the first build, which itself may replace nothing.
    assert {**again.recipe, "overwrite": False} == {**first.passport.recipe, "overwrite": False}
    assert again.calibration_hash == first.passport.calibration_hash
    assert (again.model_hash, again.data_hash) == (first.passport.model_hash, first.passport.data_hash)


def test_cancel_during_calibration_leaves_no_file_and_a_usable_wizard(lab):
    open_wizard(lab, "cancelled")
    read_model(lab, demo.model_path())
    go_to(lab, "settings", "images", "build")
    lab.click("build")
    expect(stage(lab, "build")).to_contain_text(re.compile(r"calibrate .*\d+ of 64"))
    # Other cells run while the wizard builds.
    assert lab.run_new_cell("6 * 7") == ["42"]
    lab.find("page-build").locator(".trtkit-cancel").click()
    expect(stage(lab, "build")).to_contain_text("Cancelled after")
    assert not list(lab.folder.glob("runs/cancelled*"))
    expect(lab.find("page-build").locator("button.trtkit-build")).to_be_enabled()
    lab.click("back")
    expect(lab.find("page-images")).to_be_visible()


def test_a_wrong_path_is_one_sentence_with_the_traceback_folded(lab):
    open_wizard(lab, "wrong")
    read_model(lab, "nowhere.pt")
    error = lab.find("page-model").locator(".trtkit-error-message")
    expect(error).to_contain_text("nowhere.pt")
    expect(error.locator("pre")).to_be_hidden()
    error.locator("summary").click()
    expect(error.locator("pre")).to_contain_text("Traceback")
    expect(lab.find("next")).to_be_disabled()
    read_model(lab, demo.model_path())
    expect(error).to_be_hidden()
    expect(lab.find("next")).to_be_enabled()

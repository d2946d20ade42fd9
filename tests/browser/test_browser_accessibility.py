"""Widgets by keyboard alone and by assistive technology: roles, states, names, and axe-core's rules."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from trtkit import backends, demo
from trtkit.backends.capabilities import probe

COMPARED = """\
comparison = tk.compare(model, data, imgsz=64, calibration=calibration, eval_images=20, build=False)
tk.dashboard(comparison)"""
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}}


def violations(lab, name):
    """Axe's findings in a widget, in light and dark mode, one line each."""
    found = []
    for scheme in ("light", "dark"):
        lab.theme(scheme)
        response = Axe().run(lab.page, context=f".jp-Notebook .trtkit-{name}", options=RULES).response
        for rule in response["violations"]:
            found += [f"{scheme} {rule['id']}: {node['html'][:160]}" for node in rule["nodes"]]
    lab.theme("light")
    return found


LAYOUT = """([name, width]) => {
  const root = document.querySelector(`.jp-Notebook .trtkit-${name}`);
  root.style.width = root.style.maxWidth = `${width}px`;
  return new Promise((done) => setTimeout(() => {
    const found = [], outer = root.getBoundingClientRect();
    const scrolls = (node) => ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
    if (root.scrollWidth > root.clientWidth + 1) found.push(`${name} scrolls sideways: ${root.scrollWidth}`);
    const leaves = [...root.querySelectorAll("button, label, input, select, h3, h4, p, td, th, img")].filter((node) => {
      const box = node.getBoundingClientRect();
      for (let up = node; up !== root; up = up.parentElement) if (up !== node && scrolls(up)) return false;
      return box.width > 1 && box.height > 1 && getComputedStyle(node).position !== "absolute";
    });
    const boxes = leaves.map((node) => [node, node.getBoundingClientRect()]);
    for (const [node, box] of boxes) {
      if (box.right > outer.right + 2) found.push(`beyond the edge: ${node.outerHTML.slice(0, 120)}`);
    }
    for (const [index, [one, a]] of boxes.entries()) {
      for (const [two, b] of boxes.slice(index + 1)) {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 2 && high > 2 && !one.contains(two) && !two.contains(one)) {
          found.push(`overlap: ${one.outerHTML.slice(0, 100)} and ${two.outerHTML.slice(0, 100)}`);
        }
      }
    }
    done(found);
  }, 700));
}"""


def crowding(lab, name, screenshots):
    """What lies over or beyond something else in a widget of three widths, one line each."""
    found = []
    for width in (420, 900, 1600):
        found += [f"{width} px: {line}" for line in lab.page.evaluate(LAYOUT, [name, width])]
        lab.screenshot(lab.find(name), screenshots / f"{name}-{width}.png")
    lab.page.evaluate("name => document.querySelector(`.jp-Notebook .trtkit-${name}`).removeAttribute('style')", name)
    return found


@pytest.mark.skipif(not probe("tensorrt_rtx").present, reason="TensorRT-RTX is not installed")
def test_the_wizard_by_keyboard_alone(lab):
    recipe = {"model": "", "data": str(demo.data_path("classify")), "device": "sm89", "output": "runs/keys.engine"}
    arguments = ", ".join(f"{key}={value!r}" for key, value in recipe.items())
    lab.open(
        [f"import trtkit as tk\nwizard = tk.wizard(tk.Recipe({arguments}, imgsz=64, int8=True, fraction=0.2))\nwizard"]
    )
    lab.run_all()
    keyboard = lab.page.keyboard
    found = {}

    def focus(name):
        """Press Tab until a part has the focus."""
        for _ in range(60):
            inside = lab.page.evaluate(
                "name => Boolean(document.activeElement?.closest?.(`.jp-Notebook .trtkit-${name}`))", name
            )
            if inside:
                return
            keyboard.press("Tab")
        raise AssertionError(f"{name} can't be reached by Tab")

    lab.find("wizard").locator(".trtkit-step-model").focus()
    focus("model-path")
    keyboard.type(str(demo.model_path("classify")))
    # Enter presses the page's main button.
    keyboard.press("Enter")
    expect(lab.find("model-facts")).to_contain_text("classify")
    found["model"] = violations(lab, "wizard")
    # The pressed button is disabled while it reads: the focus is at the result, not at the page's start.
    assert lab.page.evaluate("() => Boolean(document.activeElement.closest('.trtkit-wizard'))")
    focus("next")
    keyboard.press("Enter")
    options = lab.find("precision")
    expect(options).to_have_attribute("role", "radiogroup")
    chosen = options.locator("[role=radio][aria-checked=true]")
    expect(chosen).to_contain_text("INT8")
    focus("precision")
    keyboard.press("ArrowUp")
    expect(chosen).to_contain_text("FP16")
    assert lab.page.evaluate("() => document.activeElement.getAttribute('aria-checked')") == "true"
    found["settings"] = violations(lab, "wizard")
    focus("next")
    keyboard.press("Enter")
    expect(lab.find("page-images")).to_be_visible()
    expect(lab.find("steps").locator("[aria-current=step]")).to_have_count(1)
    focus("next")
    keyboard.press("Enter")
    expect(lab.find("page-build")).to_be_visible()
    focus("build")
    keyboard.press("Enter")
    expect(lab.find("page-build").locator(".trtkit-stage")).to_contain_text("Done in")
    expect(lab.find("wizard").locator("[role=status]")).to_contain_text("Done in")
    found["build"] = violations(lab, "wizard")
    engine = backends.read_engine(lab.folder / "runs" / "keys.engine")
    assert engine.passport.precision == "fp16"
    assert found == {"model": [], "settings": [], "build": []}


CALIBRATED = """\
import warnings; warnings.simplefilter("ignore")
import trtkit as tk
model, data = tk.demo.model_path('classify'), tk.demo.data_path('classify')
calibration = tk.calibrate(model, data, calibration_images=4, histograms=True)"""
ENGINE = """\
built = tk.export(model, imgsz=64, int8=True, calibration=calibration, device="sm89", output="runs/axe.engine",
                  overwrite=True)
explorer = tk.explorer(built)
explorer"""


@pytest.mark.skipif(not probe("tensorrt_rtx").present, reason="TensorRT-RTX is not installed")
def test_the_other_widgets_pass_axe_and_fit_every_width(lab, screenshots):
    lab.open([CALIBRATED, "tuner = tk.tuner(calibration=calibration)\ntuner", ENGINE])
    lab.run_all()
    found = {}
    for name in ("tuner", "explorer"):
        expect(lab.find(name).locator(".main-svg").first).to_be_visible()
        found[name] = violations(lab, name) + crowding(lab, name, screenshots)
    lab.open([COMPARED, "tk.gallery(comparison)"])
    lab.run_all()
    for name in ("dashboard", "gallery"):
        expect(lab.find(name)).to_be_visible()
        found[name] = violations(lab, name) + crowding(lab, name, screenshots)
    assert found == {name: [] for name in found}

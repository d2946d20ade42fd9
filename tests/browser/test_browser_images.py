"""Images enlarge by click and Enter and close by Escape, without a script: in pages, outputs and widgets, offline."""

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from trtkit.html import asset, render
from trtkit.tasks.base import ImageGrid

CELLS = [
    "import ipywidgets, numpy as np\n"
    "from trtkit.tasks.base import ImageGrid\n"
    "grid = ImageGrid(images=(np.full((240, 320, 3), 90, np.uint8),) * 2, captions=('first', 'second'))\n"
    "grid",
    "ipywidgets.HTML(grid._repr_html_())",
]
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}


def violations(page, context):
    response = Axe().run(page, context=context, options=RULES).response
    return [f"{rule['id']}: {node['html'][:160]}" for rule in response["violations"] for node in rule["nodes"]]


def open_and_close(page, button):
    """Enlarge an image by click and by Enter, and close it by Escape and by a click; its button keeps the focus."""
    image = button.locator("img")
    box = page.locator(".trtkit-image:popover-open")
    small = image.bounding_box()
    for opener, closer in (("click", "Escape"), ("Enter", "click"), ("Enter", "Escape")):
        if opener == "click":
            button.click()
        else:
            button.focus()
            page.keyboard.press("Enter")
        expect(box).to_have_count(1)
        large, window = image.bounding_box(), page.viewport_size
        assert large["width"] > max(small["width"], 0.8 * window["width"])
        assert large["height"] > 0.5 * window["height"]
        found = violations(page, ".trtkit-image")
        if closer == "click":
            button.click()
        else:
            page.keyboard.press("Escape")
        expect(box).to_have_count(0)
        assert found == []
        assert button.evaluate("node => node === document.activeElement")
        assert image.bounding_box() == pytest.approx(small, abs=1)


def page_of(kind):
    """A page with images, as the report, a notebook's output and the gallery have them."""
    grid = ImageGrid(images=(np.full((120, 160, 3), 90, np.uint8),) * 2, captions=("first", "second"))
    css = asset("templates/enlarge.css")
    source = grid._repr_html_().partition("base64,")[2].partition('"')[0]
    if kind == "output":
        return grid._repr_html_()
    if kind == "gallery":
        css += asset("widgets/ui/widgets.css")
        card = {"label": "lost: 3", "file": "0.jpg", "format": "jpeg", "data": source}
        body = render("widgets/templates/gallery_cards.html.j2", cards=[card] * 2, reference="fp32", precision="int8")
        return f"<style>{css}</style><div class=trtkit>{body}</div>"
    css += asset("comparison/templates/report.css")
    template = "{% from 'templates/enlarge.html.j2' import enlargeable %}"
    from trtkit.html import _environment

    figure = f"<figure>{{{{ enlargeable('data:image/jpeg;base64,{source}', 'lost: 3') }}}}</figure>"
    body = _environment().from_string(template + figure * 2).render()
    return f"<style>{css}</style><main><div class=gallery>{body}</div></main>"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["report", "output", "gallery"])
def test_an_image_of_an_offline_page_enlarges(page_maker, tmp_path, screenshots, kind, scheme):
    context = page_maker.new_context(
        viewport={"width": 900, "height": 700}, color_scheme=scheme, offline=True, java_script_enabled=True
    )
    page = context.new_page()
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><html lang=en><meta charset=utf-8><title>images</title><body>{page_of(kind)}")
    page.goto(path.as_uri())
    buttons = page.locator(".trtkit-image > button")
    expect(buttons).to_have_count(2)
    # Nothing but the image is shown in its place.
    assert page.locator(".trtkit-image > p:visible").count() == 0
    open_and_close(page, buttons.nth(1))
    buttons.first.click()
    page.screenshot(path=str(screenshots / f"enlarged-{kind}-{scheme}.png"))
    context.close()


def test_an_image_enlarges_in_jupyterlab_as_output_and_in_a_widget(lab):
    lab.open(CELLS)
    lab.run_all()
    buttons = lab.page.locator(".jp-Notebook .trtkit-image > button")
    expect(buttons).to_have_count(4)
    for place in (0, 3):
        open_and_close(lab.page, buttons.nth(place))

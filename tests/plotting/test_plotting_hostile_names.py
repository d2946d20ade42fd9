"""Names of classes, layers, models and files are shown as they are in every figure and page, and run nothing."""

import pytest
from hostile import NAMES, Parts, hostile_figures, hostile_pages, plain, shown_texts

from trtkit.plotting import calibration, comparison, engine, evaluation, tuning
from trtkit.plotting.notebook import mime_bundle
from trtkit.plotting.theme import escape_text, escape_texts

DANGEROUS = [name for name in NAMES if escape_text(name) != name]


@pytest.fixture(scope="module")
def figures():
    return hostile_figures()


def test_every_figure_is_in_the_table(figures):
    """A new figure needs a row of `hostile_figures`."""
    modules = (calibration, comparison, engine, evaluation, tuning)
    public = {name for module in modules for name in module.__all__ if name.endswith("_figure")}
    # engine_diff_figure has two forms.
    assert len(figures) == len(public) + 1


def test_no_figure_shows_a_name_as_markup(figures):
    for figure_name, figure in figures.items():
        texts = shown_texts(figure)
        for name in DANGEROUS:
            assert not [text for text in texts if name in text], (figure_name, name)
        assert not [text for text in texts if "<a " in text or "%{x}$a$" in text], figure_name
        assert any("&#60;" in text for text in texts), figure_name


def test_names_are_readable_in_figures(figures):
    for figure_name in ("classes", "evaluation", "layer ranking", "sensitivity"):
        shown = {plain(text).strip() for text in shown_texts(figures[figure_name])}
        for name in NAMES:
            assert any(name.strip() in text for text in shown), (figure_name, name)


def test_a_click_gets_the_name_itself(figures):
    figure = figures["layer ranking"]
    assert {node for trace in figure.data if trace.customdata is not None for node in trace.customdata} == set(NAMES)


@pytest.mark.parametrize(
    ("text", "shown"), [("a & b", "a &#38; b"), ("5 %", "5 %"), ("%{x}", "&#37;{x}"), ("cat", "cat"), (3, "3")]
)
def test_only_markup_is_escaped(text, shown):
    assert escape_text(text) == shown
    assert escape_texts([text, None]) == [shown, ""]


def test_pages_have_no_element_attribute_or_script_of_a_name(figures):
    bundles = {name: mime_bundle(figure, library=False)["text/html"] for name, figure in figures.items()}
    for place, page in {**hostile_pages(), **bundles}.items():
        parts = Parts(page)
        for tag, attributes in parts.elements:
            assert tag not in ("a", "svg"), place
            assert not [name for name in attributes if name.startswith("on")], place
            assert tag != "img" or attributes["src"].startswith("data:image/"), place
            assert tag != "script" or set(attributes) <= {"type", "data-trtkit-library"}, place
        assert any(name in text for name in DANGEROUS for text in parts.texts) or place in bundles, place

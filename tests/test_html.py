"""HTML templates: escaping, JSON in scripts, tables."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

import trtkit
from trtkit.html import TableView, asset, facts_html, render, script_json, table_html

NASTY = "</script><b>&'\"\u2028"


def test_values_are_escaped_in_tables_and_facts():
    markup = table_html(pl.DataFrame({"<name>": [NASTY]}), caption=NASTY, row_classes={0: "a'b"}) + facts_html(
        {NASTY: 1}
    )
    assert "<b>" not in markup
    assert "&lt;b&gt;" in markup
    assert "&lt;name&gt;" in markup
    assert "a'b" not in markup


def test_markup_is_not_escaped_again():
    table = table_html(pl.DataFrame({"a": [1]}))
    page = render("templates/result.html.j2", lines=[], table=table, kind="x", runner="y", created="z")
    assert str(table) in page


@pytest.mark.parametrize("value", [NASTY, {"text": NASTY, "numbers": [1, None]}, json.dumps(NASTY)])
def test_script_json_ends_no_script_and_keeps_the_value(value):
    text = script_json(value if not isinstance(value, str) else json.dumps(value))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_numbers_are_right_aligned_and_formatted():
    frame = pl.DataFrame({"name": ["a", None], "count": [1234, 5], "share": [0.123456, None], "is": [True, False]})
    markup = table_html(frame, headings={"count": "how many"}, digits={"share": 2})
    assert "<th scope='col' class='trtkit-number'>how many</th>" in markup
    for cell in ("<td>a</td>", "<td>–</td>", ">1,234</td>", ">0.12</td>", "<td>yes</td>", "<td>no</td>"):
        assert cell in markup


def test_what_rounds_to_nothing_has_no_sign():
    shown = table_html(pl.DataFrame({"change": [-0.00001, -0.0, -0.0049, float("nan")]}), digits={"change": 4})
    assert re.findall(r"<td[^>]*>([^<]*)</td>", shown) == ["0.0000", "0.0000", "-0.0049", "nan"]


def test_rows_beyond_the_limit_are_counted():
    markup = table_html(pl.DataFrame({"a": range(5)}), limit=2)
    assert markup.count("<tr") == 3
    assert "3 more rows" in markup


def test_a_table_view_shows_text_as_it_is_and_no_types():
    view = TableView(pl.DataFrame({"name": ["a", None], "share": [0.5, None]}), limit=1)
    markup = view._repr_html_()
    assert "<td>a</td>" in markup
    assert "1 more rows" in markup
    assert not [word for word in ("&quot;", "str", "f64", "null") if word in markup]
    assert "shape: (2, 2)" in repr(view)


def test_facts_leave_out_nothing_and_empty_text():
    markup = facts_html({"a": None, "b": "", "c": 0, "d": ["x", "y"]})
    assert [name for name in "abcd" if f">{name}</th>" in markup] == ["c", "d"]
    assert "<td>x, y</td>" in markup


def test_no_image_waits_until_it_is_scrolled_to():
    """Print and capture leave out what is not loaded yet."""
    package = Path(trtkit.__file__).parent
    files = [path for kind in ("*.j2", "*.js", "*.py") for path in package.rglob(kind)]
    assert len(files) > 100
    assert [path for path in files if "loading=" in path.read_text() and "lazy" in path.read_text()] == []


def test_assets_are_files_of_the_package():
    assert "function loadPlotly" in asset("plotting/plotly_loader.js")

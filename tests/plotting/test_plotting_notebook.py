"""Figures as HTML: self-contained JSON, one plotly.js per page, one loader."""

import gzip
import json
import re

import plotly.graph_objects as go

from trtkit.plotting.notebook import compressed_plotly, figure_html, library_html, plotly_loader, plotly_url

FIGURE = go.Figure(go.Scatter(y=[1, 2, 3], name="</script>"), {"title": {"text": "A </script> title"}, "height": 321})


def test_a_figure_is_json_that_ends_no_script():
    markup = figure_html(FIGURE, css="wide", toolbar=False)
    (data,) = re.findall(r"<script type='application/json'>(.*?)</script>", markup, re.DOTALL)
    assert json.loads(data)["data"][0]["name"] == "</script>"
    assert markup.count("</script>") == 2
    assert 'class="wide"' in markup
    assert "height:321px" in markup
    assert '"displayModeBar": false' in markup


def test_every_figure_has_its_own_name_and_the_shared_loader():
    first, second = figure_html(FIGURE), figure_html(FIGURE)
    name = re.compile(r'id="(trtkit-\w+)"')
    assert name.search(first)[1] != name.search(second)[1]
    assert plotly_loader() in first
    assert plotly_url() in first
    assert len(first) < 20_000


def test_the_library_is_compressed_plotly():
    assert b"plotly.js v" in gzip.decompress(compressed_plotly())[:2000]
    assert library_html().count("data-trtkit-library>") == 1

"""How a result shows itself in a notebook: its sentences, then its frame as a table to read."""

import dataclasses

import plotly.graph_objects as go
import polars as pl
import pytest

from trtkit.results import Provenance, Result


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Found(Result):
    kind = "found"

    rows: pl.DataFrame
    provenance: Provenance

    def frame(self):
        return self.rows

    def plot(self):
        return go.Figure()

    def tables(self):
        return {"found": self.rows}

    def facts(self):
        return {}

    @classmethod
    def restore(cls, tables, facts, provenance):
        return cls(rows=tables["found"], provenance=provenance)

    def __repr__(self):
        return "Found 2 things <here>\n  the first is best"


@pytest.fixture
def shown():
    rows = pl.DataFrame({"name": ["a", "/model.0/conv/Conv"], "value": [1.23456789, None]})
    return Found(
        rows=rows, provenance=Provenance(model_hash="a", data_hash=None, runner="ONNX Runtime", settings={})
    )._repr_html_()


def test_every_sentence_is_a_paragraph_and_escaped(shown):
    assert "<p>Found 2 things &lt;here&gt;</p><p>the first is best</p>" in shown


def test_the_table_is_made_to_be_read(shown):
    assert "<td>/model.0/conv/Conv</td><td>–</td>" in shown
    assert "<td>a</td><td>1.2346</td>" in shown
    assert "f64" not in shown
    assert "&quot;" not in shown


def test_it_names_what_ran(shown):
    assert "found by ONNX Runtime, 20" in shown


def test_saving_and_loading_gives_the_same(tmp_path):
    rows = pl.DataFrame({"name": ["a"]})
    found = Found(rows=rows, provenance=Provenance(model_hash="a", data_hash=None, runner="r", settings={}))
    assert Found.load(found.save(tmp_path)).rows.equals(rows)

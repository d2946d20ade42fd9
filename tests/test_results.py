"""Results: display in a notebook, saving and loading, hashes and format versions."""

import dataclasses
import json

import plotly.graph_objects as go
import polars as pl
import pytest

from trtkit.errors import ResultError
from trtkit.results import Provenance, Result, rename_version_1
from trtkit.version import FORMAT_VERSION


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Example(Result):
    kind = "example"

    rows: pl.DataFrame
    provenance: Provenance
    facts_: dict = dataclasses.field(default_factory=dict)

    def frame(self):
        return self.rows

    def plot(self):
        return go.Figure()

    def tables(self):
        return {"example": self.rows}

    def facts(self):
        return self.facts_

    @classmethod
    def restore(cls, tables, facts, provenance):
        return cls(rows=tables["example"], facts_=facts, provenance=provenance)

    def __repr__(self):
        return "Example of 2 things <here>\n  the first is best"


def make(rows=None, **facts):
    rows = pl.DataFrame({"name": ["a", "/model.0/conv/Conv"], "value": [1.23456789, None]}) if rows is None else rows
    provenance = Provenance(model_hash="a", data_hash=None, runner="ONNX Runtime", settings={})
    return Example(rows=rows, provenance=provenance, facts_=facts)


@pytest.fixture
def shown():
    return make()._repr_html_()


def test_every_line_of_the_repr_is_an_escaped_paragraph(shown):
    assert "<p>Example of 2 things &lt;here&gt;</p><p>the first is best</p>" in shown


def test_the_html_table_has_no_quotes_types_or_nulls(shown):
    assert "<td>/model.0/conv/Conv</td><td>–</td>" in shown
    assert "<td>a</td><td>1.2346</td>" in shown
    assert "f64" not in shown
    assert "&quot;" not in shown


def test_the_html_names_the_runner(shown):
    assert "example by ONNX Runtime, 20" in shown


def test_a_loaded_result_equals_the_saved_one(tmp_path):
    result = make(note="x")
    loaded = Example.load(result.save(tmp_path))
    assert loaded.rows.equals(result.rows)
    assert loaded.facts_ == {"note": "x"}
    assert loaded.provenance == result.provenance == Example.load_provenance(tmp_path)


def test_the_json_has_the_format_version_and_a_hash_per_table(tmp_path):
    content = json.loads((make().save(tmp_path) / "example.json").read_text())
    assert content["format_version"] == FORMAT_VERSION == 2
    assert [len(sha256) for sha256 in content["tables"].values()] == [64]
    assert content["provenance"]["model_hash"] == "a"


def failure(folder):
    with pytest.raises(ResultError) as e:
        Example.load(folder)
    return e.value


def test_a_changed_table_is_refused(tmp_path):
    make().save(tmp_path)
    pl.DataFrame({"name": ["b"]}).write_parquet(tmp_path / "example.parquet")
    error = failure(tmp_path)
    assert (error.code, error.fields["table"]) == ("result-table-changed", "example")
    assert error.fields["path"] == str(tmp_path / "example.parquet")


def test_a_missing_table_and_a_missing_result_are_refused(tmp_path):
    assert failure(tmp_path).code == "result-missing"
    make().save(tmp_path)
    (tmp_path / "example.parquet").unlink()
    assert failure(tmp_path).code == "result-table-missing"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"tables": {}, "facts": {}, "format_version": 2}'])
def test_a_damaged_json_is_refused(tmp_path, text):
    (tmp_path / "example.json").write_text(text)
    assert failure(tmp_path).code == "result-damaged"


def test_a_newer_format_is_refused(tmp_path):
    path = make().save(tmp_path) / "example.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 3'))
    error = failure(tmp_path)
    assert (error.code, error.fields["version"]) == ("result-newer", 3)


def test_version_1_loads_with_the_present_names(tmp_path):
    pl.DataFrame({"picture": [1], "metric": ["coco/AP(M)"], "delta coco/AP low": [0.5]}).write_parquet(
        tmp_path / "example.parquet"
    )
    content = {
        "kind": "example",
        "tables": ["example"],
        "facts": {"metrics": {"coco/AR1": 1.0}, "pictures": 3, "data": "coco/data.yaml"},
        "origin": make().provenance.to_dict(),
    }
    (tmp_path / "example.json").write_text(json.dumps(content))
    result = Example.load(tmp_path)
    assert result.rows.rows(named=True) == [
        {"image": 1, "metric": "pycocotools/AP(M)", "delta pycocotools/AP low": 0.5}
    ]
    assert result.facts_ == {"metrics": {"pycocotools/AR1": 1.0}, "images": 3, "data": "coco/data.yaml"}
    assert result.provenance.model_hash == "a"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("picture_ms", "image_ms"),
        ("pictures_per_s", "images_per_s"),
        ("measurable", "significant"),
        ("truths", "labels"),
        ("coco/APs", "pycocotools/APs"),
        ("pycocotools/AP", "pycocotools/AP"),
        ("mAP50-95(B)", "mAP50-95(B)"),
    ],
)
def test_names_of_version_1(old, new):
    assert rename_version_1(old) == new

"""Results: display in a notebook, saving and loading, hashes and format versions."""

import contextlib
import dataclasses
import json
import shutil

import plotly.graph_objects as go
import polars as pl
import pytest
from example_results import example_results
from interruption import each_kill
from raising import raises

from trtkit import results
from trtkit.errors import DiskFullError, OutputError, ResultError
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


def test_the_html_table_shows_empty_lists_as_nothing_and_wraps_no_cell():
    shown = make(pl.DataFrame({"paths": [[], ["a.jpg"]]}, schema={"paths": pl.List(pl.String)}))._repr_html_()
    assert "<td>–</td>" in shown
    assert "[]" not in shown
    assert ".trtkit-rows td { white-space: nowrap }" in shown
    assert "<div class='trtkit-rows'" in shown


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


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Pair(Example):
    """A result with a second table, which may be missing."""

    other: pl.DataFrame | None = None

    def tables(self):
        return {"example": self.rows, **({} if self.other is None else {"other": self.other})}

    @classmethod
    def restore(cls, tables, facts, provenance):
        return cls(rows=tables["example"], other=tables.get("other"), facts_=facts, provenance=provenance)


def pair(value, other=True):
    rows = pl.DataFrame({"value": [value]})
    return Pair(rows=rows, other=rows if other else None, facts_={"value": value}, provenance=make().provenance)


def values_of(result):
    """The same number from each file of a result."""
    return {
        result.facts_["value"],
        result.rows["value"][0],
        result.rows["value"][0] if result.other is None else result.other["value"][0],
    }


@pytest.mark.parametrize("before", ["wider", "narrower", "nothing"])
def test_a_killed_save_leaves_the_old_or_the_new_result(tmp_path, before):
    folder = tmp_path / "result"
    old, new = pair(1, other=before == "wider"), pair(2, other=before == "narrower")
    outcomes = []

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        if before != "nothing":
            old.save(folder)

    for step in each_kill(prepare, lambda: new.save(folder)):
        if before == "nothing" and not outcomes_exist(folder):
            outcomes.append(None)
        else:
            loaded = Pair.load(folder)
            outcomes.append(min(values_of(loaded)))
            assert values_of(loaded) in ({1}, {2}), step
            assert (loaded.other is not None) == ("other" in (new if outcomes[-1] == 2 else old).tables()), step
        new.save(folder)
        assert values_of(Pair.load(folder)) == {2}
        files = {"example.json", "example.parquet", *(["example.other.parquet"] if new.other is not None else [])}
        assert {path.name for path in folder.iterdir()} == files, step
    assert set(outcomes) == {None if before == "nothing" else 1, 2}


def outcomes_exist(folder):
    with contextlib.suppress(ResultError):
        Pair.load(folder)
        return True
    return False


def test_a_disk_that_fills_up_while_a_table_is_written_keeps_the_old_result(tmp_path, monkeypatch):
    pair(1).save(tmp_path)

    def fill(table, path):
        path.write_bytes(b"PAR1half")
        raise pl.exceptions.ComputeError("No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", fill)
        with raises(DiskFullError, "disk-full", path=str(tmp_path)):
            pair(2).save(tmp_path)
    assert values_of(Pair.load(tmp_path)) == {1}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_result_is_saved_into_a_folder_only(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "x"):
        with raises(OutputError, "output-parent-not-folder"):
            make().save(folder)
    (tmp_path / "example.json").mkdir()
    with raises(OutputError, "output-is-folder"):
        make().save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example.json", "file"]


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


@pytest.mark.parametrize(
    ("old", "new"),
    [('"note": "x"', '"note": "y"'), ('"model_hash": "a"', '"model_hash": "b"'), ('"hash": "', '"hash": "0')],
)
def test_a_changed_fact_is_refused(tmp_path, old, new):
    path = make(note="x").save(tmp_path) / "example.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    error = failure(tmp_path)
    assert (error.code, error.fields["path"]) == ("result-changed", str(path))


def test_whatever_a_damaged_table_makes_a_library_raise_is_a_result_error(tmp_path, monkeypatch):
    class PanicException(BaseException):
        """As polars' own, which is no Exception."""

    make().save(tmp_path)
    for error in (PanicException("index out of bounds"), pl.exceptions.ComputeError("snappy"), OSError(5, "I/O error")):

        def fail(*values, error=error, **settings):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(pl, "read_parquet", fail)
            found = failure(tmp_path)
        assert (found.code, found.fields["table"]) == ("result-damaged", "example")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pl, "read_parquet", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        Example.load(tmp_path)


def test_a_table_that_claims_more_cells_than_memory_holds_is_refused(tmp_path, monkeypatch):
    make().save(tmp_path)
    monkeypatch.setattr(results, "MAX_CELLS", 3)
    assert failure(tmp_path).code == "result-damaged"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "\0", "n" * 300])
def test_a_table_outside_the_folder_is_not_read(tmp_path, name):
    path = make().save(tmp_path) / "example.json"
    content = json.loads(path.read_text())
    content["tables"] = {name: "0"}
    del content["hash"]
    path.write_text(json.dumps(content))
    assert failure(tmp_path).code in ("result-table-missing", "result-damaged", "result-table-changed")


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


@pytest.fixture(scope="module")
def every_result():
    return {result.kind: result for result in example_results()}


def test_results_of_every_kind_are_saved_and_loaded(tmp_path, every_result):
    for kind, result in every_result.items():
        folder = result.save(tmp_path / kind)
        loaded = type(result).load(folder)
        assert repr(loaded) == repr(result)
        assert loaded.frame().equals(result.frame())
        assert loaded.provenance == result.provenance == type(result).load_provenance(folder)
        assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_a_search_has_the_calibration_and_the_graph_that_were_saved_with_it(tmp_path, every_result):
    search = every_result["search"]
    assert type(search).load(search.save(tmp_path)).equalized == search.equalized
    for other, name in (
        (
            dataclasses.replace(search, calibration=search.calibration.with_algorithm("percentile", percentile=99.0)),
            "calibration",
        ),
        (dataclasses.replace(search, equalized=b"another"), "equalized"),
    ):
        other.save(tmp_path / "other")
        search.save(tmp_path)
        part = {"calibration": "calibration", "equalized": "search.equalized.onnx"}[name]
        (tmp_path / part).rename(tmp_path / "aside")
        (tmp_path / "other" / part).rename(tmp_path / part)
        with raises(ResultError, "result-changed", names=[name]):
            type(search).load(tmp_path)
        shutil.rmtree(tmp_path / "aside", ignore_errors=True)
    dataclasses.replace(search, equalized=None).save(tmp_path)
    assert type(search).load(tmp_path).equalized is None, "the graph of the search before is gone"


def test_a_killed_save_of_a_search_leaves_all_of_the_old_or_the_new_one(tmp_path, every_result):
    old = every_result["search"]
    new = dataclasses.replace(
        old, calibration=old.calibration.with_algorithm("percentile", percentile=99.0), equalized=None, max_drop=0.5
    )
    folder, whole = tmp_path / "search", old.save(tmp_path / "whole")
    outcomes = set()

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)

    for step in each_kill(prepare, lambda: new.save(folder), every=7):
        loaded = type(old).load(folder)
        found = (loaded.max_drop, loaded.calibration.algorithm, loaded.equalized)
        assert found in {(one.max_drop, one.calibration.algorithm, one.equalized) for one in (old, new)}, step
        outcomes.add(found[0])
    assert outcomes == {old.max_drop, new.max_drop}

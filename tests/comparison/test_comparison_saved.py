"""A comparison that trtkit 0.1.0 saved (references/v1) loads with the present names."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from raising import raises

import trtkit as tk
from trtkit import cli
from trtkit.calibration import Calibration
from trtkit.comparison.comparison import Comparison
from trtkit.errors import ResultError
from trtkit.recipe import Recipe

VERSION_1 = Path(__file__).parent / "references" / "v1"


@pytest.fixture(scope="module")
def comparison():
    return Comparison.load(VERSION_1)


def test_columns_and_facts_have_the_present_names(comparison):
    old = {"picture", "picture_ms", "pictures", "pictures_per_s", "measurable", "truths"}
    frames = [*comparison.tables().values(), comparison.losses()]
    assert not old & {column for frame in frames for column in frame.columns}
    assert not [column for frame in frames for column in frame.columns if column.startswith("coco/")]
    assert comparison.about["eval_images"] == 40
    assert comparison.about["metrics"] == [
        ["mAP50-95(B)", "mAP50-95 by Ultralytics' rule"],
        ["pycocotools/AP", "pycocotools/AP by pycocotools' rule"],
    ]
    assert comparison.provenance.settings["eval_images"] is None


def test_every_view_works(comparison, tmp_path):
    assert comparison.frame()["precision"].to_list() == ["fp32", "fp16", "int8"]
    assert comparison.frame()["pycocotools/AP"].null_count() == 0
    assert len(comparison.findings()) >= 6
    verdicts = {name: (one.recommendation, one.max_drop) for name, one in comparison.verdicts.items()}
    assert verdicts == {"fp16": ("ship", 0.005), "int8": ("can't tell", 0.005)}
    assert len(comparison.losses()) == 4
    assert comparison.changes("int8")["change"].len() > 0
    assert len(comparison.timing().frame()) == 3
    assert comparison.report(tmp_path / "report.html").stat().st_size > 100_000
    for figure in (comparison.plot(), comparison.plot_losses(), comparison.plot_classes()):
        assert len(figure.data) > 0


def test_its_recipes_are_valid(comparison):
    for recipes in comparison.about["recipes"].values():
        assert Recipe.from_dict(recipes["onnx"]).opt_level == 3


def test_saved_again_it_has_hashes_and_loads_alike(comparison, tmp_path):
    again = Comparison.load(comparison.save(tmp_path))
    assert again.frame().equals(comparison.frame())
    assert (again.findings(), again.verdicts) == (comparison.findings(), comparison.verdicts)
    (tmp_path / "comparison.labels.parquet").write_bytes(b"")
    with pytest.raises(ResultError) as e:
        Comparison.load(tmp_path)
    assert e.value.code == "result-table-changed"


def drop_column(folder, table, column):
    path = folder / f"{table}.parquet"
    pl.read_parquet(path).drop(column).write_parquet(path)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("comparison", "precision"),
        ("comparison", "p50_ms"),
        ("comparison.runners", "label"),
        ("comparison.detections", "score"),
        ("comparison.differences", "metric"),
        ("comparison.pictures", "path"),
        ("comparison.truths", "class"),
    ],
)
def test_tables_without_a_column_are_refused_wherever_they_are_read(tmp_path, capsys, table, column):
    folder = tmp_path / "v1"
    shutil.copytree(VERSION_1, folder)
    drop_column(folder, table, column)
    for read in (Comparison.load, tk.gallery):
        with raises(ResultError, "result-damaged"):
            read(folder)
    assert cli.main(["report", str(folder), "--output", str(tmp_path / "report.html")]) == 2
    assert capsys.readouterr().err.startswith("trtkit: load a comparison from")
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: drop_column(folder, "calibration.ranges", "low"),
        lambda folder: (folder / "calibration.ranges.parquet").write_bytes(b"PAR1"),
        lambda folder: (folder / "calibration.stats.parquet").unlink(),
        lambda folder: (folder / "calibration.json").write_text("[" * 5000),
        lambda folder: (folder / "calibration.json").write_bytes(b"\xff"),
    ],
)
def test_export_refuses_a_damaged_calibration(tmp_path, demo_model, damage):
    folder = tmp_path / "calibration"
    Calibration.load(VERSION_1.parents[2] / "calibration/references/v1/calibration").save(folder)
    content = json.loads((folder / "calibration.json").read_text())
    del content["hash"]
    (folder / "calibration.json").write_text(json.dumps(content))
    damage(folder)
    with pytest.raises(ResultError):
        tk.export(demo_model, format="onnx", int8=True, calibration=folder, output=tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["calibration"]

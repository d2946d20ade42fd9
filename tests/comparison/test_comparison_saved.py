"""A comparison that trtkit 0.1.0 saved (references/v1) loads with the present names."""

from pathlib import Path

import pytest

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
    assert len(comparison.verdict()) >= 6
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
    assert again.verdict() == comparison.verdict()
    (tmp_path / "comparison.labels.parquet").write_bytes(b"")
    with pytest.raises(ResultError) as e:
        Comparison.load(tmp_path)
    assert e.value.code == "result-table-changed"

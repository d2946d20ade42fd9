"""Thresholds in the metadata of files: of those that a comparison made, never of the user's own."""

from __future__ import annotations

from types import SimpleNamespace

import onnx
import polars as pl
import tiny_graphs
from deploy_samples import write_onnx

from trtkit.comparison.thresholds import write_thresholds
from trtkit.exporter import Artifact
from trtkit.graph.onnx_file import read_trtkit_metadata
from trtkit.recipe import Recipe


def test_thresholds_are_written_into_files_that_the_comparison_made_and_into_no_other(tmp_path):
    staging, own = tmp_path / "staging", tmp_path / "own"
    staging.mkdir()
    own.mkdir()
    files = {}
    for precision, folder in (("int8", staging), ("mine.onnx", own)):
        path = write_onnx(folder)
        file = Artifact(
            path=path, format="onnx", precision="int8", info=tiny_graphs.info(), recipe=Recipe(model="tiny.pt"),
            model_hash="ab" * 32, seconds=1.0, size=path.stat().st_size,
        )  # fmt: skip
        files[precision] = {"onnx": file}
    before = (own / "tiny.onnx").read_bytes()
    rows = pl.DataFrame({"target": ["recall"], "name": [""], "threshold": [0.21], "differs": [True]})
    evaluations = {name: SimpleNamespace(image_count=3) for name in ("fp32", "int8", "mine.onnx")}
    written = write_thresholds(files, dict.fromkeys(files, rows), staging, evaluations, 0.25)
    facts = read_trtkit_metadata(onnx.load(staging / "tiny.onnx"))["thresholds"]
    assert facts["recall"] == {"all": 0.21, "classes": {}}
    assert written["int8"]["onnx"].size == (staging / "tiny.onnx").stat().st_size > files["int8"]["onnx"].size
    assert (own / "tiny.onnx").read_bytes() == before
    assert written["mine.onnx"] == files["mine.onnx"]

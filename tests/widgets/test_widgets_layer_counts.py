"""One engine has as many layers of each precision in its passport, in the terminal and in the explorer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkit.backends import layer_frame
from trtkit.backends.engine_file import EngineFile, Passport
from trtkit.cli.system_commands import _print_engine
from trtkit.exporter import Artifact
from trtkit.inspection import LayerTable, count_kinds
from trtkit.models.model import ModelInfo
from trtkit.recipe import Recipe
from trtkit.widgets.explorer_state import ExplorerState
from trtkit.widgets.wizard.summary import passport_facts

ROWS = st.fixed_dictionaries({"precision": st.sampled_from(["int8", "fp16", "fp32", None]), "reformat": st.booleans()})


def list_rows(drawn: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    return tuple({"name": f"layer {place}", **row} for place, row in enumerate(drawn))


def read_counts(text: str) -> dict[str, int]:
    """Numbers by name of "2 int8, 1 reformat"."""
    return {name: int(count) for count, name in re.findall(r"(\d+) (\w+)", text)}


@settings(max_examples=25, deadline=None)
@given(drawn=st.lists(ROWS, min_size=1, max_size=30))
def test_every_place_counts_a_layer_once(drawn: list[dict[str, Any]]) -> None:
    rows = list_rows(drawn)
    expected = count_kinds(layer_frame(rows))
    assert sum(expected.values()) == len(rows)
    assert expected.get("reformat", 0) == sum(row["reformat"] for row in drawn)
    info = ModelInfo(task="detect", names={0: "a"}, imgsz=(32, 32), stride=32)
    passport = Passport(backend="tensorrt_rtx", tensorrt="1.7", sm="sm89", precision="int8", layers=rows)
    artifact = Artifact(
        path=Path("x.engine"), format="engine", precision="int8", info=info, recipe=Recipe(model="m.pt", int8=True),
        model_hash="", passport=passport, seconds=1.0, size=1,
    )  # fmt: skip
    assert read_counts(passport_facts(artifact)["Layers"]) == expected
    table = LayerTable(name="x", frame=layer_frame(rows), untimed_reason="not timed")
    assert dict(table.by_precision().select("precision", "layers").iter_rows()) == expected
    state = ExplorerState(tables=(table,))
    for kind, count in expected.items():
        assert state.with_choices(precision=kind).listed.sum() == count
    assert read_counts(state.findings()[0].partition(":")[2]) == expected


def test_the_terminal_counts_as_the_passport_does(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list_rows(
        [{"precision": "int8", "reformat": True}, {"precision": "int8", "reformat": False},
         {"precision": "fp16", "reformat": False}]
    )  # fmt: skip
    passport = Passport(backend="tensorrt_rtx", tensorrt="1.7", sm="sm89", precision="int8", layers=rows)
    file = EngineFile(path=Path("x.engine"), metadata={}, passport=passport, plan=b"", backend="tensorrt_rtx")
    _print_engine(file, with_layers=False)
    assert "3: 1 fp16, 1 int8, 1 reformat" in capsys.readouterr().out

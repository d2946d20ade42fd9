"""Damaged files: every reader returns or raises an error of trtkit's; `make fuzz` runs many more."""

from pathlib import Path

import pytest
from fuzz_kinds import KINDS, run_case

CASES = 30


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_raise_errors_of_trtkit(name: str, tmp_path: Path) -> None:
    results = {seed: run_case(KINDS[name], seed, tmp_path) for seed in range(CASES)}
    assert {seed: found for seed, (outcome, found) in results.items() if outcome == "raw"} == {}
    assert {outcome for outcome, _ in results.values()} >= {"clean"}, "damage is noticed"


@pytest.mark.parametrize("name", KINDS)
def test_whole_files_are_read(name: str, tmp_path: Path) -> None:
    read = 0
    seeds = KINDS[name].seeds()
    for index, files in enumerate(seeds):
        folder = tmp_path / str(index)
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        if index or name != "engine":  # a bare plan names no task
            KINDS[name].read(folder)
            read += 1
    assert read >= max(1, len(seeds) - 1)

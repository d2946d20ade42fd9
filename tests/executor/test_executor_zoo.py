"""A zoo on two worker processes: the table of one process, also if a worker is killed midway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from raising import raises
from zoo_kit import SMALL, Kit, make_kit

import trtkit as tk
from trtkit.errors import CapabilityError, OutputError
from trtkit.model_zoo import workers

dask_cluster = pytest.importorskip("dask_cluster")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return make_kit(tmp_path_factory.mktemp("zoo"))


def test_the_table_is_that_of_one_process_also_if_a_worker_is_killed(
    executor: Any, kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(folder: str, **settings: Any) -> tk.Zoo:
        table = tk.zoo(kit.models, kit.data, output=folder, **SMALL, **settings)
        # It is part of the commands.
        Path(folder).rename(Path(f"{folder}-{len(list(tmp_path.iterdir()))}"))
        return table

    serial = run("out")
    killed = dask_cluster.same_after_kill(executor, "zoo rows", lambda **settings: run("out", **settings))
    assert serial.rows["status"].to_list() == ["done"] * 4
    assert killed.rows.equals(serial.rows)


def test_a_row_that_fails_on_a_worker_is_a_row_with_its_code(
    executor: Any, kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(Path(kit.models[1]).read_bytes())
    monkeypatch.setattr("trtkit.model_zoo.zoo.run_on_executor", lambda *some, **more: _break(broken, *some, **more))
    table = tk.zoo(
        [kit.models[1], broken], kit.data, output=tmp_path / "out", **{**SMALL, "precisions": ("fp32",)},
        executor=executor,
    )  # fmt: skip
    assert table.rows.select("status", "error_code").rows() == [("done", None), ("failed", "onnx-damaged")]


def _break(file: Path, *arguments: Any, **settings: Any) -> None:
    """Damage a model after it was checked."""
    file.write_bytes(b"no graph")
    workers.run_on_executor(*arguments, **settings)


def test_engines_need_a_worker_with_a_gpu_and_rows_a_shared_disk(
    executor: Any, kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {**SMALL, "precisions": ("fp32",), "executor": executor, "output": tmp_path / "out"}
    with raises(CapabilityError, "executor-gpu-missing"):
        tk.zoo(kit.models[1:], kit.data, **{**settings, "backends": "tensorrt"})
    monkeypatch.setattr(workers, "load_row", lambda *_: None)
    with raises(OutputError, "zoo-output-not-shared"):
        tk.zoo(kit.models[1:], kit.data, **settings)

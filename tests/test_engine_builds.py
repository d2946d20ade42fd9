"""export(builds=N): the fastest build that agrees with ONNX Runtime is the one that is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import tiny_graphs
from planted_faults import FAULTS
from raising import raises
from replaced_builder import replace_builder

import trtkit as tk
from trtkit import backends
from trtkit.errors import BuildError, CapabilityError, RecipeError
from trtkit.progress import Event


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return replace_builder(monkeypatch)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import cv2

    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(tiny_graphs.images(3)):
        cv2.imwrite(str(folder / f"{index}.png"), image)
    return folder


def export(folder: Path, images: Path, **settings: object) -> tk.Artifact:
    source = folder / "tiny.onnx"
    onnx.save(tiny_graphs.detector(), source)
    return tk.export(source, backend="tensorrt", data=images, output=folder / "tiny.engine", **settings)


def which_build(artifact: tk.Artifact) -> int:
    return backends.read_engine(artifact.path).plan[4]


def test_the_fastest_of_several_builds_is_kept(builder: SimpleNamespace, images: Path, tmp_path: Path) -> None:
    builder.times = [3.0, 1.0, 2.0]
    events: list[Event] = []
    artifact = export(tmp_path, images, builds=3, progress=events.append)
    assert artifact.build_latencies == (3.0, 1.0, 2.0)
    assert which_build(artifact) == 1
    assert artifact.verification is not None
    assert artifact.verification.verdict == "agrees"
    # A build that read what another one measured would choose the same kernels.
    assert [settings.timing_cache for settings in builder.settings] == [False] * 3
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.onnx", "tiny.engine"}
    assert "time the builds" in {event.stage for event in events}
    assert artifact.recipe.builds == 3


def test_one_build_is_neither_timed_nor_without_the_cache(
    builder: SimpleNamespace, images: Path, tmp_path: Path
) -> None:
    artifact = export(tmp_path, images)
    assert artifact.build_latencies == ()
    assert [settings.timing_cache for settings in builder.settings] == [True]


def test_a_fast_build_that_is_wrong_is_left(builder: SimpleNamespace, images: Path, tmp_path: Path) -> None:
    builder.times, builder.fault = [2.0, 1.0, 3.0], [None, FAULTS["bias"], None]
    assert which_build(export(tmp_path, images, builds=3)) == 0


def test_without_verification_the_fastest_is_kept_whatever_it_computes(
    builder: SimpleNamespace, images: Path, tmp_path: Path
) -> None:
    builder.times, builder.fault = [2.0, 1.0], [None, FAULTS["bias"]]
    assert which_build(export(tmp_path, images, builds=2, verify=False)) == 1


def test_nothing_is_written_where_every_build_is_wrong(builder: SimpleNamespace, images: Path, tmp_path: Path) -> None:
    builder.times, builder.fault = [2.0, 1.0], FAULTS["bias"]
    with raises(BuildError, "engine-differs"):
        export(tmp_path, images, builds=2)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.onnx"}


def test_what_several_builds_need_is_checked_before_any(
    builder: SimpleNamespace, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raises(RecipeError, "recipe-needs-engine", name="builds"):
        export(tmp_path, images, builds=2, format="onnx")
    with raises(RecipeError, "recipe-builds-need-weights"):
        export(tmp_path, images, builds=2, weights="stripped")

    def refuse(*_: object, **__: object) -> None:
        raise CapabilityError("run", "there is no GPU", "run it elsewhere", code="gpu-missing")

    monkeypatch.setattr(backends, "require_run", refuse)
    with raises(CapabilityError, "gpu-missing"):
        export(tmp_path, images, builds=2)
    assert not builder.settings

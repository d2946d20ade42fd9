"""Timing cache files: saved, merged, deleted when broken; none makes a build fail."""

from __future__ import annotations

import dataclasses
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_graphs
from raising import raises

from trtkit import backends
from trtkit.backends import BuildSettings, ImplicitCalibration
from trtkit.backends.trt.network import TimingCache
from trtkit.errors import BuildError
from trtkit.files import user_cache_dir

SMALL = BuildSettings(imgsz=(32, 32))


def test_one_file_by_gpu_and_version(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    file = tmp_path / "cache" / "timing" / "tensorrt-8.6.0-nvidia-h100-80gb-hbm3-sm90.cache"
    built = backends.build(tiny_graphs.detector(), SMALL)
    assert file.read_bytes().strip() == b"timed tiny"
    assert built.facts["timing_cache"] == str(file)
    assert built.facts["timing_cache_bytes"] == 0
    again = backends.build(tiny_graphs.detector(), SMALL)
    assert again.facts["timing_cache_bytes"] > 0
    assert b"timed tiny" in trt.fake.builds[-1][1].cache.data


def test_disabled_and_a_given_file(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=False))
    assert trt.fake.builds[-1][1].cache is None
    assert not (tmp_path / "cache").exists()
    backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=tmp_path / "mine.cache"))
    assert (tmp_path / "mine.cache").is_file()


@pytest.mark.parametrize("data", [b"broken", b"mismatch", b"no cache"])
def test_a_file_that_does_not_load_is_deleted_with_a_warning(tensorrt: Any, tmp_path: Path, data: bytes) -> None:
    tensorrt("8.6.0")
    file = tmp_path / "mine.cache"
    file.write_bytes(data)
    with pytest.warns(UserWarning, match=r"mine\.cache"):
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=file))
    assert data not in file.read_bytes()


def test_a_file_that_breaks_the_build_is_deleted_and_the_build_repeated(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    trt.fake.cache_breaks = True
    file = tmp_path / "mine.cache"
    file.write_bytes(b"timed elsewhere")
    with pytest.warns(UserWarning, match=r"mine\.cache"):
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=file))
    assert len(trt.fake.builds) == 2
    assert b"elsewhere" not in file.read_bytes()


def test_a_file_that_did_not_break_the_build_is_kept(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    trt.fake.break_build = "Myelin error from a graph it can't build"
    file = tmp_path / "mine.cache"
    file.write_bytes(b"timed elsewhere")
    with raises(BuildError, "build-failed"):
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=file))
    assert len(trt.fake.builds) == 2
    assert file.read_bytes() == b"timed elsewhere"


def test_an_error_names_the_reasons_of_both_tries(
    tensorrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = tensorrt("8.6.0")
    reasons = iter(["Myelin error from unknown graph", "no kernel for /model.23/conv"])
    build = trt.Builder.build_serialized_network

    def failing(builder: Any, network: Any, config: Any) -> Any:
        trt.fake.break_build = next(reasons)
        return build(builder, network, config)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", failing)
    file = tmp_path / "mine.cache"
    file.write_bytes(b"timed elsewhere")
    with raises(BuildError, "build-failed") as caught:
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=file))
    reason = caught.value.fields["reason"]
    assert reason.startswith("Myelin error from unknown graph")
    assert reason.endswith("no kernel for /model.23/conv")


def _calibrated(file: Path) -> BuildSettings:
    file.write_bytes(b"timed elsewhere")
    images = iter([np.full((1, 3, 32, 32), value, np.float32) for value in (0.0, 1.0)])
    return dataclasses.replace(SMALL, precision="int8", implicit=ImplicitCalibration(batches=images), timing_cache=file)


def test_a_retry_uses_a_new_network_and_the_first_calibration(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    trt.fake.cache_breaks = True
    with pytest.warns(UserWarning, match=r"mine\.cache"):
        backends.build(tiny_graphs.detector(), _calibrated(tmp_path / "mine.cache"))
    assert len(trt.fake.calibrated) == 3
    assert trt.fake.calibrated[-1] == "cache"
    (first, _), (second, _) = trt.fake.builds
    assert second is not first


def test_no_retry_after_a_failed_calibration(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    trt.fake.break_build = "Myelin error from unknown graph"
    with raises(BuildError, "build-failed", reason="Myelin error from unknown graph"):
        backends.build(tiny_graphs.detector(), _calibrated(tmp_path / "mine.cache"))
    assert len(trt.fake.builds) == 1


def test_an_unwritable_folder_is_a_warning(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"mine\.cache"):
        built = backends.build(
            tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=tmp_path / "file" / "mine.cache")
        )
    assert built.plan
    assert (tmp_path / "file").read_text() == ""


class _Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def combine(self, other: _Cache, ignore_mismatch: bool) -> bool:
        self.data = b"\n".join(sorted(set(self.data.split(b"\n")) | set(other.data.split(b"\n")) - {b""}))
        return True

    def serialize(self) -> bytes:
        return self.data


class _Config:
    def __init__(self, cache: _Cache) -> None:
        self.cache = cache

    def get_timing_cache(self) -> _Cache:
        return self.cache

    def create_timing_cache(self, data: bytes) -> _Cache:
        return _Cache(data)


def _builder(path: str, name: str) -> None:
    for turn in range(10):
        TimingCache(Path(path)).save(_Config(_Cache(f"{name} {turn}".encode())))


def test_concurrent_builders_lose_no_timings(tmp_path: Path) -> None:
    path = tmp_path / "shared.cache"
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=_builder, args=(str(path), name)) for name in ("one", "two", "three")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    expected = {f"{name} {turn}" for name in ("one", "two", "three") for turn in range(10)}
    assert set(path.read_text().split("\n")) == expected


def test_cache_dir_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRTKIT_CACHE", str(tmp_path / "a"))
    assert user_cache_dir() == tmp_path / "a"
    monkeypatch.delenv("TRTKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert user_cache_dir() == tmp_path / "b" / "trtkit"

"""The stages of `predict`: which a runner has, and that their times lie within the whole call's."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raising import raises
from test_backends_runner import engine
from tiny_graphs import detector, images

from trtkit import backends
from trtkit.backends.stages import STAGES, enter_stage, time_stages
from trtkit.data import image_arguments
from trtkit.errors import DataError, RecipeError
from trtkit.progress import available_cores


class Ticks:
    """A clock that goes on by one at every reading."""

    def __init__(self) -> None:
        self.ticks = itertools.count()
        self.synchronized = 0

    def read(self) -> int:
        assert not self.synchronized
        return next(self.ticks)

    def elapsed_ms(self, begin: int, end: int) -> float:
        assert self.synchronized == 1
        return float(end - begin)

    def synchronize(self) -> None:
        self.synchronized += 1


@given(st.lists(st.sampled_from(list(STAGES)), max_size=12))
def test_each_stage_lasts_until_the_next_within_the_call(entered: list[str]) -> None:
    total, stages = time_stages(lambda: [enter_stage(stage) for stage in entered], Ticks())
    assert total == len(entered) + 1
    assert stages == {stage: entered.count(stage) for stage in STAGES if stage in entered}
    # What comes before the first stage belongs to none.
    assert sum(stages.values()) == total - 1
    assert list(stages) == [stage for stage in STAGES if stage in entered]


def test_a_stage_of_another_name_is_refused_where_somebody_listens() -> None:
    enter_stage("prepare")
    with raises(RecipeError, "stage-unknown", value="prepare", names=tuple(STAGES)):
        time_stages(lambda: enter_stage("prepare"), Ticks())
    # An error ends the listening.
    enter_stage("prepare")


def test_other_threads_do_not_count() -> None:
    def work() -> None:
        enter_stage("engine")
        other = threading.Thread(target=enter_stage, args=("upload",))
        other.start()
        other.join()

    assert list(time_stages(work, Ticks())[1]) == ["engine"]


def read_stages(runner: Any, chosen: Any, clock: Any = None) -> tuple[float, dict[str, float]]:
    return time_stages(lambda: runner.predict(chosen), clock or runner.stage_clock())


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, images(3), strict=True):
        cv2.imwrite(str(path), image)
    return [str(path) for path in paths]


def test_onnxruntime_copies_nothing_and_decodes_files_alone(files: list[str]) -> None:
    with backends.open(detector()) as runner:
        assert list(read_stages(runner, images(1))[1]) == ["preprocess", "engine", "postprocess"]
        total, stages = read_stages(runner, files[:1], Ticks())
        assert stages == {"decode": 1, "preprocess": 1, "engine": 1, "postprocess": 1}
        assert total == 5


def test_an_engine_has_every_stage(tensorrt: Callable[..., Any], tmp_path: Path, files: list[str]) -> None:
    tensorrt("8.6.0")
    with backends.open(engine(tmp_path, batch=4)[0]) as runner:
        assert runner.decode_threads == min(available_cores(), 8)
        total, stages = read_stages(runner, files, Ticks())
        # Images are copied to pinned memory and then to the GPU; boxes are postprocessed before they are copied, and
        # put into the image's pixels after it.
        assert stages == {**dict.fromkeys(STAGES, 1), "upload": 2, "postprocess": 2}
        total, stages = read_stages(runner, files)
        assert list(stages) == list(STAGES)
        assert sum(stages.values()) <= total
        assert list(time_stages(lambda: runner.infer(np.zeros((1, 3, 32, 32), np.float32)), Ticks())[1]) == [
            "upload",
            "engine",
            "download",
        ]


def test_files_of_the_next_batch_are_decoded_meanwhile_and_in_order(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = threading.Semaphore(0)
    true_read = image_arguments.read_image

    def read(path: str, channels: int) -> np.ndarray:
        reading.release()
        return true_read(path, channels)

    monkeypatch.setattr(image_arguments, "read_image", read)
    with backends.open(detector(batch=1)) as runner:
        assert runner.decode_threads == 1
        expected = [runner.predict(path)[0].boxes.tolist() for path in files * 2]
        for _ in files * 2:
            reading.acquire()
        batches = runner.read_batches(files * 2)
        first = next(batches)
        # The second one is read although nobody has asked for it.
        assert reading.acquire(timeout=10)
        assert reading.acquire(timeout=10)
        assert np.array_equal(first[0], cv2.imread(files[0]))
        batches.close()
        assert [one.boxes.tolist() for one in runner.predict(files * 2)] == expected
        missing = str(tmp_path / "missing.png")
        with raises(DataError, "image-unreadable", path=Path(missing)):
            runner.predict([*files, missing])

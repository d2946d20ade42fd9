"""Files read whole, of limited size."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from trtkit.files import read_limited


def test_a_file_takes_no_more_room_than_it_has_bytes(tmp_path: Path) -> None:
    path, data = tmp_path / "image.jpg", bytes(range(256)) * 1000
    path.write_bytes(data)
    tracemalloc.start()
    try:
        assert read_limited(path, 2**30) == data
        assert tracemalloc.get_traced_memory()[1] < 2 * len(data)
    finally:
        tracemalloc.stop()


def test_a_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(b"1234")
    assert read_limited(path, 4) == b"1234"
    with pytest.raises(ValueError, match="4 bytes, more than 3"):
        read_limited(path, 3)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        read_limited(tmp_path / "pipe", 10)

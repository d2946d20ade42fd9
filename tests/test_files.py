from __future__ import annotations

import errno
from pathlib import Path

import pytest

from trtkit.errors import CancelledError, DiskFullError, OutputExistsError, TrtkitError
from trtkit.files import atomic_write, hash_parts, write_bytes, write_json
from trtkit.progress import Event, Reporter


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.bin"
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    write_bytes(path, b"whole")
    assert path.read_bytes() == b"whole"


def test_the_existing_file_survives_a_failure(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "file", b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "file", b"old")
    with pytest.raises(OutputExistsError) as e:
        write_bytes(path, b"new", overwrite=False)
    assert (e.value.code, e.value.fields["path"]) == ("output-exists", str(path))
    assert path.read_bytes() == b"old"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError) as e, atomic_write(tmp_path / "file") as temporary:
        temporary.write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (e.value.code, e.value.fields["path"]) == ("disk-full", str(tmp_path / "file"))
    assert list(tmp_path.iterdir()) == []


def test_hashes_depend_on_boundaries() -> None:
    assert hash_parts("ab", "c") != hash_parts("a", "bc")
    assert hash_parts("ab", b"c") == hash_parts(b"ab", "c")


def test_json_round_trip(tmp_path: Path) -> None:
    assert write_json(tmp_path / "x.json", {"ü": 1}).read_text(encoding="utf-8") == '{\n  "ü": 1\n}\n'


def test_a_reporter_reports_and_cancels() -> None:
    class Flag:
        on = False

        def is_set(self) -> bool:
            return self.on

    events: list[Event] = []
    flag = Flag()
    reporter = Reporter(events.append, flag)
    reporter.step("build", 1, 3)
    assert events == [Event(stage="build", done=1, total=3)]
    flag.on = True
    with pytest.raises(CancelledError) as e:
        reporter.step("build", 2, 3)
    assert (e.value.code, e.value.asked) == ("cancelled", "build")
    assert len(events) == 1


def test_errors_are_one_sentence_with_code_and_fields() -> None:
    error = TrtkitError("open x.engine", "it was built for another GPU", "build it here", code="x", path="x.engine")
    assert str(error) == "open x.engine: it was built for another GPU; build it here."
    assert (error.code, error.fields) == ("x", {"path": "x.engine"})
    assert DiskFullError("a", "b", "c").code == "disk-full"

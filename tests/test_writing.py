from __future__ import annotations

import ast
import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from interruption import each_kill
from raising import raises

from trtkit import unfinished, writing
from trtkit.errors import CancelledError, DiskFullError, OutputError, OutputExistsError, TrtkitError
from trtkit.files import escape_surrogates, hash_parts, read_json
from trtkit.progress import Event, Reporter
from trtkit.writing import (
    atomic_folder,
    atomic_write,
    check_output,
    check_output_folder,
    find_published,
    publish_interrupted,
    replace_folder,
    restore_interrupted,
    temporary_folder,
    write_bytes,
    write_json,
)


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


def test_lone_surrogates_survive_json(tmp_path: Path) -> None:
    """As in paths that are not UTF-8; what the file holds is UTF-8 nevertheless."""
    value = {"caf\udce9": ["\ud800", "é\U0001f600", "\\ud800"]}
    path = write_json(tmp_path / "a.json", value)
    assert read_json(path) == json.loads(path.read_bytes().decode("utf-8")) == value
    assert escape_surrogates("caf\udce9/é\U0001f600") == "caf\\udce9/é\U0001f600"
    assert hash_parts("\ud800") != hash_parts("\ud801")


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


# Kills.


def list_names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("before", [b"old", None])
def test_a_killed_writer_of_a_file_leaves_the_old_or_the_new_one(tmp_path: Path, before: bytes | None) -> None:
    folder, path = tmp_path / "deep", tmp_path / "deep" / "model.onnx"
    outcomes = []

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if before is not None:
            write_bytes(path, before)

    for step in each_kill(prepare, lambda: write_bytes(path, b"new")):
        outcomes.append(path.read_bytes() if path.exists() else None)
        assert outcomes[-1] in (before, b"new"), step
        write_bytes(path, b"again")
        assert list_names(folder) == {"model.onnx"}, f"what was left at {step} goes with the next writer"
        assert path.read_bytes() == b"again"
    assert set(outcomes) == {before, b"new"}


OLD = dict.fromkeys(("a.parquet", "gone.parquet", "sub/c.parquet", "sub/x.json", "x.json"), "1")
NEW = {name: "2" for name in OLD if name != "gone.parquet"}


def write_folder(folder: Path, content: dict[str, str]) -> None:
    with atomic_folder(folder, remove=["gone.parquet"]) as staging:
        for name, text in content.items():
            if "/" not in name:
                (staging / name).write_text(text)
        with atomic_folder(staging / "sub") as inner:
            for name in ("c.parquet", "x.json"):
                (inner / name).write_text(content[f"sub/{name}"])


def read_folder(folder: Path, names: Iterator[str] | list[str]) -> dict[str, str]:
    """As a reader finds the files; in the folder inside, its own publication may be under way."""
    found = {}
    for name in names:
        parent, _, file = name.rpartition("/")
        path = find_published(find_published(folder, parent) if parent else folder, file)
        if path.exists():
            found[name] = path.read_text()
    return found


@pytest.mark.parametrize("can_move", [True, False])
def test_a_killed_writer_of_a_folder_leaves_the_old_or_the_new_files(
    tmp_path: Path, can_move: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "result"
    outcomes = []

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(folder, OLD)
        (folder / "mine.txt").write_text("kept")

    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    for step in each_kill(prepare, lambda: write_folder(folder, NEW)):
        with monkeypatch.context() as patch:
            if not can_move:
                patch.setattr(writing, "locked_folder", refuse)
            publish_interrupted(folder)
            outcomes.append(read_folder(folder, list(NEW)))
        assert outcomes[-1] in (dict.fromkeys(NEW, "1"), NEW), step
        write_folder(folder, NEW)
        assert read_folder(folder, list(OLD)) == NEW, step
        assert list_names(folder) == {*NEW, "mine.txt"}, step
    assert NEW in outcomes
    assert len(outcomes) > 40


def test_a_failed_writer_of_a_folder_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a" / "b") as staging:
        (staging / "x").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        second.write_bytes(b"second")
        first.write_bytes(b"first")
    assert path.read_bytes() == b"first"
    with atomic_write(path) as first:
        first.replace(path)
        with atomic_write(path) as second:
            assert second == first, "the name is free again"
            second.write_bytes(b"second")
        first.write_bytes(b"late")
    assert list_names(tmp_path) == {"model.onnx"}


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_killed_replacement_loses_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    if not exchanges:
        monkeypatch.setattr(writing, "_exchange", lambda first, second: False)
    folder = tmp_path / "out"
    old, new = {"a": "old", "sub/b": "old"}, {"a": "new", "sub/c": "new"}

    def fill(parent: Path, content: dict[str, str]) -> None:
        for name, text in content.items():
            (parent / name).parent.mkdir(exist_ok=True, parents=True)
            (parent / name).write_text(text)

    def read() -> dict[str, str]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_text() for path in files}

    def prepare() -> None:
        for path in tmp_path.iterdir():
            shutil.rmtree(path)
        fill(folder, old)

    def write() -> None:
        with replace_folder(folder) as staging:
            fill(staging, new)

    states = []
    for step in each_kill(prepare, write):
        assert exchanges is False or folder.exists(), step
        restore_interrupted(folder)
        assert read() in (old, new), step
        states.append(read())
    assert states[0] == new
    assert old in states
    assert new in states[1:], "the last steps are after the exchange"
    prepare()
    write()
    assert read() == new


def test_a_replacement_that_fails_keeps_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    write_bytes(folder / "x", b"old")
    with pytest.raises(KeyboardInterrupt), replace_folder(folder) as staging:
        (staging / "x").write_bytes(b"new")
        raise KeyboardInterrupt
    monkeypatch.setattr(writing, "_exchange", lambda first, second: False)
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise PermissionError(errno.EACCES, "a file in it is open")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with (
        raises(OutputError, "output-not-writable", path=str(folder)),
        replace_folder(folder) as staging,
    ):
        (staging / "x").write_bytes(b"new")
    assert (folder / "x").read_bytes() == b"old"
    assert list_names(tmp_path) == {"out/x"}


def test_a_link_to_a_folder_is_replaced_not_followed(tmp_path: Path) -> None:
    write_bytes(tmp_path / "target" / "x", b"kept")
    for name in ("target", "missing"):
        link = tmp_path / "link"
        link.symlink_to(name)
        with replace_folder(link) as staging:
            (staging / "x").write_bytes(b"new")
        assert not link.is_symlink()
        assert (link / "x").read_bytes() == b"new"
        shutil.rmtree(link)
    assert (tmp_path / "target" / "x").read_bytes() == b"kept"


def test_without_locks_each_writer_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "lock", lambda handle: None)
    with atomic_write(tmp_path / "x.onnx") as first, atomic_write(tmp_path / "x.onnx") as second:
        assert first != second
        first.write_bytes(b"1")
        second.write_bytes(b"2")
    write_folder(tmp_path, OLD)
    assert list_names(tmp_path) == {*OLD, "x.onnx"}


def test_what_a_killed_process_left_in_the_temporary_folder_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = (
        "import os\nfrom trtkit.writing import temporary_folder\n"
        "with temporary_folder() as folder:\n    (folder / 'x').write_text('x')\n    os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with temporary_folder() as folder, temporary_folder() as other:
        assert sorted(tmp_path.iterdir()) == sorted([folder, other])
    assert list(tmp_path.iterdir()) == []


# What can't be written.


def test_a_dangling_link_is_kept_without_overwrite(tmp_path: Path) -> None:
    for target in ("missing", "link"):
        link = tmp_path / "link"
        link.symlink_to(target)
        for act in (check_output, lambda path: write_bytes(path, b"x", overwrite=False)):
            with raises(OutputExistsError, "output-exists", path=str(link)):
                act(link)
        assert link.readlink() == Path(target)
        write_bytes(check_output(link, overwrite=True), b"new")
        assert not link.is_symlink()
        assert list_names(tmp_path) == {"link"}
        link.unlink()


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    target, link = write_bytes(tmp_path / "target", b"kept"), tmp_path / "link"
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert (target.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"kept", b"new", False)


def make_fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: folder, "output-is-folder"),
        (lambda folder: make_fifo(folder / "pipe"), "output-not-a-file"),
        (lambda folder: Path("/dev/null"), "output-not-a-file"),
        (lambda folder: write_bytes(folder / "f", b"") / "x.onnx", "output-parent-not-folder"),
        (lambda folder: write_bytes(folder / "f", b"") / "deep" / "x.onnx", "output-parent-not-folder"),
        (lambda folder: folder / ("n" * 256), "output-name-too-long"),
        (lambda folder: folder / ("\u00fc" * 128), "output-name-too-long"),
        (lambda folder: folder / ("n" * 256) / "x.onnx", "output-name-too-long"),
        (lambda folder: folder / "missing" / ("n" * 256), "output-name-too-long"),
        (lambda folder: folder.joinpath(*["n" * 200] * 30), "output-name-too-long"),
        (lambda folder: folder / "a\0b", "output-name-invalid"),
        (lambda folder: folder / "a\0b" / "x", "output-name-invalid"),
        (lambda folder: folder / "caf\udce9", "output-name-invalid"),
        (lambda folder: folder / "caf\udce9" / "x", "output-name-invalid"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path: Path, make, code) -> None:
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    for act in (lambda: check_output(path, overwrite=True), lambda: write_bytes(path, b"x")):
        with raises(OutputError, code, path=str(path)) as caught:
            act()
        assert len(str(caught.value)) < 500
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="it takes a file system that refuses files")
def test_a_file_system_that_takes_no_files_is_one_sentence() -> None:
    for path in (Path("/proc/x.onnx"), Path("/proc/missing/x.onnx")):
        with raises(OutputError, "output-not-writable", path=str(path)):
            write_bytes(path, b"x")


def test_folders_are_checked_with_the_names_in_them(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"")
    (tmp_path / "model.onnx").mkdir()
    assert check_output_folder(tmp_path / "new" / "deep", ["a", "b"]) == tmp_path / "new" / "deep"
    cases: list[tuple[Path, list[str], str]] = [
        (tmp_path / "file", [], "output-parent-not-folder"),
        (tmp_path / "file" / "x", [], "output-parent-not-folder"),
        (tmp_path, ["model.onnx"], "output-is-folder"),
        (tmp_path / "new", ["n" * 256], "output-name-too-long"),
        (tmp_path, ["n" * 256], "output-name-too-long"),
        (tmp_path / "a\0b", [], "output-name-invalid"),
    ]
    for folder, names, code in cases:
        with raises(OutputError, code):
            check_output_folder(folder, names)
    assert list_names(tmp_path) == {"file"}


@pytest.mark.parametrize("name", ["n" * 245, "n" * 255, "n" * 250 + ".onnx", "\u00fc" * 127, "x." + "s" * 250])
def test_names_of_up_to_255_bytes_are_written(tmp_path: Path, name: str) -> None:
    path = write_bytes(check_output(tmp_path / name), b"x")
    write_folder(tmp_path / "folder" / name[:200], OLD)
    assert path.read_bytes() == b"x"
    assert list_names(tmp_path) == {name, *(f"folder/{name[:200]}/{file}" for file in OLD)}


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let this process write no file beyond a size; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_with_polars(path: Path) -> None:
    pl.DataFrame({"x": os.urandom(1 << 16).hex()}).write_parquet(path)


@pytest.mark.parametrize("write", [write_with_polars, lambda path: path.write_bytes(bytes(1 << 17))])
def test_a_file_beyond_the_limit_of_the_process_is_one_sentence(tmp_path: Path, write) -> None:
    path = write_bytes(tmp_path / "x.parquet", b"old")
    with raises(OutputError, "output-too-large", path=str(path)), file_size_limit(4096), atomic_write(path) as half:
        write(half)
    assert path.read_bytes() == b"old"
    with raises(OutputError, "output-too-large"), file_size_limit(4096), atomic_folder(tmp_path) as staging:
        write(staging / "x.parquet")
    assert list_names(tmp_path) == {"x.parquet"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        pl.exceptions.ComputeError("No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed: No space left on device"),
    ],
)
def test_a_full_disk_is_one_sentence_whoever_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error) -> None:
    for write in (atomic_write, atomic_folder):
        with raises(DiskFullError, "disk-full", path=str(tmp_path / "x")), write(tmp_path / "x"):
            raise error
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with raises(DiskFullError, "disk-full", path=str(tmp_path)), temporary_folder():
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_fsync_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bytes(tmp_path / "x", b"old")

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with raises(DiskFullError, "disk-full"):
        write_bytes(path, b"new")
    with raises(DiskFullError, "disk-full"):
        write_folder(tmp_path, OLD)
    assert path.read_bytes() == b"old"
    assert list_names(tmp_path) == {"x"}


def test_a_library_that_fails_without_a_reason_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    for usage, kind in ((full, DiskFullError), (full._replace(free=1 << 30), RuntimeError)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        with pytest.raises(kind), atomic_write(tmp_path / "x.pt"):
            raise RuntimeError("unexpected pos 64 vs 0")


def test_errors_of_other_kinds_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(FileNotFoundError), temporary_folder():
        raise FileNotFoundError(errno.ENOENT, "an image is missing")
    for write in (atomic_write, atomic_folder):
        with pytest.raises(ValueError, match="about the content"), write(tmp_path / "x"):
            raise ValueError("about the content")


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b"{", b""])
def test_json_that_is_none_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(write_bytes(tmp_path / "x.json", content))
    with pytest.raises(ValueError, match="more than"):
        read_json(write_bytes(tmp_path / "x.json", b"[0, 1, 2]"), limit=4)
    with pytest.raises(ValueError, match="regular"):
        read_json(make_fifo(tmp_path / "pipe"))


WRITERS = {
    "writing.py": "the writers",
    "results.py": "tables, into the folder of atomic_folder",
    "inspection/layer_table.py": "a table, into the file of atomic_write",
    "cli/predict_command.py": "a table, into memory",
    "deployment": "modules of targets, into the new folder of deploy(); programs that run without trtkit",
    "backends/engine_file.py": "an engine, into the file of atomic_write",
    "backends/trt/isolated_build.py": "the job of a child process, into temporary_folder",
    "backends/trt/network.py": "a lock file",
    "downloads.py": "a part, which the next download goes on with",
}
WRITING = {
    *("write_text", "write_bytes", "write_parquet", "write_csv", "write_html", "write_image", "imwrite", "savez"),
    *("TemporaryDirectory", "NamedTemporaryFile", "mkdtemp", "mkstemp", "to_file", "copyfile", "copytree", "move"),
}


def writes(node: ast.AST) -> bool:
    """Whether a call writes a file by itself."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name))):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
    modes = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    is_open = name == "open" and any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax") for mode in modes)
    return is_open or (name in WRITING and isinstance(node.func, ast.Attribute))


def test_everything_is_written_by_the_one_writer() -> None:
    package = Path(writing.__file__).parent
    found = {
        path.relative_to(package)
        for path in package.rglob("*.py")
        if any(writes(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert {"deployment" if path.parts[0] == "deployment" else path.as_posix() for path in found} == set(WRITERS)

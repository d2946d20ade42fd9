"""Downloads from a server on this machine: resumed, checked, refused; the network is never used."""

from __future__ import annotations

import http.server
import io
import json
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raising import raises

import trtkit as tk
from trtkit import demo, downloads
from trtkit.cli import main
from trtkit.data import open_dataset
from trtkit.errors import CheckpointError, DataError, DiskFullError, DownloadError
from trtkit.files import hash_file

CONTENT = np.random.default_rng(0).bytes(200_000)
NAME = "yolo11n.pt"


class Server:
    """Serves `files` with ranges; `cuts` are the bytes after which the next connections end."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {f"/weights/{NAME}": CONTENT}
        self.cuts: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        self.redirects: dict[str, str] = {}
        self.version, self.status, self.has_length, self.has_version = "one", 200, True, True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def answer(self, handler: Any) -> None:
        asked_range = handler.headers.get("Range")
        self.requests.append((handler.path, asked_range))
        if handler.path in self.redirects:
            handler.send_response(302)
            handler.send_header("Location", self.redirects[handler.path])
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        content = self.files.get(handler.path)
        if content is None or self.status != 200:
            handler.send_error(404 if content is None else self.status)
            return
        start = int(asked_range.removeprefix("bytes=").removesuffix("-")) if asked_range else 0
        if start and handler.headers.get("If-Range") == f'"{self.version}"':
            if start >= len(content):
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            start = 0
            handler.send_response(200)
        rest = content[start:]
        if self.has_version:
            handler.send_header("ETag", f'"{self.version}"')
        if self.has_length:
            handler.send_header("Content-Length", str(len(rest)))
        handler.end_headers()
        handler.wfile.write(rest[: self.cuts.pop(0)] if self.cuts else rest)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server()
    monkeypatch.setattr(downloads, "WEIGHTS_URL", f"{running.url}/weights")
    monkeypatch.setattr(downloads, "DATASETS_URL", f"{running.url}/data")
    monkeypatch.setattr(downloads, "HOSTS", ("127.0.0.1",))
    monkeypatch.setattr(downloads, "RETRY_SECONDS", 0)
    monkeypatch.setenv("TRTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("TRTKIT_DOWNLOAD", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield running
    running.http.shutdown()
    running.http.server_close()


def get(name: str = NAME) -> Path:
    return downloads.locate(Path(name), True)


def make_zip(**members: bytes | str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


# Names.


def make_broken_zip() -> bytes:
    """An archive whose directory is right and whose compressed data is not."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("coco8/a.txt", "a" * 1000)
    content = bytearray(buffer.getvalue())
    start = content.index(b"coco8/a.txt") + len("coco8/a.txt")
    content[start] = 0xFF
    return bytes(content)


def test_published_names() -> None:
    found = downloads.find_asset("yolo26s-pose.pt")
    assert found is not None
    assert found.url.endswith("/yolo26s-pose.pt")
    assert found.url.startswith("https://github.com/ultralytics/assets/releases/download/v")
    assert "AGPL-3.0" in found.license
    data = downloads.find_asset("coco8.yaml")
    assert data is not None
    assert data.url.endswith("/coco8.zip")
    for name in (
        "yolo11n.onnx",
        "models/yolo11n.pt",
        "yolo11q.pt",
        "my.pt",
        "coco8",
        "imagenet10.yaml",
        "",
        "yolo11n.pt/",
    ):
        assert downloads.find_asset(name) is None, name
    assert downloads.find_asset("imagenet10") is not None


def test_class_names_are_as_many_as_the_data_sets_have() -> None:
    counts = {name: len(entry["names"]) for name, (_, entry) in downloads.DATASETS.items() if entry is not None}
    assert counts == {"coco8": 80, "coco8-seg": 80, "coco8-pose": 1, "coco128": 80, "coco128-seg": 80, "dota8": 15}
    assert len(set(downloads.COCO_CLASSES)) == 80


# Fetching.


def test_a_download_names_its_license_and_is_recorded(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    path = get()
    assert path.read_bytes() == CONTENT
    assert "AGPL-3.0" in capsys.readouterr().err
    record = json.loads((path.parent / f"{NAME}.json").read_text())
    assert record["sha256"] == hash_file(path)
    assert (record["bytes"], record["url"]) == (len(CONTENT), f"{server.url}/weights/{NAME}")
    assert {one.name for one in path.parent.iterdir()} == {NAME, f"{NAME}.json", f"{NAME}.lock"}
    # The second time it comes from the cache folder, asked for or not.
    assert downloads.locate(Path(NAME), False) == path
    assert len(server.requests) == 1


def test_a_file_on_disk_is_taken_first(server: Server) -> None:
    Path(NAME).write_bytes(b"mine")
    assert get() == Path(NAME)
    assert server.requests == []


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 60_000), max_size=3))
def test_cut_connections_are_resumed(server: Server, cuts: list[int]) -> None:
    for one in (Path(downloads.user_cache_dir()) / "downloads").glob("*"):
        one.unlink()
    server.requests.clear()
    server.cuts = list(cuts)
    assert get().read_bytes() == CONTENT
    starts = np.cumsum([0, *cuts]).tolist()
    assert [asked for _, asked in server.requests] == [f"bytes={start}-" if start else None for start in starts]


def test_the_next_call_goes_on_where_a_failed_one_stopped(server: Server) -> None:
    server.cuts = [50_000, 10_000, 10_000, 10_000]
    with raises(DownloadError, "download-interrupted", received=80_000):
        get()
    assert not downloads.find_asset(NAME).path.exists()  # type: ignore[union-attr]
    assert get().read_bytes() == CONTENT
    assert server.requests[-1] == (f"/weights/{NAME}", "bytes=80000-")


def test_another_version_on_the_server_starts_from_zero(server: Server) -> None:
    server.cuts = [10_000] * 4
    with raises(DownloadError, "download-interrupted"):
        get()
    server.files[f"/weights/{NAME}"], server.version = CONTENT[::-1], "two"
    assert get().read_bytes() == CONTENT[::-1]


def test_a_server_without_versions_is_never_resumed(server: Server) -> None:
    """Two halves of different files would make a third."""
    server.cuts, server.has_version = [50_000], False
    assert get().read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, None]


def test_a_part_that_is_longer_than_the_file_is_dropped(server: Server) -> None:
    folder = Path(downloads.user_cache_dir()) / "downloads"
    folder.mkdir(parents=True)
    (folder / f"{NAME}.part").write_bytes(CONTENT + b"more")
    (folder / f"{NAME}.part.version").write_text('"one"')
    assert get().read_bytes() == CONTENT


def test_a_changed_file_in_the_cache_is_refused(server: Server) -> None:
    path = get()
    path.write_bytes(CONTENT[:-1] + b"\0")
    with raises(DownloadError, "download-hash-mismatch", path=path, actual=hash_file(path)):
        downloads.locate(Path(NAME))
    path.unlink()
    assert get().read_bytes() == CONTENT


def test_another_published_file_is_refused(server: Server) -> None:
    path = get()
    expected = hash_file(path)
    path.unlink()
    server.files[f"/weights/{NAME}"] = CONTENT[::-1]
    with raises(DownloadError, "download-hash-mismatch", expected=expected):
        get()
    assert not path.exists()
    (path.parent / f"{NAME}.json").unlink()
    assert get().read_bytes() == CONTENT[::-1]


def test_a_name_that_is_not_there(server: Server) -> None:
    server.files.clear()
    with raises(DownloadError, "download-not-found", status=404, url=f"{server.url}/weights/{NAME}"):
        get()


@pytest.mark.parametrize(
    ("status", "code", "requests"), [(403, "download-refused", 1), (503, "download-interrupted", 4)]
)
def test_other_answers_of_the_server(server: Server, status: int, code: str, requests: int) -> None:
    server.status = status
    with raises(DownloadError, code):
        get()
    assert len(server.requests) == requests


def test_redirects_within_the_known_hosts_are_followed(server: Server) -> None:
    server.files["/elsewhere"] = CONTENT
    server.redirects[f"/weights/{NAME}"] = f"{server.url}/elsewhere"
    server.cuts = [1000]
    assert get().read_bytes() == CONTENT
    assert server.requests[-1] == ("/elsewhere", "bytes=1000-")


@pytest.mark.parametrize("target", ["http://localhost:1/x", "https://example.org/x", "file:///etc/hostname"])
def test_redirects_to_elsewhere_are_refused(server: Server, target: str) -> None:
    server.redirects[f"/weights/{NAME}"] = target
    with raises(DownloadError, "download-redirected", target=target):
        get()


def test_plain_http_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRTKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads, "WEIGHTS_URL", "http://github.com/weights")
    with raises(DownloadError, "download-redirected"):
        get()


@pytest.mark.parametrize("has_length", [True, False])
def test_a_file_that_is_too_large(server: Server, monkeypatch: pytest.MonkeyPatch, has_length: bool) -> None:
    monkeypatch.setattr(downloads, "SIZE_LIMIT", 100_000)
    server.has_length = has_length
    with raises(DownloadError, "download-too-large", limit=100_000):
        get()
    assert not downloads.find_asset(NAME).path.exists()  # type: ignore[union-attr]


def test_no_network(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    with raises(DownloadError, "download-unreachable"):
        get()


def test_a_full_disk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "_transfer", fail)
    with raises(DiskFullError, "disk-full"):
        get()


def test_a_cache_folder_that_cannot_be_written(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRTKIT_CACHE", str(tmp_path / "file"))
    with raises(DownloadError, "download-cache-unwritable", path=tmp_path / "file" / "downloads" / "yolo11n.pt"):
        get()


def test_two_at_once_download_once(server: Server) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in paths] == [True] * 4
    assert len(server.requests) == 1


# Data sets.


def test_a_data_set_gets_its_description(server: Server) -> None:
    image = (Path(demo.data_path()).parent / "images" / "val").iterdir().__next__().read_bytes()
    server.files["/data/coco8.zip"] = make_zip(
        **{f"coco8/images/{split}/a.jpg": image for split in ("train", "val")},
        **{f"coco8/labels/{split}/a.txt": "79 0.5 0.5 0.2 0.2\n" for split in ("train", "val")},
    )
    dataset = open_dataset("coco8.yaml", task="detect", download=True)
    assert (dataset.names[0], dataset.names[79]) == ("person", "toothbrush")
    assert len(dataset.images("val")) == 1
    assert {one.name for one in dataset.path.parent.parent.iterdir()} == {"coco8", "coco8.zip.json", "coco8.zip.lock"}
    assert open_dataset("coco8.yaml", task="detect").path == dataset.path
    assert len(server.requests) == 1


def test_class_folders_have_no_description(server: Server) -> None:
    server.files["/data/imagenet10.zip"] = make_zip(
        **{"imagenet10/train/n01/a.jpg": b"x", "imagenet10/val/n01/b.jpg": b"x"}
    )
    path = get("imagenet10")
    assert sorted(one.name for one in path.iterdir()) == ["train", "val"]


@pytest.mark.parametrize(
    "member", ["../outside.txt", "coco8/../../outside.txt", "/outside.txt", "C:\\outside.txt", "..\\out"]
)
def test_members_that_lead_out_of_the_folder_are_refused(server: Server, tmp_path: Path, member: str) -> None:
    server.files["/data/coco8.zip"] = make_zip(**{"coco8/a.txt": "a", member: "b"})
    with raises(DownloadError, "download-bad-archive", member=zipfile.ZipInfo(member).filename):
        get("coco8.yaml")
    assert not list(tmp_path.rglob("outside*"))
    assert not downloads.find_asset("coco8.yaml").path.parent.exists()  # type: ignore[union-attr]


def test_links_in_archives_are_refused(server: Server) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        link = zipfile.ZipInfo("coco8/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc")
    server.files["/data/coco8.zip"] = buffer.getvalue()
    with raises(DownloadError, "download-bad-archive", member="coco8/link"):
        get("coco8.yaml")


def test_archives_that_grow_too_large_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "SIZE_LIMIT", 1_000_000)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("coco8/zeros", bytes(2_000_000))
    assert len(buffer.getvalue()) < 10_000
    server.files["/data/coco8.zip"] = buffer.getvalue()
    with raises(DownloadError, "download-bad-archive"):
        get("coco8.yaml")


@pytest.mark.parametrize(
    "content",
    [b"no archive", make_zip(**{"other/a.txt": "a"}), make_zip(**{"coco8/a": "x"})[:-30], make_broken_zip()],
    # Archives hold the time at which they were made, which must not be part of a test's name.
    ids=["no archive", "another folder", "cut short", "broken in the middle"],
)
def test_damaged_archives(server: Server, content: bytes) -> None:
    server.files["/data/coco8.zip"] = content
    with raises(DownloadError, "download-bad-archive"):
        get("coco8.yaml")


# Permission.


def test_nothing_is_downloaded_unasked(server: Server) -> None:
    with raises(CheckpointError, "model-file-missing") as caught:
        tk.load(NAME)
    assert server.url in caught.value.do
    assert "AGPL-3.0" in caught.value.do
    with raises(DataError, "data-not-downloaded"):
        open_dataset("coco8.yaml", task="detect")
    with raises(DataError, "data-not-downloaded"):
        open_dataset("imagenet10", task="classify")
    with raises(CheckpointError, "model-file-missing"):
        tk.load("yolo11q.pt", download=True)
    assert server.requests == []


@pytest.mark.parametrize(
    ("value", "allowed"), [("1", True), ("yes", True), ("0", False), ("false", False), ("", False)]
)
def test_the_environment_switch(server: Server, monkeypatch: pytest.MonkeyPatch, value: str, allowed: bool) -> None:
    monkeypatch.setenv("TRTKIT_DOWNLOAD", value)
    assert (downloads.locate(Path(NAME)) != Path(NAME)) is allowed
    assert downloads.locate(Path("yolo11s.pt"), False) == Path("yolo11s.pt")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "allowed"), [("y\n", True), ("Yes\n", True), ("\n", False), ("n\n", False), ("", False)]
)
def test_a_terminal_is_asked(server: Server, monkeypatch: pytest.MonkeyPatch, answer: str, allowed: bool) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    assert (downloads.locate(Path(NAME)) != Path(NAME)) is allowed
    assert "AGPL-3.0" in shown.getvalue().splitlines()[0]


@pytest.mark.parametrize("place", ["CI", "notebook", "thread", "pipe"])
def test_who_is_never_asked(server: Server, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n") if place == "pipe" else Terminal("y\n"))
    monkeypatch.setattr(sys, "stderr", Terminal())
    if place == "CI":
        monkeypatch.setenv("CI", "true")
    if place == "notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    found: list[Path] = []

    def ask() -> None:
        found.append(downloads.locate(Path(NAME)))

    if place == "thread":
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    else:
        ask()
    assert found == [Path(NAME)]


# The verbs.


def test_a_downloaded_model_keeps_its_name(server: Server) -> None:
    """Exports go to the working directory, not to the cache folder."""
    server.files[f"/weights/{NAME}"] = Path(demo.model_path()).read_bytes()
    model = tk.load(NAME, download=True)
    assert model.source == Path(NAME)
    assert model.hash == tk.load(demo.model_path()).hash


def test_the_command_line_downloads_on_request(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["/weights/yolo11n-cls.pt"] = demo.model_path("classify").read_bytes()
    words = ["export", "yolo11n-cls.pt", "--format", "onnx", "--imgsz", "32", "--no-simplify"]
    assert main(words) == 2
    assert "--download" in capsys.readouterr().err
    assert main([*words, "--download"]) == 0
    assert Path("yolo11n-cls.onnx").is_file()
    assert downloads.locate(Path("yolo11s.pt")) == Path("yolo11s.pt")

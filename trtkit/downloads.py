"""Downloads of weights and small data sets that Ultralytics publishes, on request only.

A bare name that is not on disk, such as `yolo11n.pt` or `coco8.yaml`, stands for a published file. It is fetched after
`download=True`, `--download`, `TRTKIT_DOWNLOAD=1` or a yes at a terminal; the license is named first. Files lie in the
cache folder. Their SHA-256 is recorded at the first download, and a file that differs later is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import http.client
import os
import re
import shutil
import stat
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from trtkit.errors import DiskFullError, DownloadError
from trtkit.files import hash_file, read_json, user_cache_dir
from trtkit.progress import is_planning
from trtkit.version import __version__
from trtkit.writing import temporary_folder, write_bytes, write_json

__all__ = ["Asset", "describe_download", "fetch", "find_asset", "locate", "read_url"]

WEIGHTS_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0"
DATASETS_URL = "https://github.com/ultralytics/assets/releases/download/v0.0.0"
HOSTS = ("github.com", "githubusercontent.com")
"""Hosts, with their subdomains, that a file may come from; GitHub redirects from the first to the second."""

SIZE_LIMIT = 512 * 2**20
"""Bytes of the largest file to fetch, and of all files in an archive."""

FILE_LIMIT = 10_000
"""Files of the largest archive to extract."""

ATTEMPTS = 4
RETRY_SECONDS = 1.0
TIMEOUT_SECONDS = 30.0
CHUNK = 1 << 16

SIZES = "[nsmlx]"
WEIGHTS = re.compile(
    rf"yolov8{SIZES}(-cls|-seg|-pose|-obb)?|yolo(11|26){SIZES}(-cls|-seg|-pose|-obb)?|yolo12{SIZES}|yolov10[nsmblx]|"
    rf"yolov9([tsmce]|[ce]-seg)|yolov5{SIZES}6?u|yolov3(-spp|-tiny)?u|rtdetr-[lx]"
)
"""Stems of the published checkpoints whose architecture trtkit reads."""

WEIGHTS_LICENSE = "AGPL-3.0, or Ultralytics' Enterprise license"
COCO_LICENSE = "labels of COCO, CC BY 4.0; images under the terms of Flickr"


def _split_names(text: str) -> list[str]:
    return text.split(", ")


COCO_CLASSES = _split_names(
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush"
)
DOTA_CLASSES = _split_names(
    "plane, ship, storage tank, baseball diamond, tennis court, basketball court, ground track field, harbor, bridge, "
    "large vehicle, small vehicle, helicopter, roundabout, soccer ball field, swimming pool"
)
EIGHT = {"train": "images/train", "val": "images/val"}
ALL_IN_ONE = dict.fromkeys(("train", "val"), "images/train2017")
PERSON = {
    "names": ["person"],
    "kpt_shape": [17, 3],
    "flip_idx": [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15],
}
DATASETS: Mapping[str, tuple[str, Mapping[str, Any] | None]] = {
    "coco8": (COCO_LICENSE, {**EIGHT, "names": COCO_CLASSES}),
    "coco8-seg": (COCO_LICENSE, {**EIGHT, "names": COCO_CLASSES}),
    "coco8-pose": (COCO_LICENSE, {**EIGHT, **PERSON}),
    "coco128": (COCO_LICENSE, {**ALL_IN_ONE, "names": COCO_CLASSES}),
    "coco128-seg": (COCO_LICENSE, {**ALL_IN_ONE, "names": COCO_CLASSES}),
    "dota8": ("images and labels of DOTA, for academic use only", {**EIGHT, "names": DOTA_CLASSES}),
    "imagenet10": ("images of ImageNet, for non-commercial research", None),
}
"""License and contents of the data.yaml of each data set, which the archives do not hold; None for class folders."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asset:
    """A published file.

    Attributes:
        name: The name that stands for it, such as "yolo11n.pt" or "coco8.yaml".
        url: Where it lies.
        license: Its terms.
        dataset: For a data set, its name.
        description: For a data set with a data.yaml, the contents.
    """

    name: str
    url: str
    license: str
    dataset: str = ""
    description: Mapping[str, Any] | None = None

    @property
    def path(self) -> Path:
        """Where it lies in the cache folder: a file, or a data set's data.yaml or folder."""
        folder = user_cache_dir() / "downloads"
        if not self.dataset:
            return folder / self.name
        return folder / self.dataset / "data.yaml" if self.description is not None else folder / self.dataset


def find_asset(name: str | Path) -> Asset | None:
    """The published file that a bare name stands for; None for any other name, and for a path.

    Args:
        name: Such as "yolo11n.pt", "coco8.yaml" or "imagenet10".
    """
    text = str(name)
    stem, dot, suffix = text.rpartition(".")
    if dot and suffix == "pt" and WEIGHTS.fullmatch(stem):
        return Asset(name=text, url=f"{WEIGHTS_URL}/{text}", license=WEIGHTS_LICENSE)
    dataset = stem if suffix == "yaml" else text
    license_, description = DATASETS.get(dataset, ("", None))
    # A set with a data.yaml goes by the file's name, one of class folders by the folder's.
    if not license_ or (suffix == "yaml") != (description is not None):
        return None
    url = f"{DATASETS_URL}/{dataset}.zip"
    return Asset(name=text, url=url, license=license_, dataset=dataset, description=description)


def describe_download(name: str | Path) -> str:
    """What to do about a missing file that can be downloaded, in the imperative; "" for any other.

    Args:
        name: As in `find_asset`.
    """
    asset = find_asset(name)
    if asset is None:
        return ""
    return (
        f"pass the path of a file on disk, or download it ({asset.url}; {asset.license}) with download=True, "
        "--download or TRTKIT_DOWNLOAD=1"
    )


def locate(path: Path, download: bool | None = None) -> Path:
    """Where a file or folder lies: on disk, in the cache folder, or there after a download.

    Args:
        path: The file or folder; a bare name may stand for a published file.
        download: Fetch what is neither on disk nor in the cache folder; None asks `TRTKIT_DOWNLOAD`, else the user at a
            terminal.

    Returns:
        `path` itself if it exists, stands for no published file, or must not be downloaded.

    Raises:
        DownloadError: The download failed, or the file has another SHA-256 than at the first download.
    """
    if path.exists():
        return path
    asset = find_asset(path)
    if asset is None or not (asset.path.exists() or _is_allowed(asset, download)):
        return path
    return fetch(asset)


def _is_allowed(asset: Asset, download: bool | None) -> bool:
    if is_planning():
        return False
    if download is not None:
        return download
    switch = os.environ.get("TRTKIT_DOWNLOAD", "").strip().lower()
    return switch not in ("0", "false", "no", "off") if switch else _ask(asset)


def _ask(asset: Asset) -> bool:
    """Ask at a terminal; notebooks, CI and threads are never asked."""
    is_terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    is_main = threading.current_thread() is threading.main_thread()
    if not is_terminal or not is_main or os.environ.get("CI") or "ipykernel" in sys.modules:
        return False
    question = f"{asset.name} is not on disk. Download {asset.url} ({asset.license})? [y/N] "
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def fetch(asset: Asset) -> Path:
    """Download an asset into the cache folder, unless it is there.

    Args:
        asset: From `find_asset`.

    Returns:
        The file, or a data set's data.yaml or folder.

    Raises:
        DownloadError: The download failed, or the file has another SHA-256 than at the first download.
        DiskFullError: The disk is full; what was received stays, and the next call goes on from there.
    """
    folder = user_cache_dir() / "downloads"
    file = folder / (f"{asset.dataset}.zip" if asset.dataset else asset.name)
    record = file.with_name(f"{file.name}.json")
    with _disk_errors(file):
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(file.with_name(f"{file.name}.lock")):
            if asset.dataset and asset.path.exists():
                return asset.path
            if file.exists():
                _check_hash(file, record, "it changed since its download", f"delete {file} to download it again")
            else:
                print(f"trtkit: downloading {asset.url} ({asset.license})", file=sys.stderr, flush=True)
                part = file.with_name(f"{file.name}.part")
                _download(asset.url, part)
                if record.exists():
                    _check_hash(
                        part,
                        record,
                        "another file was published since the first download",
                        f"delete {record} to accept the new one",
                        discard=True,
                    )
                else:
                    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
                    facts = {"url": asset.url, "sha256": hash_file(part), "bytes": part.stat().st_size}
                    write_json(record, {**facts, "license": asset.license, "downloaded": now})
                part.replace(file)
            if asset.dataset:
                _extract(file, folder / asset.dataset, asset)
                file.unlink()
    return asset.path


def _check_hash(file: Path, record: Path, found: str, do: str, *, discard: bool = False) -> None:
    """Compare a file with the record of its first download; `discard` removes one that differs."""
    facts = read_json(record) if record.exists() else {}
    expected, actual = facts.get("sha256"), hash_file(file)
    if expected == actual:
        return
    if discard:
        file.unlink()
    raise DownloadError(
        f"use {file.name.removesuffix('.part')}",
        f"{found} (SHA-256 {actual[:12]}..., recorded {str(expected)[:12]}...)",
        do,
        code="download-hash-mismatch",
        path=file,
        expected=expected,
        actual=actual,
    )


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"download {path.name}",
                f"it can't be kept in {path.parent} ({error.strerror or error})",
                "set TRTKIT_CACHE to a folder that you can write to",
                code="download-cache-unwritable",
                path=path,
            ) from error
        raise DiskFullError(
            f"download {path.name}",
            "the disk is full",
            "free some space and start it again; it goes on from where it stopped",
            code="disk-full",
            path=str(path),
        ) from error


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time downloads a file; the others wait and find it."""
    with path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# HTTP.


class _InterruptedError(Exception):
    """The connection ended before the file did."""


def _download(url: str, part: Path) -> None:
    """Fetch a file, going on from what `part` holds; a connection that ends early is opened again."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(RETRY_SECONDS)
        with contextlib.suppress(_InterruptedError):
            _transfer(url, part)
            return
    raise DownloadError(
        f"download {url}",
        f"the connection ended {ATTEMPTS} times before the file did",
        "start it again; it goes on from where it stopped",
        code="download-interrupted",
        url=url,
        received=part.stat().st_size if part.exists() else 0,
    )


def _transfer(url: str, part: Path) -> None:
    """One request: the rest of the file, or all of it if the server has another version by now."""
    validator = part.with_name(f"{part.name}.version")
    start = part.stat().st_size if part.exists() and validator.exists() else 0
    headers = {"User-Agent": f"trtkit/{__version__}"}
    if start:
        headers.update({"Range": f"bytes={start}-", "If-Range": validator.read_text(encoding="utf-8")})
    with _open(url, headers, part) as response:
        is_rest = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        received = start if is_rest else 0
        length = response.headers.get("Content-Length", "")
        expected = received + int(length) if length.isdigit() else None
        _check_size(url, expected or 0)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        validator.unlink(missing_ok=True)
        if version and not version.startswith("W/"):
            write_bytes(validator, version.encode())
        with part.open("ab" if is_rest else "wb") as file:
            for chunk in _read_chunks(response):
                received += len(chunk)
                _check_size(url, received)
                file.write(chunk)
    if expected is not None and received < expected:
        raise _InterruptedError
    validator.unlink(missing_ok=True)


def _read_chunks(response: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _InterruptedError from error
        if not chunk:
            return
        yield chunk


def _check_size(url: str, size: int) -> None:
    if size > SIZE_LIMIT:
        raise DownloadError(
            f"download {url}",
            f"the file is larger than {SIZE_LIMIT / 2**20:.0f} MiB",
            "download it yourself, and pass its path",
            code="download-too-large",
            url=url,
            limit=SIZE_LIMIT,
        )


def _open(url: str, headers: Mapping[str, str], part: Path) -> Any:
    _check_host(url, url)
    opener = urllib.request.build_opener(_CheckedRedirects)
    try:
        return opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            # What is there does not fit the published file.
            part.unlink(missing_ok=True)
            raise _InterruptedError from error
        if error.code >= 500:
            raise _InterruptedError from error
        if error.code < 400:
            # A redirect that urllib itself refuses, such as to a file.
            _check_host(error.headers.get("Location", ""), url)
        raise DownloadError(
            f"download {url}",
            f"the server answered {error.code} {error.reason}",
            "check the name, or download the file yourself and pass its path",
            code="download-not-found" if error.code == 404 else "download-refused",
            url=url,
            status=error.code,
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"download {url}",
            f"the server can't be reached ({getattr(error, 'reason', error)})",
            "check the network, or download the file elsewhere and pass its path",
            code="download-unreachable",
            url=url,
        ) from error


MAX_URL_BYTES = 64 * 2**20
"""Largest image to read from a URL: a JPEG of 200 million pixels."""

URL_SECONDS = 60.0
"""Longest time for one URL."""


def read_url(
    url: str, *, limit: int = MAX_URL_BYTES, seconds: float = URL_SECONDS, clock: Callable[[], float] = time.monotonic
) -> bytes:
    """Read an image that the caller names by an http or https URL; nothing is kept on disk.

    Args:
        url: The URL; redirects to other schemes are refused.
        limit: Most bytes.
        seconds: Longest time.
        clock: Tells the time in seconds.

    Raises:
        DownloadError: The server can't be reached or refuses, or the file is too large or too slow.
    """

    def refuse(found: str, code: str) -> DownloadError:
        return DownloadError(f"read {url}", found, "check it, or pass a file on disk", code=code, url=url)

    deadline = clock() + seconds
    chunks: list[bytes] = []
    size = 0
    try:
        opener = urllib.request.build_opener(_HttpRedirects)
        request = urllib.request.Request(url, headers={"User-Agent": f"trtkit/{__version__}"})
        with opener.open(request, timeout=min(TIMEOUT_SECONDS, seconds)) as response:
            # read1 returns what has arrived, so that a server that sends a byte at a time is noticed.
            while chunk := response.read1(CHUNK):
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise refuse(f"the file is larger than {limit / 2**20:.0f} MiB", "url-too-large")
                if clock() > deadline:
                    raise refuse(f"it takes longer than {seconds:.0f} seconds", "url-too-slow")
            length = response.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        raise refuse(f"the server answered {error.code} {error.reason}", "url-refused") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise refuse(f"it can't be read ({getattr(error, 'reason', error)})", "url-unreachable") from error
    if length.isdigit() and size < int(length):
        raise refuse("the connection ended before the file did", "url-interrupted")
    return b"".join(chunks)


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise ValueError(f"it redirects to {newurl[:80]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to `HOSTS` only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_host(newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_host(url: str, asked: str) -> None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    is_known = any(host == known or host.endswith(f".{known}") for known in HOSTS)
    if not is_known or (parts.scheme != "https" and host != "127.0.0.1"):
        raise DownloadError(
            f"download {asked}",
            f"the server redirects to {parts.scheme}://{host}",
            "download the file yourself, and pass its path",
            code="download-redirected",
            url=asked,
            target=url,
        )


# Archives.


def _extract(archive: Path, target: Path, asset: Asset) -> None:
    """Extract a data set; its folder appears when it is complete."""

    def refuse(found: str, member: str = "") -> DownloadError:
        archive.unlink(missing_ok=True)
        return DownloadError(
            f"extract {archive.name}",
            found,
            "download it again",
            code="download-bad-archive",
            path=archive,
            member=member,
        )

    with temporary_folder(archive.parent) as extracted:
        try:
            with zipfile.ZipFile(archive) as file:
                members = file.infolist()
                if len(members) > FILE_LIMIT or sum(member.file_size for member in members) > SIZE_LIMIT:
                    raise refuse(f"it holds more than {FILE_LIMIT} files or {SIZE_LIMIT / 2**20:.0f} MiB")
                for member in members:
                    path = PurePosixPath(member.filename.replace("\\", "/"))
                    if path.is_absolute() or ".." in path.parts or ":" in member.filename:
                        raise refuse(f"its member {member.filename!r} leads out of the folder", member.filename)
                    if stat.S_ISLNK(member.external_attr >> 16):
                        raise refuse(f"its member {member.filename!r} is a link", member.filename)
                file.extractall(extracted)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
            raise refuse(f"it is no readable zip archive ({error})") from error
        root = extracted / asset.dataset
        if not root.is_dir():
            raise refuse(f"it holds no folder {asset.dataset}")
        if asset.description is not None:
            import yaml

            write_bytes(root / "data.yaml", yaml.safe_dump(dict(asset.description), sort_keys=False).encode())
        shutil.rmtree(target, ignore_errors=True)
        root.rename(target)

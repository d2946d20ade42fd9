"""Thumbnails of the first images of a data path, found and read in the background; what can't be read is left out."""

from __future__ import annotations

import base64
import glob
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import ipywidgets
import numpy as np
from markupsafe import Markup

from trtkit.data.data_yaml import read_data_yaml, resolve_splits
from trtkit.data.image_files import is_image, read_image
from trtkit.errors import DataError
from trtkit.files import escape_surrogates
from trtkit.html import render
from trtkit.widgets.ui.jobs import capture_warnings

__all__ = ["Thumbnails", "find_first_images", "render_thumbnails"]

COUNT = 4
"""Images shown."""

TRIES = 12
"""Images looked at to find as many that can be read."""

MOST_ENTRIES = 5000
"""Entries of folders that are looked at, read in less than 0.1 s."""

DEPTH = 4
"""Levels of folders below the path."""

LARGEST = 40_000_000
"""Bytes, and pixels, of the largest image that is read: a thumbnail is not worth a longer wait."""

SIDE = 480
"""Longest side of a thumbnail, pixels: a click enlarges it."""

LIST_BYTES = 65_536
"""Bytes read of a text file that lists images."""

SUFFIXES = (".yaml", ".yml")


class Thumbnails(ipywidgets.HTML):
    """Shows the first images of a data path once they are read; nothing where there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.add_class("trtkit-thumbnails")
        self._data = ""
        self._thread: threading.Thread | None = None

    def show(self, data: str) -> None:
        """Show the first images of another path; returns at once.

        Args:
            data: A data.yaml, a folder, an image, a list of images, a glob pattern, or "".
        """
        if data == self._data:
            return
        self._data, self.value = data, ""
        self._thread = threading.Thread(target=self._read, args=(data,), daemon=True, name="thumbnails")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the images are shown."""
        if self._thread is not None:
            self._thread.join()

    def _read(self, data: str) -> None:
        markup = render_thumbnails(data)
        if data == self._data:
            self.value = markup


def render_thumbnails(data: str) -> Markup:
    """The first images of a data path as HTML; "" where none can be read.

    Args:
        data: As for `Thumbnails.show`.
    """
    images: list[dict[str, str]] = []
    unread = 0
    for path in itertools.islice(find_first_images(data), TRIES):
        source = _encode(path)
        if source:
            images.append({"source": source, "name": escape_surrogates(path.name)})
        else:
            unread += 1
        if len(images) == COUNT:
            break
    if not images and not unread:
        return Markup("")
    return render("widgets/ui/templates/thumbnails.html.j2", images=images, unread=unread)


def find_first_images(data: str) -> Iterator[Path]:
    """Yield images of a data path, one of each folder first, looking at `MOST_ENTRIES` entries at most.

    Args:
        data: As for `Thumbnails.show`; anything else yields nothing.
    """
    if not data.strip():
        return
    try:
        path = Path(data).expanduser()
        if glob.has_magic(data) and not path.exists():
            # As `open_dataset` reads patterns: Path.glob takes none that is absolute.
            found = itertools.islice(glob.iglob(str(path), recursive=True), MOST_ENTRIES)  # noqa: PTH207
            yield from (Path(name) for name in found if is_image(Path(name)))
        elif path.suffix.lower() in SUFFIXES:
            for source in _list_sources(path):
                yield from _find_below(source)
        else:
            yield from _find_below(path)
    except (DataError, OSError, ValueError, RuntimeError):
        # What is wrong with the path is said elsewhere; there is nothing to show.
        return


def _list_sources(path: Path) -> tuple[Path, ...]:
    """Folders and lists of the training images, or of another split."""
    splits = resolve_splits(read_data_yaml(path), path.absolute())
    return splits.get("train") or next(iter(splits.values()), ())


def _find_below(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield from [path] if is_image(path) else _read_list(path)
        return
    budget = MOST_ENTRIES
    firsts: list[Path] = []
    others: list[Path] = []
    level = [path]
    for _ in range(DEPTH):
        below: list[Path] = []
        for folder in level:
            entries = sorted(itertools.islice(_scan(folder), budget), key=lambda entry: entry.name)
            budget -= len(entries)
            images = [Path(entry) for entry in entries if is_image(Path(entry))]
            below += [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."]
            firsts += images[:1]
            others += images[1:TRIES]
        level = below
    yield from firsts
    yield from others


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        # Another user's folder, or one that went meanwhile, has nothing to show.
        return


def _read_list(path: Path) -> Iterator[Path]:
    if path.suffix.lower() != ".txt":
        return
    with path.open("rb") as file:
        lines = file.read(LIST_BYTES).decode("utf-8", "surrogateescape").splitlines()
    for line in lines:
        if line.strip() and "\0" not in line:
            yield path.parent / line.strip()


def _encode(path: Path) -> str:
    """An image file as the source of an `<img>`; "" if it can't be read."""
    try:
        if path.stat().st_size > LARGEST:
            return ""
        # What else there is to say about an image, the steps that use it say.
        with capture_warnings(lambda _: None):
            image = read_image(path, max_pixels=LARGEST)
    except (DataError, OSError, ValueError):
        return ""
    scale = SIDE / max(image.shape[:2])
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return f"data:image/jpeg;base64,{base64.b64encode(cv2.imencode('.jpg', image)[1].tobytes()).decode()}"

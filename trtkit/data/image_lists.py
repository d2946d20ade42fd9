"""The images of a source: of a folder, a glob pattern, a text file with one path per line, or a list of these."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Sequence
from pathlib import Path

from trtkit.data.image_files import is_image, list_images
from trtkit.errors import DataError, warn
from trtkit.files import read_limited

__all__ = ["LIST_SUFFIX", "list_source_images", "resolve_images"]

LIST_SUFFIX = ".txt"
"""Suffix of a text file with one image path per line."""

MAX_LIST_BYTES = 128 * 2**20
"""Largest text file of image paths: the 1.3 million of ImageNet take about 80 MB."""


def list_source_images(data: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """List the images of a folder, a glob pattern, a text file of paths, an image, or a list of these.

    Args:
        data: One or several; other files than images in a folder or behind a pattern are ignored.

    Returns:
        Absolute paths, sorted, each once.

    Raises:
        DataError: A named file is missing or no image, or a folder, a pattern or the list gives no image.
    """
    entries: Sequence[str | Path] = [data] if isinstance(data, (str, Path)) else data
    images: set[Path] = set()
    for entry in entries:
        asked = f"list the images of {entry}"
        try:
            path = Path(entry).expanduser().absolute()
            exists = path.exists()
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(asked, str(error), "check the path", code="data-path-invalid", path=Path(entry)) from error
        if not exists and glob.has_magic(str(path)):
            matches = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            inside = {image for match in matches for image in (list_images(match) if match.is_dir() else (match,))}
            listed = tuple(image for image in inside if is_image(image))
            found, do = "no image matches the pattern", "correct the pattern"
        else:
            if not exists:
                raise DataError(
                    asked, "there is no such file or folder", "check the path", code="data-path-missing", path=path
                )
            if not path.is_dir() and not is_image(path) and path.suffix.lower() != LIST_SUFFIX:
                raise DataError(
                    asked,
                    "it is no image",
                    "give image files, a folder or a pattern of them",
                    code="data-not-an-image",
                    path=path,
                )
            listed = resolve_images(path, asked)
            found, do = "there is no image in it", "name a folder or a list with images"
        if not listed:
            raise DataError(asked, found, do, code="data-images-none", path=path)
        images.update(listed)
    if not images:
        raise DataError(
            "list images", "the list is empty", "pass one image or more", code="data-images-none", path=None
        )
    return tuple(sorted(images, key=str))


def resolve_images(path: Path, asked: str) -> tuple[Path, ...]:
    """List the images of a folder, of a text file, or the image itself; one warning names other image files.

    A line of a text file is absolute, or relative to the text file's folder, else to the working folder, as in
    Ultralytics.

    Args:
        path: The folder, text file or image.
        asked: The request that error messages start with.

    Raises:
        DataError: The path is missing, no list, or a text file lists images that are missing.
    """
    passed_over: list[Path] = []
    # `os.path` takes a name of 300 letters, or one with a zero byte, for a missing file, where pathlib raises.
    if os.path.isdir(path):  # noqa: PTH112
        images = list_images(path, passed_over)
        _warn_of_passed_over(path, passed_over)
        return images
    if not os.path.exists(path):  # noqa: PTH110
        raise DataError(
            asked,
            f"{path} does not exist",
            "check path and the splits in the YAML file",
            code="data-split-path-missing",
            path=path,
        )
    if is_image(path):
        return (path,)
    try:
        text = read_limited(path, MAX_LIST_BYTES).decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds zero bytes")
    except (OSError, ValueError) as error:
        raise DataError(
            asked,
            f"{path} is no list of images ({error})",
            "write one path per line",
            code="data-list-unreadable",
            path=path,
        ) from error
    listed: list[Path] = []
    missing: list[Path] = []
    for line in io.StringIO(text):
        name = line.strip()
        if not name:
            continue
        image = path.parent / name
        if not is_image(image):
            passed_over.append(image)
        elif os.path.isfile(image):  # noqa: PTH113
            listed.append(image)
        elif os.path.isfile(name):  # noqa: PTH113
            listed.append(Path(name).absolute())
        else:
            missing.append(image)
    if missing:
        raise DataError(
            asked,
            f"{len(missing)} of {len(listed) + len(missing)} images in {path} are missing, the first is {missing[0]} "
            f"(tried the folder of the list and {Path.cwd()})",
            "correct the list or add the images",
            code="data-images-missing",
            path=path,
            missing=tuple(missing),
            count=len(listed) + len(missing),
        )
    _warn_of_passed_over(path, passed_over)
    return tuple(listed)


def _warn_of_passed_over(source: Path, paths: Sequence[Path]) -> None:
    """Warn once of files in an image folder or list that look like images and are of a format that isn't read."""
    if paths:
        names = ", ".join(path.name[:80] for path in paths[:5])
        more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
        warn(f"{len(paths)} files in {source} are no images that can be read and were passed over: {names}{more}")

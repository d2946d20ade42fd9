"""What a `data.yaml` says, checked and with every path made absolute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trtkit.data.pictures import is_picture, pictures_in
from trtkit.errors import DataError

__all__ = ["SPLITS", "pictures_named", "read_description", "read_names", "split_places"]

SPLITS = ("train", "val", "test", "minival")


def read_description(path: Path) -> dict[str, Any]:
    """Read a `data.yaml` as a mapping; nothing in it is run or fetched.

    Raises:
        DataError: The file is missing, no YAML, or no mapping.
    """
    asked = f"read data set {path}"
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(
            asked,
            "there is no such file, and trtkit downloads no data sets",
            "give the path of a data.yaml on this machine (fetch the set first if you only know its name)",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(asked, f"it can't be read ({error})", "check the file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise DataError(asked, f"it is not valid YAML{where}", "correct the file") from error
    if not isinstance(value, dict):
        raise DataError(asked, "it holds no mapping", "write keys such as path, train, val and names")
    return {str(key): entry for key, entry in value.items()}


def read_names(description: Mapping[str, Any], asked: str) -> dict[int, str]:
    """Class names by number, from `names` as a list or a map, or from `nc` alone.

    Raises:
        DataError: There are no names and no `nc`, or they contradict each other.
    """
    names, count = description.get("names"), description.get("nc")
    if names is None and count is None:
        raise DataError(asked, "neither names nor nc is given", "add names, one for each class")
    if count is not None:
        try:
            if int(count) != float(count) or int(count) < 1:
                raise ValueError
        except (TypeError, ValueError):
            raise DataError(asked, f"nc is {count!r}", "write the number of classes") from None
        count = int(count)
    if names is None:
        return {index: f"class_{index}" for index in range(count or 0)}
    if isinstance(names, list):
        found = {index: str(name) for index, name in enumerate(names)}
    elif isinstance(names, dict):
        try:
            found = {int(index): str(name) for index, name in names.items()}
        except (TypeError, ValueError):
            raise DataError(asked, "a key of names is no number", "number the classes from 0") from None
    else:
        raise DataError(asked, f"names is a {type(names).__name__}", "write a list, or a map from number to name")
    if sorted(found) != list(range(len(found))) or not found:
        raise DataError(asked, f"names are numbered {sorted(found)}", "number the classes from 0 without gaps")
    if count is not None and count != len(found):
        raise DataError(asked, f"nc is {count} but there are {len(found)} names", "make them agree")
    return dict(sorted(found.items()))


def split_places(description: Mapping[str, Any], path: Path) -> dict[str, tuple[Path, ...]]:
    """The folders, text files and pictures that each split names.

    Args:
        description: What `read_description` gave.
        path: The YAML file; `path` in it is resolved against its folder, splits against `path`.

    Raises:
        DataError: A split is neither text nor a list of texts.
    """
    root = path.parent / str(description.get("path") or ".")
    places: dict[str, tuple[Path, ...]] = {}
    for split in (*SPLITS, "validation"):
        value = description.get(split)
        if value is None:
            continue
        entries = value if isinstance(value, list) else [value]
        if not entries or not all(isinstance(entry, str) and entry for entry in entries):
            raise DataError(
                f"read data set {path}", f"{split} is {value!r}", "write a folder, a text file or a list of them"
            )
        name = "val" if split == "validation" else split
        places.setdefault(name, tuple(_place(root, entry) for entry in entries))
    return places


def _place(root: Path, entry: str) -> Path:
    place = (root / entry).resolve()
    # Some tools write ../train/images beside the YAML file they mean to be one folder deeper.
    if not place.exists() and entry.startswith("../") and (root / entry[3:]).exists():
        return (root / entry[3:]).resolve()
    return place


def pictures_named(place: Path, asked: str) -> tuple[Path, ...]:
    """The pictures that a folder, a text file or a picture's own path names.

    A line of a text file is absolute or relative to the text file's folder.

    Raises:
        DataError: The place is missing, or a text file names pictures that are.
    """
    if place.is_dir():
        return pictures_in(place)
    if not place.exists():
        raise DataError(asked, f"{place} does not exist", "check path and the splits in the YAML file")
    if is_picture(place):
        return (place,)
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(asked, f"{place} is no list of pictures ({error})", "write one path a line") from error
    listed = [place.parent / line.strip() for line in lines if line.strip()]
    pictures = [path for path in listed if is_picture(path)]
    missing = [path for path in pictures if not path.is_file()]
    if missing:
        raise DataError(
            asked,
            f"{len(missing)} of {len(pictures)} pictures in {place} are missing, the first is {missing[0]}",
            "correct the list or bring the pictures",
        )
    return tuple(pictures)

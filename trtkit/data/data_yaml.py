"""The description of a data set: reading a `data.yaml` and checking its keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trtkit.errors import DataError

__all__ = [
    "SPLITS",
    "parse_kpt_shape",
    "parse_names",
    "read_data_yaml",
    "resolve_channels",
    "resolve_splits",
]

SPLITS = ("train", "val", "test", "minival")


def read_data_yaml(path: Path) -> dict[str, Any]:
    """Read a `data.yaml` as a mapping; nothing in it is executed or downloaded.

    Raises:
        DataError: The file is missing, no YAML, or no mapping.
    """
    asked = f"read data set {path}"
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(
            asked,
            "there is no such file",
            "give the path of a data.yaml on this machine",
            code="data-yaml-missing",
            path=path,
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            asked, f"it can't be read ({error})", "check the file", code="data-yaml-unreadable", path=path
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        where = "" if line is None else f" at line {line}"
        raise DataError(
            asked, f"it is not valid YAML{where}", "correct the file", code="data-yaml-invalid", path=path, line=line
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            asked,
            "it is not a mapping",
            "write keys such as path, train, val and names",
            code="data-yaml-not-mapping",
            path=path,
        )
    return {str(key): entry for key, entry in value.items()}


def parse_names(description: Mapping[str, Any], asked: str) -> dict[int, str]:
    """Parse class names by number, from `names` as a list or a mapping, or from `nc` alone.

    Args:
        description: From `read_data_yaml`.
        asked: The request that error messages start with.

    Raises:
        DataError: There are no names and no `nc`, or they contradict each other.
    """
    names, count = description.get("names"), description.get("nc")
    if names is None and count is None:
        raise DataError(asked, "neither names nor nc is given", "add names, one per class", code="data-names-missing")
    if count is not None:
        try:
            if int(count) != float(count) or int(count) < 1:
                raise ValueError
        except (TypeError, ValueError):
            raise DataError(
                asked, f"nc is {count!r}", "write the number of classes", code="data-nc-invalid", value=count
            ) from None
        count = int(count)
    if names is None:
        return {index: f"class_{index}" for index in range(count or 0)}
    if isinstance(names, list):
        parsed = {index: str(name) for index, name in enumerate(names)}
    elif isinstance(names, dict):
        try:
            parsed = {int(index): str(name) for index, name in names.items()}
        except (TypeError, ValueError):
            raise DataError(
                asked, "a key of names is not a number", "number the classes from 0", code="data-names-not-numbered"
            ) from None
    else:
        raise DataError(
            asked,
            f"names is a {type(names).__name__}",
            "write a list, or a mapping from number to name",
            code="data-names-invalid",
            value=names,
        )
    if sorted(parsed) != list(range(len(parsed))) or not parsed:
        raise DataError(
            asked,
            f"names are numbered {sorted(parsed)}",
            "number the classes from 0 without gaps",
            code="data-names-not-numbered",
            numbers=tuple(sorted(parsed)),
        )
    if count is not None and count != len(parsed):
        raise DataError(
            asked,
            f"nc is {count} but there are {len(parsed)} names",
            "make them agree",
            code="data-names-count",
            nc=count,
            names=len(parsed),
        )
    return dict(sorted(parsed.items()))


def resolve_splits(description: Mapping[str, Any], path: Path) -> dict[str, tuple[Path, ...]]:
    """Resolve the folders, text files and images of each split to absolute paths.

    Args:
        description: From `read_data_yaml`.
        path: The YAML file; `path` in it is relative to its folder, splits are relative to `path`.

    Raises:
        DataError: A split is neither a string nor a list of strings.
    """
    root = path.parent / str(description.get("path") or ".")
    paths: dict[str, tuple[Path, ...]] = {}
    for split in (*SPLITS, "validation"):
        value = description.get(split)
        if value is None:
            continue
        entries = value if isinstance(value, list) else [value]
        if not entries or not all(isinstance(entry, str) and entry for entry in entries):
            raise DataError(
                f"read data set {path}",
                f"{split} is {value!r}",
                "write a folder, a text file or a list of them",
                code="data-split-invalid",
                path=path,
                split=split,
                value=value,
            )
        name = "val" if split == "validation" else split
        paths.setdefault(name, tuple(_resolve_path(root, entry) for entry in entries))
    return paths


def _resolve_path(root: Path, entry: str) -> Path:
    path = (root / entry).resolve()
    # Some tools write ../train/images into a YAML file that is meant to be one folder deeper.
    if not path.exists() and entry.startswith("../") and (root / entry[3:]).exists():
        return (root / entry[3:]).resolve()
    return path


def resolve_channels(declared: Any, wanted: int | None, asked: str) -> int:
    """The channels to read images with: the model's, which must agree with those in the YAML file.

    Args:
        declared: The entry `channels`, or None.
        wanted: The model's channels, or None.
        asked: The request that error messages start with.

    Raises:
        DataError: The entry is no number, or the two differ.
    """
    if declared is not None and (not isinstance(declared, int) or isinstance(declared, bool) or declared < 1):
        raise DataError(
            asked,
            f"channels is {declared!r}",
            "write the number of channels of the images",
            code="data-channels-invalid",
            value=declared,
        )
    if None not in (declared, wanted) and declared != wanted:
        raise DataError(
            asked,
            f"its images have {declared} channels where the model takes {wanted}",
            f"give data of {wanted} channels, or correct channels in the YAML file",
            code="data-channels-mismatch",
            value=declared,
            expected=wanted,
        )
    return wanted or declared or 3


def parse_kpt_shape(value: Any, asked: str) -> tuple[int, int] | None:
    """Parse `kpt_shape`: keypoints, and 2 or 3 values of each; None if it is missing.

    Args:
        value: The entry.
        asked: The request that error messages start with.

    Raises:
        DataError: It is something else.
    """
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(n, int) for n in value)
        or value[1] not in (2, 3)
    ):
        raise DataError(
            asked, f"kpt_shape is {value!r}", "write [points, 2 or 3]", code="data-kpt-shape-invalid", value=value
        )
    return value[0], value[1]

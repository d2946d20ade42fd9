"""The description of a data set: reading a `data.yaml` and checking its keys."""

from __future__ import annotations

import json
import math
import os
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trtkit.errors import DataError
from trtkit.files import read_limited

__all__ = [
    "SPLITS",
    "parse_flip_idx",
    "parse_kpt_shape",
    "parse_names",
    "parse_sigmas",
    "read_data_yaml",
    "resolve_channels",
    "resolve_splits",
]

SPLITS = ("train", "val", "test", "minival")

MAX_BYTES = 2 * 2**20
"""Largest data.yaml: 21,841 names of ImageNet take 0.6 MB."""

MAX_NODES = 200_000
"""Most values of a data.yaml with every alias written out: a few lines of aliases stand for billions of values."""

MAX_DEPTH = 50
"""Deepest nesting; a data.yaml needs three levels."""

MAX_SCALAR = 4096
"""Most characters of one value: the longest path of Linux. Numbers of more digits take minutes to parse."""

MAX_CLASSES = 100_000
"""Most classes: the largest published label sets have 21,841."""

MAX_KEYPOINTS = 10_000
"""Most keypoints of an object: the largest published layouts have 543."""

# libyaml's parser is ten times faster; its absence from some builds changes nothing else.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def _show(value: Any) -> str:
    """Return the repr of a value, short: one that aliases build is billions of characters long."""
    return _REPR.repr(value)


def read_data_yaml(path: Path) -> dict[str, Any]:
    """Read a `data.yaml` as a mapping; nothing in it is executed or downloaded.

    Raises:
        DataError: The file is missing, no regular file, too large, no YAML, or no mapping.
    """
    asked = f"read data set {path}"
    try:
        text = read_limited(path, MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            asked,
            "there is no such file",
            "give the path of a data.yaml on this machine",
            code="data-yaml-missing",
            path=path,
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            asked, f"it can't be read ({error})", "check the file", code="data-yaml-unreadable", path=path
        ) from error
    try:
        value = _parse_yaml(text)
    except Exception as error:  # PyYAML's constructors raise ValueError, TypeError, OverflowError, RecursionError ...
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        where = "" if line is None else f" at line {line}"
        problem = getattr(error, "problem", None)
        where += f" ({problem})" if problem else ""
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


def _parse_yaml(text: str) -> Any:
    """Parse YAML whose aliases, nesting and values are bounded; they are counted before any value is built.

    Raises:
        yaml.YAMLError: It is no YAML, or beyond a bound.
        Exception: A value does not fit its tag.
    """
    # A bound that holds while parsing, too: the composer recurses.
    depth = 0
    event: Any
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """Count the values below a node with every alias written out.

    Args:
        node: A node of the composed document, in which an alias is a second reference to the same node.
        counts: The counts of the nodes visited before, by identity; 0 while one is being counted.

    Raises:
        yaml.YAMLError: It contains itself, or is beyond a bound.
    """
    known = counts.get(id(node))
    if known is not None:
        if not known:
            raise yaml.MarkedYAMLError(problem="contains itself", problem_mark=node.start_mark)
        return known
    counts[id(node)] = 0
    total = 1
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > MAX_SCALAR:
            raise yaml.MarkedYAMLError(problem="a value is too long", problem_mark=node.start_mark)
    elif isinstance(node, yaml.MappingNode):
        total += sum(_count_nodes(part, counts) for pair in node.value for part in pair)
    else:
        total += sum(_count_nodes(part, counts) for part in node.value)
    if total > MAX_NODES:
        raise yaml.MarkedYAMLError(problem="too many values", problem_mark=node.start_mark)
    counts[id(node)] = total
    return total


def parse_names(description: Mapping[str, Any], asked: str) -> dict[int, str]:
    """Parse class names by number, from `names` as a list or a mapping, or from `nc` alone.

    Args:
        description: From `read_data_yaml`.
        asked: The request that error messages start with.

    Raises:
        DataError: There are no names and no `nc`, they contradict each other, or there are too many.
    """
    names, count = description.get("names"), description.get("nc")
    if names is None and count is None:
        raise DataError(asked, "neither names nor nc is given", "add names, one per class", code="data-names-missing")
    if count is not None:
        count = _parse_count(count, asked)
    if names is None:
        return {index: f"class_{index}" for index in range(count or 0)}
    if not isinstance(names, (list, dict)):
        raise DataError(
            asked,
            f"names is a {type(names).__name__}",
            "write a list, or a mapping from number to name",
            code="data-names-invalid",
            value=_scalar(names),
        )
    other = next((name for name in _values(names) if isinstance(name, (list, dict, set, tuple, bytes))), None)
    if other is not None:
        raise DataError(
            asked,
            f"the name of a class is {_show(other)}",
            "write a text for each class",
            code="data-names-invalid",
            value=_scalar(other),
        )
    if isinstance(names, list):
        parsed = {index: str(name) for index, name in enumerate(names)}
    else:
        try:
            parsed = {_parse_index(index): str(name) for index, name in names.items()}
        except (TypeError, ValueError, OverflowError):
            raise DataError(
                asked, "a key of names is not a number", "number the classes from 0", code="data-names-not-numbered"
            ) from None
    # Two keys may be the same number, as 0 and "0".
    if sorted(parsed) != list(range(len(names))) or not parsed:
        raise DataError(
            asked,
            f"names are numbered {_show(sorted(parsed))}",
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


def _values(names: list[Any] | dict[Any, Any]) -> Sequence[Any]:
    return names if isinstance(names, list) else list(names.values())


def _parse_index(key: Any) -> int:
    """Parse a class number; 0.5, True and None are none."""
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise TypeError
    return int(key)


def _parse_count(count: Any, asked: str) -> int:
    """Parse `nc`.

    Raises:
        DataError: It is not a whole number of at least 1, or larger than any label set.
    """
    try:
        number = int(count)
        if isinstance(count, bool) or number != float(count) or not 1 <= number <= MAX_CLASSES:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            asked,
            f"nc is {_show(count)}",
            f"write the number of classes, at most {MAX_CLASSES:,}",
            code="data-nc-invalid",
            value=_scalar(count),
        ) from None
    return number


def _scalar(value: Any) -> Any:
    """Return a value, or a short list of them, as it is, anything else as a short text, for the fields of an error."""
    plain = (bool, int, float, str, type(None))
    is_short = isinstance(value, list) and len(value) <= 20 and all(isinstance(one, plain) for one in value)
    return value if is_short or isinstance(value, plain) else _show(value)


def resolve_splits(description: Mapping[str, Any], path: Path) -> dict[str, tuple[Path, ...]]:
    """Resolve the folders, text files and images of each split to absolute paths.

    Args:
        description: From `read_data_yaml`.
        path: The YAML file. Splits are relative to `path` in it, and that is relative to the YAML file's folder, else
            to the working folder, else to the `datasets_dir` of Ultralytics' settings: the first in which a split lies.

    Raises:
        DataError: `path` or a split is no text, or no split lies in any of these folders.
    """
    asked = f"read data set {path}"
    base = description.get("path")
    if base is not None and (not isinstance(base, str) or "\0" in base):
        raise DataError(
            asked,
            f"path is {_show(base)}",
            "write a folder, or leave it out for the folder of the YAML file",
            code="data-path-invalid",
            path=path,
            value=_scalar(base),
        )
    splits: dict[str, list[str]] = {}
    for split in (*SPLITS, "validation"):
        value = description.get(split)
        if value is None:
            continue
        entries = value if isinstance(value, list) else [value]
        if not entries or not all(isinstance(entry, str) and entry and "\0" not in entry for entry in entries):
            raise DataError(
                asked,
                f"{split} is {_show(value)}",
                "write a folder, a text file or a list of them",
                code="data-split-invalid",
                path=path,
                split=split,
                value=_scalar(value),
            )
        splits.setdefault("val" if split == "validation" else split, entries)
    roots = [folder / (base or ".") for folder in _root_folders(path, base)]
    every = [entry for entries in splits.values() for entry in entries]
    root = next((root for root in roots if any(os.path.exists(_join(root, entry)) for entry in every)), None)  # noqa: PTH110
    if root is None and every:
        tried = tuple(dict.fromkeys(str(_join(root, every[0])) for root in roots))
        raise DataError(
            asked,
            f"no split lies where it says; tried {', '.join(tried)}",
            "correct path and the splits in the YAML file",
            code="data-split-path-missing",
            path=path,
            tried=tried,
        )
    return {split: tuple(_join(root or roots[0], entry) for entry in entries) for split, entries in splits.items()}


def _root_folders(path: Path, base: str | None) -> list[Path]:
    """The folders that `path` of a YAML file may be relative to, in the order in which they are tried."""
    folders = [path.parent]
    if base:
        folders.append(Path.cwd())
        datasets = _read_datasets_dir()
        folders += [] if datasets is None else [datasets]
    return folders


MAX_SETTINGS = 2**20
"""Largest settings file of Ultralytics; it has 20 lines."""


def _read_datasets_dir() -> Path | None:
    """The `datasets_dir` of Ultralytics' settings.json; None where there is none."""
    chosen = os.environ.get("YOLO_CONFIG_DIR")
    if chosen:
        parent = Path(chosen).expanduser()
    elif sys.platform == "win32":
        parent = Path.home() / "AppData" / "Roaming"
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Application Support"
    else:
        parent = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    try:
        settings = json.loads(read_limited(parent / "Ultralytics" / "settings.json", MAX_SETTINGS))
    except (OSError, ValueError, RecursionError):
        return None
    folder = settings.get("datasets_dir") if isinstance(settings, dict) else None
    return Path(folder) if isinstance(folder, str) and folder else None


def _join(root: Path, entry: str) -> Path:
    """Join the folder of a data set and a split's entry."""
    path = Path(os.path.realpath(root / entry))
    # Some tools write ../train/images into a YAML file that is meant to be one folder deeper. `os.path` takes names of
    # any length and content for missing files, where pathlib raises.
    if entry.startswith("../") and not os.path.exists(path) and os.path.exists(root / entry[3:]):  # noqa: PTH110
        return Path(os.path.realpath(root / entry[3:]))
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
            f"channels is {_show(declared)}",
            "write the number of channels of the images",
            code="data-channels-invalid",
            value=_scalar(declared),
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
        or not all(isinstance(n, int) and not isinstance(n, bool) for n in value)
        or not 1 <= value[0] <= MAX_KEYPOINTS
        or value[1] not in (2, 3)
    ):
        raise DataError(
            asked,
            f"kpt_shape is {_show(value)}",
            "write [points, 2 or 3]",
            code="data-kpt-shape-invalid",
            value=_scalar(value),
        )
    return value[0], value[1]


def parse_flip_idx(value: Any, kpt_shape: tuple[int, int] | None, asked: str) -> tuple[int, ...]:
    """Parse `flip_idx`: the keypoint that each becomes in a mirrored image; () if it is missing.

    Args:
        value: The entry.
        kpt_shape: From `parse_kpt_shape`.
        asked: The request that error messages start with.

    Raises:
        DataError: It is no list of keypoint numbers, one for each keypoint.
    """
    if value is None or value == []:
        return ()
    points = kpt_shape[0] if kpt_shape else MAX_KEYPOINTS
    if (
        not isinstance(value, list)
        or len(value) > points
        or (kpt_shape is not None and len(value) != points)
        or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < points for n in value)
    ):
        raise DataError(
            asked,
            f"flip_idx is {_show(value)}",
            "write a list with the number of the mirrored keypoint for each keypoint",
            code="data-flip-idx-invalid",
            value=_scalar(value),
            keypoints=points,
        )
    return tuple(value)


def parse_sigmas(value: Any, kpt_shape: tuple[int, int] | None, asked: str) -> tuple[float, ...]:
    """Parse `kpt_oks_sigmas`: the OKS sigma of each keypoint; () if it is missing.

    Args:
        value: The entry.
        kpt_shape: From `parse_kpt_shape`.
        asked: The request that error messages start with.

    Raises:
        DataError: It is no list of positive numbers, one for each keypoint.
    """
    if value is None or value == []:
        return ()
    if not isinstance(value, list) or not all(
        isinstance(n, (int, float)) and not isinstance(n, bool) and 0 < n < math.inf for n in value
    ):
        raise DataError(
            asked,
            f"kpt_oks_sigmas is {_show(value)}",
            "write a list with a positive number for each keypoint",
            code="data-sigmas-invalid",
            value=_scalar(value),
        )
    if kpt_shape is not None and len(value) != kpt_shape[0]:
        raise DataError(
            asked,
            f"{len(value)} kpt_oks_sigmas for {kpt_shape[0]} keypoints",
            "give one for each",
            code="data-sigmas-count",
            sigmas=len(value),
            keypoints=kpt_shape[0],
        )
    return tuple(float(number) for number in value)

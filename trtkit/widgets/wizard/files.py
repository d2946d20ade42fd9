"""Files around the notebook: suggestions for the wizard's fields, and what a look at a data path tells."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from trtkit.errors import DataError

__all__ = ["DATA_SUFFIXES", "MODEL_SUFFIXES", "find_data_problem", "find_files"]

MODEL_SUFFIXES = (".pt", ".pth", ".onnx")
DATA_SUFFIXES = (".yaml", ".yml")

DEPTH = 3
"""Folders below the current one that are searched."""

MOST_ENTRIES = 5000
"""Entries that are looked at: more than a project has, and read in less than 0.1 s."""

MOST_FILES = 50


def find_files(suffixes: tuple[str, ...], folder: Path | None = None) -> tuple[str, ...]:
    """Files by suffix in a folder and a few levels below, hidden folders and environments left out.

    Args:
        suffixes: Such as (".pt",).
        folder: None takes the current one.

    Returns:
        Up to `MOST_FILES` paths relative to the folder, the nearest first.
    """
    root = Path() if folder is None else folder
    found = [path for path in _walk(root) if path.suffix.lower() in suffixes]
    ordered = sorted(found, key=lambda path: (len(path.parts), str(path)))
    return tuple(str(path.relative_to(root)) for path in ordered[:MOST_FILES])


def find_data_problem(data: str, task: str) -> str:
    """Why images can't be for a task, as far as the path tells; "" otherwise. Nothing but folders and YAML is read.

    Args:
        data: As the wizard's field holds it.
        task: The model's.
    """
    if any(character in data for character in "*?["):
        return ""
    try:
        return _find_problem(data, Path(data).expanduser(), task)
    except (OSError, RuntimeError) as error:
        # A name of 300 letters, an unknown ~user, another user's folder.
        return f"{data[:80]} can't be read: {getattr(error, 'strerror', None) or error}."


def _find_problem(data: str, path: Path, task: str) -> str:
    if not path.exists():
        return f"There is no {data}."
    if task == "classify":
        if path.suffix.lower() in DATA_SUFFIXES:
            return f"{path.name} is a data.yaml, and a classifier takes a folder of class folders."
        return ""
    if path.is_dir() and _has_class_folders(path):
        return f"{data} holds class folders, which are for classify; a {task} model takes a data.yaml."
    if path.suffix.lower() in DATA_SUFFIXES:
        from trtkit.data.data_yaml import read_data_yaml

        try:
            described = read_data_yaml(path)
        except DataError as error:
            return str(error)
        if task == "pose" and "kpt_shape" not in described:
            return f"{path.name} has no kpt_shape: its labels have no keypoints, which a pose model needs."
        if task != "pose" and "kpt_shape" in described:
            return f"{path.name} has labels of keypoints (kpt_shape), and the model is for {task}."
    return ""


def _walk(root: Path) -> Iterator[Path]:
    """Files below a folder, level by level, until `MOST_ENTRIES` entries were seen."""
    level, seen = [root], 0
    for _ in range(DEPTH):
        below: list[Path] = []
        for folder in level:
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                # Another user's folder, or one that went meanwhile, has nothing to suggest.
                continue
            for entry in entries:
                seen += 1
                if seen > MOST_ENTRIES:
                    return
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith((".", "__")) and not (Path(entry) / "pyvenv.cfg").exists():
                        below.append(Path(entry))
                elif entry.is_file():
                    yield Path(entry)
        level = below


def _has_class_folders(path: Path) -> bool:
    """Whether a folder has `train` or `val` with folders of classes in it, as classify's data sets have."""
    splits = [path / name for name in ("train", "val", "test")]
    folders = {entry.name for split in splits if split.is_dir() for entry in os.scandir(split) if entry.is_dir()}
    # `train/images` and `train/labels` are a layout of the other tasks.
    return bool(folders - {"images", "labels", "masks"})

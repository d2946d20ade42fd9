"""`trtkit predict`: run a model file on images, draw and save its predictions."""

from __future__ import annotations

import argparse
import io
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trtkit.cli import Command
from trtkit.cli.options import add_options, add_output, call_with_options
from trtkit.cli.output import Outcome, make_table, print_table, print_text
from trtkit.errors import DataError
from trtkit.files import escape_surrogates
from trtkit.progress import Plan, Reporter, start_work
from trtkit.writing import write_bytes

if TYPE_CHECKING:
    from trtkit.tasks import Prediction

__all__ = ["add_predict"]


def add_predict(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit predict`."""
    from trtkit import backends

    parser.add_argument("file", metavar="FILE", help="an .engine or .onnx file")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders or patterns of them, or http(s) URLs"
    )
    add_options(parser, backends.open, without=("source",))
    add_options(parser, backends.Runner.predict, without=("self", "images"))
    add_output(parser, "runs/predict", "folder of the drawn images and predictions.parquet, which are replaced")
    return _predict


def _predict(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
    """Run every image, draw and save its predictions."""
    import cv2

    from trtkit import backends
    from trtkit.data.dataset import warn_of_skipped
    from trtkit.data.image_arguments import read_image_argument
    from trtkit.data.image_files import to_display
    from trtkit.tasks import get_task
    from trtkit.tasks.base import predictions_to_frame

    paths = _collect_image_paths(values.images)
    names = _name_drawn_images(paths)
    folder = Path(values.output)
    predictions: list[Prediction] = []
    read: list[str | Path] = []
    unread: list[DataError] = []
    table = make_table("image", "predictions")
    with call_with_options(backends.open, values, source=values.file) as runner:
        reporter, task, size = Reporter(values.progress, cancel), get_task(runner.info.task), runner.batch or 1
        start_work(
            Plan(
                verb="predict",
                settings={"runner": runner.name, "imgsz": tuple(runner.imgsz), "batch": size},
                images={"input": len(paths)},
                steps=("predict", "write the table of predictions"),
                files=(*(folder / name for name in names.values()), folder / "predictions.parquet"),
            ),
            reporter,
        )
        reporter.begin("predict")
        for start in range(0, len(paths), size):
            reporter.step("predict", start, len(paths))
            images = {}
            for path in paths[start : start + size]:
                try:
                    images[path] = read_image_argument(path, runner.info.channels)
                except DataError as error:
                    unread.append(error)
            if not images:
                continue
            predicted = call_with_options(runner.predict, values, images=list(images.values()))
            predictions += predicted
            read += images
            for (path, image), prediction in zip(images.items(), predicted, strict=True):
                drawn = task.draw(to_display(image), prediction, runner.info.names)
                write_bytes(folder / names[path], cv2.imencode(".jpg", drawn)[1].tobytes())
                table.add_row(str(path), _summarize_prediction(prediction, runner.info.names))
        reporter.step("predict", len(paths), len(paths))
        if not read:
            raise unread[0]
        frame = predictions_to_frame(task, [str(path) for path in read], predictions, runner.info.names)
    warn_of_skipped(unread)
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    reporter.begin("write the table of predictions")
    saved = write_bytes(folder / "predictions.parquet", buffer.getvalue())

    def show() -> None:
        print_table(table)
        print_text(f"\n{folder}  {len(read)} drawn images, {saved.name}")

    return Outcome(show, facts={"skipped": len(unread)}, rows=frame.to_dicts(), output=folder)


def _collect_image_paths(words: Sequence[str]) -> list[str | Path]:
    """The named image files and URLs, and the images in the named folders and behind patterns."""
    from trtkit.data.image_arguments import is_url
    from trtkit.data.image_lists import list_source_images

    paths: list[str | Path] = []
    for word in words:
        if is_url(word):
            paths.append(word)
        else:
            paths += [Path(word)] if Path(word).is_file() else list_source_images(word)
    return list(dict.fromkeys(paths))


def _name_drawn_images(paths: Sequence[str | Path]) -> dict[str | Path, Path]:
    """Name drawn images below the common folder of the paths: `a.jpg`, or `a.png.jpg` where two are named `a`.

    An image behind a URL has the last part of its path as its name.
    """
    folders = [path.absolute().parent for path in paths if isinstance(path, Path)]
    root = Path(os.path.commonpath(folders)) if folders else Path()
    inside = {
        path: Path(escape_surrogates(str(path.absolute().relative_to(root))))
        if isinstance(path, Path)
        else Path(PurePosixPath(urlsplit(path).path).name or "image")
        for path in paths
    }
    # Without regard to case: "A.jpg" and "a.jpg" are one file on Windows and macOS.
    counts = Counter(str(name.with_suffix("")).lower() for name in inside.values())
    drawn = {
        path: name.with_suffix(".jpg")
        if counts[str(name.with_suffix("")).lower()] == 1
        else name.with_name(f"{name.name}.jpg")
        for path, name in inside.items()
    }
    if len({str(name).lower() for name in drawn.values()}) == len(drawn):
        return drawn
    # "a.jpg", "a.png" and "a.jpg.png": with all suffixes no two are the same.
    return {path: name.with_name(f"{name.name}.jpg") for path, name in inside.items()}


def _summarize_prediction(prediction: Prediction, names: Mapping[int, str]) -> str:
    """ "3 × cat, 1 × dog", or the top-1 class."""
    from trtkit.tasks import Detections
    from trtkit.tasks.classify import Classification

    if isinstance(prediction, Classification):
        best = prediction.top1
        return f"{names.get(best, best)} {prediction.probabilities[best]:.2f}"
    assert isinstance(prediction, Detections)
    counts = Counter(prediction.classes.tolist()).most_common()
    return ", ".join(f"{count} × {names.get(number, number)}" for number, count in counts) or "none"

"""`trtkit predict`: what a model file finds in pictures, drawn on them and as a table."""

from __future__ import annotations

import argparse
import io
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from trtkit.cli.bars import Bars
from trtkit.cli.options import add_options, called
from trtkit.cli.parser import Command
from trtkit.cli.printing import columns, print_table
from trtkit.errors import DataError, RecipeError
from trtkit.files import write_bytes
from trtkit.progress import Work

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trtkit.tasks import Prediction

__all__ = ["predict_options"]


def predict_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `Runner.predict`, and where the drawn pictures go."""
    from trtkit.backends import Runner

    parser.add_argument("file", metavar="FILE", help="an .engine or .onnx file")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files, or folders of them")
    parser.add_argument("--device", help="GPU index or name; the first GPU if left out")
    add_options(parser, Runner.predict, without=("self", "images"))
    parser.add_argument(
        "--output",
        default="runs/predict",
        metavar="FOLDER",
        help="folder of the drawn pictures and predictions.parquet; files of those names are replaced "
        "[default: runs/predict]",
    )
    return predict


def predict(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Run every picture, draw what was found, and print it."""
    import cv2

    from trtkit import backends
    from trtkit.data.pictures import read_picture
    from trtkit.tasks import task
    from trtkit.tasks.frames import prediction_frame

    paths = _pictures(values.pictures)
    folder = Path(values.output)
    found: list[Prediction] = []
    table = columns("picture", "found")
    with backends.open(values.file, device=values.device) as runner, Bars() as bars:
        work, judge, size = Work(bars, cancel), task(runner.card.task), runner.batch or 1
        for start in range(0, len(paths), size):
            work.step("predict", start, len(paths))
            chunk = paths[start : start + size]
            pictures = [read_picture(path) for path in chunk]
            predictions = called(runner.predict, values, images=pictures)
            found += predictions
            for path, picture, prediction in zip(chunk, pictures, predictions, strict=True):
                drawn = judge.draw(picture, prediction, runner.card.names)
                write_bytes(folder / f"{path.stem}.jpg", cv2.imencode(".jpg", drawn)[1].tobytes())
                table.add_row(str(path), _told(prediction, runner.card.names))
        work.step("predict", len(paths), len(paths))
        frame = prediction_frame(judge, [str(path) for path in paths], found, runner.card.names)
    print_table(table)
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    print()
    print(f"{folder}  {len(paths)} drawn, {write_bytes(folder / 'predictions.parquet', buffer.getvalue()).name}")


def _pictures(words: Sequence[str]) -> list[Path]:
    """The picture files that are named, those in named folders included."""
    from trtkit.data.pictures import pictures_in

    paths: list[Path] = []
    for word in words:
        path = Path(word)
        inside = pictures_in(path) if path.is_dir() else (path,)
        if not inside:
            raise DataError(f"predict on {path}", "the folder holds no picture", "name a folder with pictures")
        paths += inside
    stem, count = Counter(path.stem for path in paths).most_common(1)[0]
    if count > 1:
        raise RecipeError(
            "predict", f"{count} pictures are named {stem!r}, and so would be what is drawn", "predict on one at a time"
        )
    return paths


def _told(prediction: Prediction, names: Mapping[int, str]) -> str:
    """ "3 × cat, 1 × dog", or the likeliest class."""
    from trtkit.tasks import Detections
    from trtkit.tasks.classify import Ranking

    if isinstance(prediction, Ranking):
        best = prediction.best
        return f"{names.get(best, best)} {prediction.probabilities[best]:.2f}"
    assert isinstance(prediction, Detections)
    counts = Counter(prediction.classes.tolist()).most_common()
    return ", ".join(f"{count} × {names.get(number, number)}" for number, count in counts) or "nothing"

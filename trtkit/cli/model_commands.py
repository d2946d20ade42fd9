"""Commands that judge model files: evaluate, benchmark, compare and report."""

from __future__ import annotations

import argparse
import io
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.cli import Command
from trtkit.cli.options import add_options, call_with_options
from trtkit.cli.output import ProgressBars, make_frame_table, make_table, print_table
from trtkit.errors import DataError, OutputExistsError, RecipeError
from trtkit.files import write_bytes
from trtkit.progress import Reporter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trtkit.comparison.comparison import Comparison
    from trtkit.tasks import Prediction

__all__ = [
    "benchmark_options",
    "calibrate_options",
    "compare_options",
    "evaluate_options",
    "examine_options",
    "export_options",
    "predict_options",
    "print_comparison",
    "report_options",
    "search_options",
    "sensitivity_options",
    "sweep_options",
]


def evaluate_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.evaluate`, and where to keep the result."""
    from trtkit.evaluation.evaluator import evaluate

    add_options(parser, evaluate, first={"runner": "An .engine or .onnx file.", "data": "A data.yaml with labels."})
    parser.add_argument("--output", metavar="FOLDER", help="folder to save the result in; nothing is saved without it")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with ProgressBars() as bars:
            found = call_with_options(evaluate, values, progress=bars, cancel=cancel)
        table = make_table("metric", "by", numbers=("value",))
        for row in found.frame().iter_rows(named=True):
            table.add_row(row["metric"], row["rule"], f"{row['value']:.4f}")
        print_table(table)
        print(f"\n{found.image_count} images, {len(found.skipped)} skipped, by {found.provenance.runner}")
        if values.output:
            print(found.save(values.output))

    return run


def benchmark_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.benchmark`, and where to keep the result."""
    from trtkit.evaluation.latency import benchmark

    parser.add_argument("files", nargs="+", metavar="FILE", help="model files, or LABEL=FILE")
    add_options(parser, benchmark, without=("runners",))
    parser.add_argument("--output", metavar="FOLDER", help="folder to save the result in; nothing is saved without it")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        files: dict[str, str] = {}
        for word in values.files:
            label, _, file = word.rpartition("=")
            files[label or Path(file).name] = file
        if len(files) < len(values.files):
            raise RecipeError("benchmark", "two files have one label", "give labels: LABEL=FILE")
        with ProgressBars() as bars:
            found = call_with_options(benchmark, values, runners=files, progress=bars, cancel=cancel)
        shown = ("mean_ms", "p50_ms", "p90_ms", "p99_ms", "image_ms", "images_per_s")
        table = make_table("label", "runner", "clock", "batch", numbers=shown)
        for row in found.frame().iter_rows(named=True):
            words = (row["label"], row["runner"], row["clock"], str(row["batch"]))
            table.add_row(*words, *(f"{row[name]:.2f}" for name in shown))
        print_table(table)
        if values.output:
            print(found.save(values.output))

    return run


def compare_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.compare`."""
    from trtkit.comparison.comparator import compare

    add_options(parser, compare, first={"model": "A .pt or .onnx file.", "data": "A data.yaml with labels."})

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with ProgressBars() as bars:
            found = call_with_options(compare, values, progress=bars, cancel=cancel)
        print_comparison(found, values.output)

    return run


def report_options(parser: argparse.ArgumentParser) -> Command:
    """Which comparison, and where its report goes."""
    parser.add_argument("folder", metavar="FOLDER", help="what compare wrote")
    parser.add_argument("--output", metavar="FILE", help="the HTML file [default: report.html in the folder]")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        from trtkit.comparison.comparison import Comparison

        found = Comparison.load(values.folder)
        print(found.report(values.output or Path(values.folder) / "report.html"))

    return run


def print_comparison(found: Comparison, folder: str | Path) -> None:
    """Print the table, the verdict and the places of the files."""
    rows = found.rows
    batches = rows["batch"].n_unique() > 1
    heads = ["batch"] if batches else []
    for column, _ in found.about["metrics"]:
        heads += [column, "change"]
    table = make_table("", numbers=(*heads, "ms an image", "p99", "ONNX MB", "engine MB", "build s"))
    for row in rows.iter_rows(named=True):
        cells: list[Any] = [str(row["batch"])] if batches else []
        for column, _ in found.about["metrics"]:
            moved = "" if row["precision"] == found.about["reference"] else f"{row[f'delta {column}']:+.4f}"
            cells += [f"{row[column]:.4f}", moved]
        cells += [_number(row["image_ms"], 2), _number(row["p99_ms"] / row["batch"], 2)]
        cells += [_number(row["onnx_mb"], 1), _number(row["engine_mb"], 1), _number(row["build_s"], 1)]
        table.add_row(row["precision"].upper(), *cells)
    print_table(table)
    print()
    for said in found.verdict():
        print(f"- {said}")
    print()
    for name in ("report.html", "comparison.parquet", "recipe.json"):
        print(Path(folder) / name)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


# Commands that make files from a model: export and calibrate.


def export_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.export`."""
    from trtkit.exporter import export

    add_options(parser, export, first={"model": "A .pt or .onnx file."})

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with ProgressBars() as bars:
            made = call_with_options(export, values, progress=bars, cancel=cancel)
        print(f"{made.path}  {made.precision} {made.format}, {made.size / 1e6:.1f} MB, {made.seconds:.1f} s")

    return run


def calibrate_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.calibrate`, and where to keep the result."""
    from trtkit.calibration import calibrate

    add_options(parser, calibrate, first={"model": "A .pt or .onnx file.", "data": "A data.yaml."})
    parser.add_argument(
        "--output", default="runs/calibrate", metavar="FOLDER", help="folder of the result [default: runs/calibrate]"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a calibration that is already there")
    parser.add_argument("--tensorrt-cache", metavar="FILE", help="write the scales as TensorRT's own .cache text too")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        if (Path(values.output) / "calibration.json").exists() and not values.overwrite:
            raise OutputExistsError(
                f"write {values.output}",
                "it holds a calibration, which was kept",
                "pass --overwrite or another --output",
            )
        with ProgressBars() as bars:
            found = call_with_options(calibrate, values, progress=bars, cancel=cancel)
        print(found)
        if values.tensorrt_cache is not None:
            write_bytes(Path(values.tensorrt_cache), found.to_tensorrt_cache().encode())
            print(f"{values.tensorrt_cache}  the scales as TensorRT's own calibrators write them")
        print(f"{found.save(values.output)}  use it: trtkit export {values.model} --int8 --calibration {values.output}")

    return run


# `trtkit predict`: what a model file finds in images, drawn on them and as a table.


def predict_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `Runner.predict`, and where the drawn images go."""
    from trtkit.backends import Runner

    parser.add_argument("file", metavar="FILE", help="an .engine or .onnx file")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--device", help="GPU index or name; the first GPU if left out")
    add_options(parser, Runner.predict, without=("self", "images"))
    parser.add_argument(
        "--output",
        default="runs/predict",
        metavar="FOLDER",
        help="folder of the drawn images and predictions.parquet; files of those names are replaced "
        "[default: runs/predict]",
    )
    return predict


def predict(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Run every image, draw what was found, and print it."""
    import cv2

    from trtkit import backends
    from trtkit.data.images import read_image
    from trtkit.tasks import get_task
    from trtkit.tasks.base import predictions_to_frame

    paths = _collect_image_paths(values.images)
    folder = Path(values.output)
    found: list[Prediction] = []
    table = make_table("image", "found")
    with backends.open(values.file, device=values.device) as runner, ProgressBars() as bars:
        reporter, judge, size = Reporter(bars, cancel), get_task(runner.info.task), runner.batch or 1
        for start in range(0, len(paths), size):
            reporter.step("predict", start, len(paths))
            chunk = paths[start : start + size]
            images = [read_image(path) for path in chunk]
            predictions = call_with_options(runner.predict, values, images=images)
            found += predictions
            for path, image, prediction in zip(chunk, images, predictions, strict=True):
                drawn = judge.draw(image, prediction, runner.info.names)
                write_bytes(folder / f"{path.stem}.jpg", cv2.imencode(".jpg", drawn)[1].tobytes())
                table.add_row(str(path), _summarize_prediction(prediction, runner.info.names))
        reporter.step("predict", len(paths), len(paths))
        frame = predictions_to_frame(judge, [str(path) for path in paths], found, runner.info.names)
    print_table(table)
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    print()
    print(f"{folder}  {len(paths)} drawn, {write_bytes(folder / 'predictions.parquet', buffer.getvalue()).name}")


def _collect_image_paths(words: Sequence[str]) -> list[Path]:
    """The image files that are named, those in named folders included."""
    from trtkit.data.images import list_images

    paths: list[Path] = []
    for word in words:
        path = Path(word)
        inside = list_images(path) if path.is_dir() else (path,)
        if not inside:
            raise DataError(f"predict on {path}", "the folder holds no image", "name a folder with images")
        paths += inside
    stem, count = Counter(path.stem for path in paths).most_common(1)[0]
    if count > 1:
        raise RecipeError(
            "predict", f"{count} images are named {stem!r}, and so would be what is drawn", "predict on one at a time"
        )
    return paths


def _summarize_prediction(prediction: Prediction, names: Mapping[int, str]) -> str:
    """ "3 × cat, 1 × dog", or the likeliest class."""
    from trtkit.tasks import Detections
    from trtkit.tasks.classify import Classification

    if isinstance(prediction, Classification):
        best = prediction.top1
        return f"{names.get(best, best)} {prediction.probabilities[best]:.2f}"
    assert isinstance(prediction, Detections)
    counts = Counter(prediction.classes.tolist()).most_common()
    return ", ".join(f"{count} × {names.get(number, number)}" for number, count in counts) or "nothing"


# Commands of the calibration lab: examine, sweep, sensitivity and search.


MODEL = {"model": "A .pt or .onnx file.", "data": "A data.yaml."}


def examine_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.examine`, and where to keep the result."""
    from trtkit.calibration.diagnosis import examine

    return _add_tuning_command(parser, examine, {"data": "A data.yaml."}, "runs/examine")


def sweep_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.sweep`, and where to keep the result."""
    from trtkit.tuning.sweep import sweep

    return _add_tuning_command(parser, sweep, MODEL, "runs/sweep")


def sensitivity_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.sensitivity`, and where to keep the result."""
    from trtkit.tuning.sensitivity import sensitivity

    return _add_tuning_command(parser, sensitivity, MODEL, "runs/sensitivity")


def search_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.search`, and where to keep the result."""
    from trtkit.tuning.search_loop import search

    return _add_tuning_command(parser, search, MODEL, "runs/search")


def _add_tuning_command(
    parser: argparse.ArgumentParser, function: Callable[..., Any], first: dict[str, str], output: str
) -> Command:
    add_options(parser, function, first=first)
    parser.add_argument(
        "--output", default=output, metavar="FOLDER", help=f"folder of the result and its figure [default: {output}]"
    )

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with ProgressBars() as bars:
            found = call_with_options(function, values, progress=bars, cancel=cancel)
        print_table(make_frame_table(found.frame()))
        print()
        print(found)
        folder = found.save(values.output)
        figure = folder / f"{found.kind}.html"
        found.plot().write_html(figure)
        print(f"{folder}  the figure: {figure}")

    return run

"""Commands on models and model files, in the order of `trtkit --help`."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import shutil
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.cli import Command
from trtkit.cli.options import DEVICE, add_options, call_with_options
from trtkit.cli.output import ProgressBars, make_frame_table, make_table, print_table, print_text, print_wrapped
from trtkit.errors import DataError, EngineError, OutputExistsError, RecipeError
from trtkit.files import check_output, escape_surrogates, find_published, write_bytes
from trtkit.progress import Plan, Reporter, start_work
from trtkit.recipe import format_label

if TYPE_CHECKING:
    from rich.table import Table

    from trtkit.comparison.cards import CardRow
    from trtkit.comparison.comparison import Comparison
    from trtkit.tasks import Prediction

__all__ = [
    "add_benchmark",
    "add_calibrate",
    "add_compare",
    "add_deploy",
    "add_evaluate",
    "add_evaluate_int8",
    "add_examine",
    "add_export",
    "add_load_test",
    "add_predict",
    "add_report",
    "add_search",
    "add_sensitivity",
    "add_sweep",
    "add_verify",
    "add_why_slow",
    "print_comparison",
]


def _add_output(parser: argparse.ArgumentParser, default: str | None, text: str) -> None:
    """Add `--output FOLDER`; without a default nothing is saved."""
    shown = "nothing is saved" if default is None else default
    parser.add_argument("--output", default=default, metavar="FOLDER", help=f"{text} [default: {shown}]")
    # `main` checks the folder before the work.
    parser.set_defaults(saves_to_folder=True)


def add_export(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit export`."""
    from trtkit.exporter import export

    add_options(parser, export, positional=("model",))

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with ProgressBars() as bars:
            artifact = call_with_options(export, values, progress=bars, cancel=cancel)
        size = f"{artifact.size / 1e6:.1f} MB, {artifact.seconds:.1f} s"
        print_text(f"{artifact.path}  {artifact.precision} {artifact.format}, {size}")
        if artifact.verification is not None:
            print_text(artifact.verification)

    return run


def add_calibrate(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit calibrate`."""
    from trtkit.calibration import calibrate

    add_options(parser, calibrate, positional=("model", "data"))
    _add_output(parser, "runs/calibrate", "folder of the calibration")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing calibration")
    parser.add_argument("--tensorrt-cache", metavar="FILE", help="also write the scales as a TensorRT .cache file")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        if find_published(values.output, "calibration.json").exists() and not values.overwrite:
            raise OutputExistsError(
                f"write the calibration {values.output}",
                "it exists and was kept",
                "use --overwrite or another --output",
                code="cli-calibration-exists",
                path=values.output,
            )
        if values.tensorrt_cache is not None:
            check_output(values.tensorrt_cache, overwrite=True)
        with ProgressBars() as bars:
            calibration = call_with_options(calibrate, values, progress=bars, cancel=cancel)
        print_text(calibration)
        if values.tensorrt_cache is not None:
            write_bytes(Path(values.tensorrt_cache), calibration.to_tensorrt_cache().encode())
            print_text(f"{values.tensorrt_cache}  scales in the format of TensorRT's calibrators")
        folder = calibration.save(values.output)
        head = " --end2end" if values.end2end else ""
        print_text(f"{folder}  to use it: trtkit export {values.model}{head} --int8 --calibration {values.output}")

    return run


def add_predict(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit predict`."""
    from trtkit.backends import Runner

    parser.add_argument("file", metavar="FILE", help="an .engine or .onnx file")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders or patterns of them")
    parser.add_argument("--device", type=DEVICE.type, metavar=DEVICE.metavar, help=DEVICE.help)
    add_options(parser, Runner.predict, without=("self", "images"))
    _add_output(parser, "runs/predict", "folder of the drawn images and predictions.parquet, which are replaced")
    return _predict


def _predict(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Run every image, draw and save its predictions, and print them."""
    import cv2

    from trtkit import backends
    from trtkit.data.dataset import warn_of_skipped
    from trtkit.data.image_files import read_image, to_display
    from trtkit.tasks import get_task
    from trtkit.tasks.base import predictions_to_frame

    paths = _collect_image_paths(values.images)
    names = _name_drawn_images(paths)
    folder = Path(values.output)
    predictions: list[Prediction] = []
    read: list[Path] = []
    unread: list[DataError] = []
    table = make_table("image", "predictions")
    with backends.open(values.file, device=values.device) as runner, ProgressBars() as bars:
        reporter, task, size = Reporter(bars, cancel), get_task(runner.info.task), runner.batch or 1
        start_work(
            Plan(
                verb="predict",
                settings={"runner": runner.name, "imgsz": tuple(runner.imgsz), "batch": size},
                images={"input": len(paths)},
                steps=("run the images", "draw their predictions"),
                files=(*(folder / name for name in names.values()), folder / "predictions.parquet"),
            )
        )
        for start in range(0, len(paths), size):
            reporter.step("predict", start, len(paths))
            images = {}
            for path in paths[start : start + size]:
                try:
                    images[path] = read_image(path, runner.info.channels)
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
    print_table(table)
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    saved = write_bytes(folder / "predictions.parquet", buffer.getvalue())
    print_text(f"\n{folder}  {len(read)} drawn images, {saved.name}")


def _collect_image_paths(words: Sequence[str]) -> list[Path]:
    """The named image files, and those in the named folders and behind patterns."""
    from trtkit.data.dataset import list_source_images

    paths = [path for word in words for path in ((Path(word),) if Path(word).is_file() else list_source_images(word))]
    return list(dict.fromkeys(paths))


def _name_drawn_images(paths: Sequence[Path]) -> dict[Path, Path]:
    """Name drawn images below the common folder of the paths: `a.jpg`, or `a.png.jpg` where two are named `a`."""
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    inside = {path: Path(escape_surrogates(str(path.absolute().relative_to(root)))) for path in paths}
    # Without regard to case: "A.jpg" and "a.jpg" are one file on Windows and macOS.
    counts = Counter(str(name.with_suffix("")).lower() for name in inside.values())
    return {
        path: name.with_suffix(".jpg")
        if counts[str(name.with_suffix("")).lower()] == 1
        else name.with_name(f"{name.name}.jpg")
        for path, name in inside.items()
    }


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


def add_evaluate(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit evaluate`."""
    from trtkit.evaluation.evaluation import evaluate

    add_options(parser, evaluate, positional=("runner", "data"))
    _add_output(parser, None, "folder of the result")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with ProgressBars() as bars:
            evaluation = call_with_options(evaluate, values, progress=bars, cancel=cancel)
        table = make_table("metric", "rule", numbers=("value",))
        for row in evaluation.frame().iter_rows(named=True):
            table.add_row(row["metric"], row["rule"], f"{row['value']:.4f}")
        print_table(table)
        skipped = f", {len(evaluation.skipped)} skipped" if evaluation.skipped else ""
        print_text(f"\n{evaluation.image_count} images{skipped}, {evaluation.provenance.runner}")
        if values.output:
            print_text(evaluation.save(values.output))

    return run


def add_evaluate_int8(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit evaluate-int8`."""
    from trtkit.tuning.int8_evaluation import evaluate_int8

    return _add_tuning_verb(parser, evaluate_int8, ("model", "data"), "runs/evaluate-int8")


def add_benchmark(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit benchmark`."""
    from trtkit.evaluation.latency import benchmark

    parser.add_argument("files", nargs="+", metavar="FILE", help="model files, or LABEL=FILE")
    add_options(parser, benchmark, without=("runners",))
    _add_output(parser, None, "folder of the result")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        files: dict[str, str] = {}
        for word in values.files:
            label, _, file = word.rpartition("=")
            files[label or Path(file).name] = file
        if len(files) < len(values.files):
            raise RecipeError(
                "benchmark several files",
                "two of them have the same label",
                "give each file a label: LABEL=FILE",
                code="cli-labels-collide",
                names=tuple(values.files),
            )
        with ProgressBars() as bars:
            timing = call_with_options(benchmark, values, runners=files, progress=bars, cancel=cancel)
        numbers = {
            "mean_ms": "mean, ms",
            "p50_ms": "p50, ms",
            "p90_ms": "p90, ms",
            "p99_ms": "p99, ms",
            "image_ms": "ms/image",
            "images_per_s": "images/s",
        }
        table = make_table("label", "runner", "clock", "batch", numbers=tuple(numbers.values()))
        for row in timing.frame().iter_rows(named=True):
            words = (row["label"], row["runner"], row["clock"], str(row["batch"]))
            table.add_row(*words, *(f"{row[name]:.2f}" for name in numbers))
        print_table(table)
        if values.output:
            print_text(timing.save(values.output))

    return run


def add_load_test(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit load-test`."""
    from trtkit.evaluation.load_test import load_test

    add_options(parser, load_test, positional=("runner",))
    _add_output(parser, None, "folder of the result")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with ProgressBars() as bars:
            result = call_with_options(load_test, values, progress=bars, cancel=cancel)
        print_table(make_frame_table(result.frame()))
        print_text(f"\n{result.runner}")
        if values.output:
            print_text(result.save(values.output))

    return run


def add_verify(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit verify`."""
    from trtkit.verification import verify

    add_options(parser, verify, positional=("artifact", "data"))
    _add_output(parser, None, "folder of the result")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        result = call_with_options(verify, values)
        print_table(make_frame_table(result.summary()))
        print_text()
        print_text(result)
        if values.output is not None:
            print_text(result.save(values.output))
        if result.verdict == "differs":
            raise EngineError(
                f"verify {values.artifact}",
                f"it differs from its graph in ONNX Runtime: {result.describe_differences()}",
                "build it at another opt_level or precision",
                code="engine-differs",
                path=values.artifact,
            )

    return run


def add_deploy(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit deploy`."""
    from trtkit.deployment import deploy

    add_options(parser, deploy, positional=("target", "artifact"))

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with ProgressBars() as bars:
            deployment = call_with_options(deploy, values, progress=bars, cancel=cancel)
        print_text(f"{deployment.folder}  {len(deployment.files)} files for {deployment.target}; see README.md")

    return run


def add_compare(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit compare`."""
    from trtkit.comparison.comparator import compare

    add_options(parser, compare, positional=("model", "data"))
    parser.add_argument("-v", "--verbose", action="store_true", help="also print every number and finding")
    parser.add_argument("--json", action="store_true", help="print verdicts and numbers as JSON instead of tables")
    parser.add_argument(
        "--gate",
        metavar="NAME",
        help="exit with the verdict on this precision or candidate: 0 ship, 1 don't ship, 3 can't tell (2 is an error)",
    )
    parser.epilog = "Exit status: 0 done, 2 error; with --gate 0 ship, 1 don't ship, 3 can't tell."

    def run(values: argparse.Namespace, cancel: threading.Event) -> int | None:
        if values.gate is not None:
            _check_gate(values)
        with ProgressBars() as bars:
            comparison = call_with_options(compare, values, progress=bars, cancel=cancel)
        if values.json:
            print_text(json.dumps(comparison_json(comparison, values.output), indent=2))
        else:
            print_comparison(comparison, values.output, verbose=values.verbose)
        return None if values.gate is None else comparison.verdicts[values.gate].exit_status

    return run


def _check_gate(values: argparse.Namespace) -> None:
    """Refuse a gate on what is not compared, or on the reference, before any work."""
    names = [*values.precisions, *(values.candidates or {})]
    reference = "fp32" if "fp32" in names else names[0]
    choices = [name for name in names if name != reference]
    if values.gate not in choices:
        raise RecipeError(
            f"compare with --gate {values.gate}",
            "it is the reference of the comparison" if values.gate == reference else "it is not compared",
            f"choose from {', '.join(choices)}" if choices else "compare two precisions or more",
            code="cli-gate-unknown",
            value=values.gate,
            names=choices,
        )


def comparison_json(comparison: Comparison, folder: str | Path) -> dict[str, Any]:
    """Verdicts and numbers of a comparison as JSON-ready data.

    Args:
        comparison: The comparison.
        folder: The folder it was saved in.
    """
    names = ("model", "task", "data", "split", "imgsz", "eval_images", "reference", "max_drop")
    return {
        **{name: comparison.about[name] for name in names},
        "verdicts": {name: verdict.to_dict() for name, verdict in comparison.verdicts.items()},
        "rows": comparison.rows.fill_nan(None).to_dicts(),
        "output": str(folder),
    }


def add_why_slow(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit why-slow`."""
    from trtkit.inspection import why_slow

    add_options(parser, why_slow, positional=("engine", "baseline"))
    parser.add_argument("--json", action="store_true", help="print the causes and layers as JSON instead of tables")
    parser.add_argument(
        "--limit", type=int, default=MAX_LAYER_ROWS, metavar="N", help=f"rows of layers [default: {MAX_LAYER_ROWS}]"
    )

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        diagnosis = call_with_options(why_slow, values)
        if values.json:
            print_text(json.dumps(diagnosis.to_dict(), indent=2))
            return
        for line in repr(diagnosis).splitlines():
            print_wrapped(line)
        rows = diagnosis.layers.head(values.limit)
        if rows.is_empty():
            return
        print_text()
        table = make_table(
            "node", "precision", "change", numbers=("us", "against", "difference", "kernels", "reformats")
        )
        for row in rows.iter_rows(named=True):
            table.add_row(
                row["node"],
                _format_pair(row["baseline_precision"], row["precision"]),
                row["cause"],
                *(_format_number(row[name], 1) for name in ("us", "baseline_us", "delta_us")),
                *(_format_pair(row[f"baseline_{name}"], row[name]) for name in ("kernels", "reformats")),
            )
        print_table(table)
        if len(diagnosis.layers) > len(rows):
            print_text(f"{len(diagnosis.layers) - len(rows)} more; --limit shows them")

    return run


MAX_LAYER_ROWS = 12
"""Rows of layers that `trtkit why-slow` shows unless more are asked for; with the causes they fit a screen."""


def _format_pair(before: Any, after: Any) -> str:
    """One value, or both where they differ."""
    shown = ["-" if value is None else str(value) for value in (before, after)]
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]}"


def add_report(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit report`."""
    parser.add_argument("folder", metavar="FOLDER", help="the --output of compare")
    parser.add_argument("--output", metavar="FILE", help="the HTML file [default: report.html in the folder]")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        from trtkit.comparison.comparison import Comparison

        comparison = Comparison.load(values.folder)
        path = Path(values.output or Path(values.folder) / "report.html")
        start_work(Plan(verb="report", steps=("write the report",), files=(path,)))
        print_text(comparison.report(path))

    return run


def print_comparison(comparison: Comparison, folder: str | Path, *, verbose: bool = False) -> None:
    """Print the verdicts and cards of a comparison, and the paths of its files; they fit a screen of 80 x 24.

    Args:
        comparison: The comparison.
        folder: The folder it was saved in.
        verbose: Also print the table of numbers and the findings, before the verdicts.
    """
    from trtkit.comparison.cards import make_cards

    if verbose:
        print_table(_comparison_table(comparison))
        print_text()
        for sentence in comparison.findings():
            print_wrapped(f"- {sentence}")
        print_text()
    for verdict in comparison.verdicts.values():
        print_wrapped(verdict)
        for line in verdict.advice if verbose else ():
            print_wrapped(f"  {line}")
    print_text()
    cards = make_cards(comparison)
    columns = [[_format_card_row(row) for row in card.rows] for card in cards]
    widths = [max(map(len, (card.title, *lines))) for card, lines in zip(cards, columns, strict=True)]
    if sys.stdout.isatty():
        # On a narrow terminal latencies wrap, which have spaces at good places.
        widths[1] = max(12, min(widths[1], shutil.get_terminal_size().columns - widths[0] - widths[2] - 4))
    columns = [
        [*textwrap.wrap(card.subtitle, width), *(part for line in lines for part in textwrap.wrap(line, width))]
        for card, lines, width in zip(cards, columns, widths, strict=True)
    ]
    table = make_table(*(card.title for card in cards))
    for cells in itertools.zip_longest(*columns, fillvalue=""):
        table.add_row(*cells)
    print_table(table)
    print_text()
    for name in ("report.html", "comparison.parquet", "recipe.json"):
        print_text(Path(folder) / name)


def _format_card_row(row: CardRow) -> str:
    return " ".join(word for word in (row.label, row.value, row.note) if word)


def _comparison_table(comparison: Comparison) -> Table:
    """Accuracy, latency, size and build time, one row per precision and batch."""
    rows = comparison.rows
    batches = rows["batch"].n_unique() > 1
    heads = ["batch"] if batches else []
    for column, _ in comparison.about["metrics"]:
        heads += [column, "change"]
    table = make_table("", numbers=(*heads, "p50 ms/image", "p99", "ONNX MB", "engine MB", "build s"))
    for row in rows.iter_rows(named=True):
        cells: list[Any] = [str(row["batch"])] if batches else []
        for column, _ in comparison.about["metrics"]:
            is_reference = row["precision"] == comparison.about["reference"]
            cells += [f"{row[column]:.4f}", "" if is_reference else f"{row[f'delta {column}']:+.4f}"]
        cells += [_format_number(row[name] / row["batch"], 2) for name in ("p50_ms", "p99_ms")]
        cells += [_format_number(row[name], 1) for name in ("onnx_mb", "engine_mb", "build_s")]
        table.add_row(format_label(row["precision"]), *cells)
    return table


def _format_number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def add_examine(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit examine`."""
    from trtkit.calibration.diagnosis import examine

    return _add_tuning_verb(parser, examine, ("data",), "runs/examine")


def add_sweep(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit sweep`."""
    from trtkit.tuning.sweep import sweep

    return _add_tuning_verb(parser, sweep, ("model", "data"), "runs/sweep")


def add_sensitivity(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit sensitivity`."""
    from trtkit.tuning.sensitivity import sensitivity

    return _add_tuning_verb(parser, sensitivity, ("model", "data"), "runs/sensitivity")


def add_search(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit search`."""
    from trtkit.tuning.search_loop import search

    return _add_tuning_verb(parser, search, ("model", "data"), "runs/search")


def _add_tuning_verb(
    parser: argparse.ArgumentParser, function: Callable[..., Any], positional: Sequence[str], output: str
) -> Command:
    """Add the options of a verb whose result is printed, saved and plotted."""
    add_options(parser, function, positional=positional)
    _add_output(parser, output, "folder of the result and its figure")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with ProgressBars() as bars:
            result = call_with_options(function, values, progress=bars, cancel=cancel)
        print_table(make_frame_table(result.frame()))
        print_text()
        print_text(result)
        folder = result.save(values.output)
        figure = folder / f"{result.kind}.html"
        write_bytes(figure, result.plot().to_html().encode())
        print_text(f"{folder}  figure: {figure}")

    return run

"""Commands that judge model files: evaluate, benchmark, compare and report."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.cli.bars import Bars
from trtkit.cli.options import add_options, called
from trtkit.cli.parser import Command
from trtkit.cli.printing import columns, print_table
from trtkit.errors import RecipeError

if TYPE_CHECKING:
    from trtkit.judgement.comparison import Comparison

__all__ = ["benchmark_options", "compare_options", "evaluate_options", "report_options", "show_comparison"]


def evaluate_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.evaluate`, and where to keep the result."""
    from trtkit.judgement.evaluation import evaluate

    add_options(parser, evaluate, first={"runner": "An .engine or .onnx file.", "data": "A data.yaml with labels."})
    parser.add_argument("--output", metavar="FOLDER", help="folder to save the result in; nothing is saved without it")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with Bars() as bars:
            found = called(evaluate, values, progress=bars, cancel=cancel)
        table = columns("metric", "by", numbers=("value",))
        for row in found.frame().iter_rows(named=True):
            table.add_row(row["metric"], row["rule"], f"{row['value']:.4f}")
        print_table(table)
        print(f"\n{found.pictures} pictures, {len(found.skipped)} left out, by {found.origin.runner}")
        if values.output:
            print(found.save(values.output))

    return run


def benchmark_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.benchmark`, and where to keep the result."""
    from trtkit.judgement.timing import benchmark

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
        with Bars() as bars:
            found = called(benchmark, values, runners=files, progress=bars, cancel=cancel)
        shown = ("mean_ms", "p50_ms", "p90_ms", "p99_ms", "picture_ms", "pictures_per_s")
        table = columns("label", "runner", "clock", "batch", numbers=shown)
        for row in found.frame().iter_rows(named=True):
            words = (row["label"], row["runner"], row["clock"], str(row["batch"]))
            table.add_row(*words, *(f"{row[name]:.2f}" for name in shown))
        print_table(table)
        if values.output:
            print(found.save(values.output))

    return run


def compare_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.compare`."""
    from trtkit.judgement.comparing import compare

    add_options(parser, compare, first={"model": "A .pt or .onnx file.", "data": "A data.yaml with labels."})

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with Bars() as bars:
            found = called(compare, values, progress=bars, cancel=cancel)
        show_comparison(found, values.output)

    return run


def report_options(parser: argparse.ArgumentParser) -> Command:
    """Which comparison, and where its report goes."""
    parser.add_argument("folder", metavar="FOLDER", help="what compare wrote")
    parser.add_argument("--output", metavar="FILE", help="the HTML file [default: report.html in the folder]")

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        from trtkit.judgement.comparison import Comparison

        found = Comparison.load(values.folder)
        print(found.report(values.output or Path(values.folder) / "report.html"))

    return run


def show_comparison(found: Comparison, folder: str | Path) -> None:
    """Print the table, the verdict and the places of the files."""
    rows = found.rows
    batches = rows["batch"].n_unique() > 1
    heads = ["batch"] if batches else []
    for column, _ in found.about["metrics"]:
        heads += [column, "change"]
    table = columns("", numbers=(*heads, "ms a picture", "p99", "ONNX MB", "engine MB", "build s"))
    for row in rows.iter_rows(named=True):
        cells: list[Any] = [str(row["batch"])] if batches else []
        for column, _ in found.about["metrics"]:
            moved = "" if row["precision"] == found.about["reference"] else f"{row[f'delta {column}']:+.4f}"
            cells += [f"{row[column]:.4f}", moved]
        cells += [_number(row["picture_ms"], 2), _number(row["p99_ms"] / row["batch"], 2)]
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

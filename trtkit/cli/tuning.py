"""Commands of the calibration lab: examine, sweep, sensitivity and search."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from typing import Any

from trtkit.cli.bars import Bars
from trtkit.cli.options import add_options, called
from trtkit.cli.parser import Command
from trtkit.cli.printing import frame_table, print_table

__all__ = ["examine_options", "search_options", "sensitivity_options", "sweep_options"]

MODEL = {"model": "A .pt or .onnx file.", "data": "A data.yaml."}


def examine_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.examine`, and where to keep the result."""
    from trtkit.calibration.doctor import examine

    return _measuring(parser, examine, {"data": "A data.yaml."}, "runs/examine")


def sweep_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.sweep`, and where to keep the result."""
    from trtkit.tuning.sweep import sweep

    return _measuring(parser, sweep, MODEL, "runs/sweep")


def sensitivity_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.sensitivity`, and where to keep the result."""
    from trtkit.tuning.sensitivity import sensitivity

    return _measuring(parser, sensitivity, MODEL, "runs/sensitivity")


def search_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.search`, and where to keep the result."""
    from trtkit.tuning.search import search

    return _measuring(parser, search, MODEL, "runs/search")


def _measuring(
    parser: argparse.ArgumentParser, function: Callable[..., Any], first: dict[str, str], output: str
) -> Command:
    add_options(parser, function, first=first)
    parser.add_argument(
        "--output", default=output, metavar="FOLDER", help=f"folder of the result and its figure [default: {output}]"
    )

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with Bars() as bars:
            found = called(function, values, progress=bars, cancel=cancel)
        print_table(frame_table(found.frame()))
        print()
        print(found)
        folder = found.save(values.output)
        figure = folder / f"{found.kind}.html"
        found.plot().write_html(figure)
        print(f"{folder}  the figure: {figure}")

    return run

"""Commands that make files from a model: export and calibrate."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from trtkit.cli.bars import Bars
from trtkit.cli.options import add_options, called
from trtkit.cli.parser import Command
from trtkit.errors import OutputExistsError
from trtkit.files import write_bytes

__all__ = ["calibrate_options", "export_options"]


def export_options(parser: argparse.ArgumentParser) -> Command:
    """The settings of `trtkit.export`."""
    from trtkit.artifact import export

    add_options(parser, export, first={"model": "A .pt or .onnx file."})

    def run(values: argparse.Namespace, cancel: threading.Event) -> None:
        with Bars() as bars:
            made = called(export, values, progress=bars, cancel=cancel)
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
        with Bars() as bars:
            found = called(calibrate, values, progress=bars, cancel=cancel)
        print(found)
        if values.tensorrt_cache is not None:
            write_bytes(Path(values.tensorrt_cache), found.to_tensorrt_cache().encode())
            print(f"{values.tensorrt_cache}  the scales as TensorRT's own calibrators write them")
        print(f"{found.save(values.output)}  use it: trtkit export {values.model} --int8 --calibration {values.output}")

    return run

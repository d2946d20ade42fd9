"""The command line: one command per verb, with the names and defaults of the Python function."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from trtkit.arguments import check_values
from trtkit.errors import CancelledError, TrtkitError
from trtkit.files import check_output_folder
from trtkit.progress import Plan, catch_plan
from trtkit.version import __version__

__all__ = ["COMMANDS", "Command", "main", "parse_command"]

INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after `trtkit`; None uses the process's arguments.

    Returns:
        The exit status: 0 when done, 2 for a `TrtkitError` (one sentence on stderr), 130 after Ctrl-C; of
        `compare --gate` also 1 for "don't ship" and 3 for "can't tell".
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    cancel = threading.Event()
    before = _watch_signals(cancel)
    status = None
    try:
        command, values = parse_command(words)
        if hasattr(values, "verb"):
            # Before the command opens a file.
            check_values(values.verb, vars(values))
        with warnings.catch_warnings(), _allow_downloads(getattr(values, "download", False)):
            warnings.showwarning = _show_warning
            warnings.simplefilter("default", UserWarning)
            if getattr(values, "saves_to_folder", False) and values.output:
                check_output_folder(values.output)
            if getattr(values, "dry_run", False):
                _print_plan(catch_plan(lambda: command(values, cancel)), values)
            else:
                status = command(values, cancel)
    except (CancelledError, KeyboardInterrupt):
        _print_error("trtkit: stopped; no incomplete file was left.")
        return INTERRUPTED
    except TrtkitError as error:
        _print_error(f"trtkit: {error}")
        return 2
    except BrokenPipeError:
        # The reader of the pipe (head, less) closed it: that is no error.
        sys.stderr.close()
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status or 0


def _print_plan(plan: Plan, values: argparse.Namespace) -> None:
    """Print a verb's plan, with the files that only the command line writes."""
    from trtkit.cli.output import print_text

    options = vars(values)
    own = {} if not hasattr(values, "verb") else inspect.signature(values.verb).parameters
    written = [options.get(name) for name in ("output", "tensorrt_cache") if name not in own]
    more = tuple(Path(path) for path in written if path and Path(path) not in plan.files)
    print_text(dataclasses.replace(plan, files=plan.files or more))


@contextlib.contextmanager
def _allow_downloads(allowed: bool) -> Iterator[None]:
    """Switch downloads on for this command and its child processes."""
    before = os.environ.get("TRTKIT_DOWNLOAD")
    if allowed:
        os.environ["TRTKIT_DOWNLOAD"] = "1"
    try:
        yield
    finally:
        if allowed and before is None:
            del os.environ["TRTKIT_DOWNLOAD"]
        elif allowed and before is not None:
            os.environ["TRTKIT_DOWNLOAD"] = before


def _watch_signals(cancel: threading.Event) -> dict[signal.Signals, Any]:
    """Let the first Ctrl-C cancel at the next step, where all files are complete, and the second one at once."""
    if threading.current_thread() is not threading.main_thread():
        return {}

    def stop(number: int, frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()
        print("\ntrtkit: stopping after this step; Ctrl-C again stops at once.", file=sys.stderr)

    return {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    if issubclass(category, UserWarning):
        _print_error(f"trtkit: note: {message}")


def _print_error(text: str) -> None:
    # Not imported above: `--help` and `--version` need no rich.
    from trtkit.cli.output import print_error

    print_error(text)


class _Parser(argparse.ArgumentParser):
    """A parser whose error messages hold no control characters; a shell's pattern may put any file name into them."""

    def error(self, message: str) -> NoReturn:
        from trtkit.cli.output import escape_controls

        super().error(escape_controls(message))


Command = Callable[[argparse.Namespace, threading.Event], int | None]
"""Runs a command; returns its exit status, None for 0."""

MODULES = {"model": "trtkit.cli.model_commands", "system": "trtkit.cli.system_commands"}

COMMANDS: dict[str, tuple[str, str, str]] = {
    "export": ("model", "MODEL", "export a model to a TensorRT engine or an ONNX file"),
    "calibrate": ("model", "MODEL [DATA]", "measure the activation ranges that INT8 needs"),
    "predict": ("model", "FILE IMAGE [IMAGE ...]", "run a model file on images and draw its predictions"),
    "evaluate": ("model", "FILE DATA", "measure the accuracy of a model file on labeled images"),
    "evaluate-int8": ("model", "MODEL DATA", "measure the accuracy of INT8 against FP32, before an export"),
    "load-test": ("model", "ADDRESS", "measure a served model under requests of several clients"),
    "verify": ("model", "ENGINE [DATA]", "compare an engine with ONNX Runtime, on the machine that runs it"),
    "deploy": (
        "model",
        "TARGET FILE [FILE ...]",
        "write a folder that serves a model, with a check that needs no trtkit",
    ),
    "benchmark": ("model", "FILE [FILE ...]", "measure the latency of model files"),
    "compare": ("model", "MODEL DATA", "compare FP32, FP16 and INT8: accuracy, latency, size, report"),
    "why-slow": ("model", "ENGINE BASELINE", "say why an engine is not faster than another, and which nodes to change"),
    "report": ("model", "FOLDER", "write the report of a saved comparison again"),
    "examine": ("model", "DATA", "check the images of a calibration set"),
    "sweep": ("model", "MODEL DATA", "compare calibration algorithms and numbers of images"),
    "sensitivity": ("model", "MODEL DATA", "measure what INT8 costs each layer and block"),
    "search": ("model", "MODEL DATA", "find the fastest INT8/FP16 assignment within an accepted loss"),
    "engine": ("system", "show|check|strip|wrap FILE", "show, check, strip or wrap an engine file"),
    "selftest": ("system", "", "build, verify and time the embedded models; one file to send back"),
    "doctor": ("system", "", "show what this machine can build and run"),
    "demo": ("system", "", "compare the embedded model's precisions"),
    "lab": ("system", "", "open JupyterLab on the notebooks"),
}
"""By command: the key of its module, its positional arguments, and what it does."""

EXAMPLES = """examples:
  trtkit demo
      compare precisions of the embedded model, with embedded images
  trtkit doctor
      what works on this machine, and what to install for the rest
  trtkit export yolo11n.pt --half
      an FP16 engine beside the model
  trtkit export yolo11n.pt --int8 --data coco.yaml --batch 8
      an INT8 engine, calibrated on the train split
  trtkit export yolo11n.pt --format onnx --int8 --data my.yaml
      the same graph as ONNX, for other runtimes
  trtkit compare yolo11n.pt --data coco.yaml --batch 1,8
      whether INT8 pays, in runs/compare/report.html
  trtkit compare yolo11n.pt --data coco.yaml --max-drop 0.005 --gate int8
      the same in CI: exit status 0 ship, 1 don't ship, 3 can't tell
  trtkit compare yolo11n.pt --data coco.yaml --dry-run
      what that would do, after all checks and without doing it
  trtkit predict yolo11n-int8.engine street.jpg
      predictions drawn into runs/predict
  trtkit evaluate yolo11n-int8.engine --data coco.yaml
      mAP by Ultralytics and by pycocotools
  trtkit search yolo11n.pt --data coco.yaml --max-drop 0.005
      which layers to keep in FP16, as --keep patterns
  trtkit deploy triton yolo11n.engine yolo11n-int8.engine
      a model repository for Triton, with sample images and a check
  trtkit why-slow yolo11n-int8.engine yolo11n-fp16.engine
      what INT8 spends its time on, and which nodes to change
  trtkit engine show yolo11n.engine
      the metadata of an engine file

trtkit COMMAND --help shows the options; they have the names and defaults of the
Python functions. Exit status: 0 done, 2 error, 130 stopped by Ctrl-C;
compare --gate: 0 ship, 1 don't ship, 3 can't tell."""


def parse_command(words: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """Parse the words of a command line; imports only the chosen command.

    Args:
        words: The words after `trtkit`.

    Returns:
        The command and its options.

    Raises:
        SystemExit: `--help` or `--version` was printed (0), or the words are invalid (2).
    """
    width = max(map(len, COMMANDS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items())
    top = _Parser(
        prog="trtkit",
        usage="trtkit COMMAND [options]",
        description="YOLO models to TensorRT engines, with accuracy and latency by precision.",
        epilog=f"commands:\n{verbs}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"trtkit {__version__}")
    top.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    # argparse alone would need every command's options, and so import every command, to parse any.
    own = words[: next((index + 1 for index, word in enumerate(words) if not word.startswith("-")), len(words))]
    name = top.parse_args(own or ["--help"]).command
    module, positional, text = COMMANDS[name]
    parser = _Parser(
        prog=f"trtkit {name}",
        usage=" ".join(word for word in (f"trtkit {name}", positional, "[options]") if word),
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_command = getattr(importlib.import_module(MODULES[module]), f"add_{name.replace('-', '_')}")
    command: Command = add_command(parser)
    if module == "model":
        parser.add_argument(
            "--download",
            action="store_true",
            help="download weights (AGPL-3.0) and small data sets that Ultralytics publishes, if they are not on disk",
        )
    if module == "model" or name == "demo":
        parser.add_argument(
            "--dry-run", action="store_true", help="check everything and show what would be done, without doing it"
        )
    values, rest = parser.parse_known_args(words[len(own) :])
    if rest and not hasattr(values, "passed_on"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    values.passed_on = rest
    missing = [metavar for name, metavar in getattr(values, "required", {}).items() if getattr(values, name) is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return command, values

"""The command line: every verb of the package, with the same names and defaults."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from trtkit.errors import CancelledError, TrtkitError
from trtkit.version import __version__

__all__ = ["COMMANDS", "Command", "main", "parse_command"]

INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after `trtkit`; None takes the process's own.

    Returns:
        The exit status: 0 when done, 2 for an error of trtkit (one sentence on stderr), 130 after Ctrl-C.
    """

    words = list(sys.argv[1:] if arguments is None else arguments)
    cancel = threading.Event()
    before = _watch_signals(cancel)
    try:
        command, values = parse_command(words)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("default", UserWarning)
            command(values, cancel)
    except (CancelledError, KeyboardInterrupt):
        print("trtkit: stopped; nothing was left half-written.", file=sys.stderr)
        return INTERRUPTED
    except TrtkitError as error:
        print(f"trtkit: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of a pipe (head, less) left early; what it wanted it has.
        sys.stderr.close()
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _watch_signals(cancel: threading.Event) -> dict[signal.Signals, Any]:
    """Let the first Ctrl-C stop the work at its next step, where files are whole, and the second one at once."""
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
        print(f"trtkit: note: {message}", file=sys.stderr)


# Words to a command and its settings; only the chosen verb is imported.


Command = Callable[[argparse.Namespace, threading.Event], None]

# Verb, the module of `trtkit.cli` that does it, and what it is for.
COMMANDS = {
    "export": ("model_commands", "take a model to a TensorRT engine or an ONNX file"),
    "calibrate": ("model_commands", "measure the ranges that INT8 needs, over your images"),
    "predict": ("model_commands", "run one model file on images and draw what it finds"),
    "evaluate": ("model_commands", "judge one model file on labeled images"),
    "benchmark": ("model_commands", "time model files against each other"),
    "compare": ("model_commands", "FP32, FP16 and INT8 side by side: accuracy, time, size, report"),
    "report": ("model_commands", "write the report of a saved comparison again"),
    "examine": ("model_commands", "find what is wrong with a calibration set"),
    "sweep": ("model_commands", "which algorithm, and how many images, calibrate well enough"),
    "sensitivity": ("model_commands", "what each layer and block costs in INT8"),
    "search": ("model_commands", "the fastest mix of INT8 and FP16 within a loss"),
    "engine": ("system_commands", "show, check, strip or wrap an engine file"),
    "doctor": ("system_commands", "say what this machine can build and run"),
    "demo": ("system_commands", "compare() on the embedded model and images"),
    "lab": ("system_commands", "open JupyterLab"),
}

EXAMPLES = """examples:
  trtkit demo                                                   the whole thing, with nothing of yours
  trtkit doctor                                                 what works on this machine, what would bring the rest
  trtkit export yolo11n.pt --half                               an FP16 engine beside the model
  trtkit export yolo11n.pt --int8 --data coco.yaml --batch 8    an INT8 engine, calibrated on coco's train images
  trtkit export yolo11n.pt --format onnx --int8 --data my.yaml  the same graph as ONNX, for any runtime
  trtkit compare yolo11n.pt --data coco.yaml --batch 1,8        is INT8 worth it? runs/compare/report.html says
  trtkit predict yolo11n-int8.engine street.jpg                 what it finds, drawn, in runs/predict
  trtkit evaluate yolo11n-int8.engine --data coco.yaml          mAP by both definitions
  trtkit search yolo11n.pt --data coco.yaml --max-drop 0.005    which layers to keep high, as a --keep list
  trtkit engine show yolo11n.engine                             what the file says about itself

Every command has the names and defaults of the Python function, and its own --help.
Exit status: 0 done, 2 an error (one sentence says what to do), 130 stopped by Ctrl-C."""


def parse_command(words: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """The command that the words ask for, and its settings.

    Args:
        words: What follows `trtkit`.

    Raises:
        SystemExit: --help or --version was asked for (0), or the words make no sense (2).
    """
    width = max(map(len, COMMANDS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    whole = argparse.ArgumentParser(
        prog="trtkit",
        usage="trtkit COMMAND [settings]",
        description="YOLO models to TensorRT engines, with the proof of what each precision costs and buys.",
        epilog=f"commands:\n{verbs}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"trtkit {__version__}")
    whole.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    # argparse alone would have to know every verb's options, and so import every verb, to read any.
    own = words[: next((place + 1 for place, word in enumerate(words) if not word.startswith("-")), len(words))]
    verb = whole.parse_args(own or ["--help"]).command
    home = importlib.import_module(f"trtkit.cli.{COMMANDS[verb][0]}")
    parser = argparse.ArgumentParser(
        prog=f"trtkit {verb}",
        description=COMMANDS[verb][1][0].upper() + COMMANDS[verb][1][1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command: Command = getattr(home, f"{verb}_options")(parser)
    values, rest = parser.parse_known_args(words[len(own) :])
    if rest and not hasattr(values, "passed_on"):
        parser.error(f"unknown settings: {' '.join(rest)}")
    values.passed_on = rest
    missing = [name for name in getattr(values, "needed", ()) if getattr(values, name) is None]
    if missing:
        parser.error(f"{' and '.join(missing)} must be given")
    return command, values

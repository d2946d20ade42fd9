"""Words to a command and its settings; only the chosen verb is imported."""

from __future__ import annotations

import argparse
import importlib
import threading
from collections.abc import Callable, Sequence

from trtkit.version import __version__

__all__ = ["COMMANDS", "Command", "parsed"]

Command = Callable[[argparse.Namespace, threading.Event], None]

# Verb, the module of `trtkit.cli` that does it, and what it is for.
COMMANDS = {
    "export": ("making", "take a model to a TensorRT engine or an ONNX file"),
    "calibrate": ("making", "measure the ranges that INT8 needs, over your pictures"),
    "predict": ("predicting", "run one model file on pictures and draw what it finds"),
    "evaluate": ("judging", "judge one model file on labelled pictures"),
    "benchmark": ("judging", "time model files against each other"),
    "compare": ("judging", "FP32, FP16 and INT8 side by side: accuracy, time, size, report"),
    "report": ("judging", "write the report of a saved comparison again"),
    "examine": ("tuning", "find what is wrong with a calibration set"),
    "sweep": ("tuning", "which algorithm, and how many pictures, calibrate well enough"),
    "sensitivity": ("tuning", "what each layer and block costs in INT8"),
    "search": ("tuning", "the fastest mix of INT8 and FP16 within a loss"),
    "engine": ("engines", "show, check, strip or wrap an engine file"),
    "doctor": ("machine", "say what this machine can build and run"),
    "demo": ("machine", "compare() on the embedded model and pictures"),
    "lab": ("machine", "open JupyterLab"),
}

EXAMPLES = """examples:
  trtkit demo                                                   the whole thing, with nothing of yours
  trtkit doctor                                                 what works on this machine, what would bring the rest
  trtkit export yolo11n.pt --half                               an FP16 engine beside the model
  trtkit export yolo11n.pt --int8 --data coco.yaml --batch 8    an INT8 engine, calibrated on coco's train pictures
  trtkit export yolo11n.pt --format onnx --int8 --data my.yaml  the same graph as ONNX, for any runtime
  trtkit compare yolo11n.pt --data coco.yaml --batch 1,8        is INT8 worth it? runs/compare/report.html says
  trtkit predict yolo11n-int8.engine street.jpg                 what it finds, drawn, in runs/predict
  trtkit evaluate yolo11n-int8.engine --data coco.yaml          mAP by both definitions
  trtkit search yolo11n.pt --data coco.yaml --max-drop 0.005    which layers to keep high, as a --keep list
  trtkit engine show yolo11n.engine                             what the file says about itself

Every command has the names and defaults of the Python function, and its own --help.
Exit status: 0 done, 2 an error (one sentence says what to do), 130 stopped by Ctrl-C."""


def parsed(words: Sequence[str]) -> tuple[Command, argparse.Namespace]:
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

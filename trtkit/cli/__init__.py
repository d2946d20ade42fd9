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
from typing import TYPE_CHECKING, Any

from trtkit.arguments import check_values
from trtkit.cli.examples import OVERVIEW, format_examples
from trtkit.cli.parser import Parser
from trtkit.errors import CancelledError, TrtkitError
from trtkit.progress import Plan, catch_plan
from trtkit.version import __version__
from trtkit.writing import check_output_folder

if TYPE_CHECKING:
    from trtkit.cli.output import Outcome

__all__ = ["COMMANDS", "Command", "list_actions", "main", "make_full_parser", "parse_command"]

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
    try:
        command, values = parse_command(words)
        return _run(command, values, cancel)
    except (CancelledError, KeyboardInterrupt):
        _print_error("trtkit: stopped; no incomplete file was left.")
        return INTERRUPTED
    except TrtkitError as error:
        return _fail(error, json="--json" in words)
    except BrokenPipeError:
        # The reader of the pipe (head, less) closed it: that is no error.
        sys.stderr.close()
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(command: Command, values: argparse.Namespace, cancel: threading.Event) -> int:
    """Run a parsed command and print its outcome; the exit status."""
    from trtkit.cli.output import ProgressBars, print_json

    if hasattr(values, "verb"):
        # Before the command opens a file.
        check_values(values.verb, vars(values))
    quiet = getattr(values, "quiet", False)
    with warnings.catch_warnings(), _allow_downloads(getattr(values, "download", False)):
        warnings.showwarning = _show_warning
        warnings.simplefilter("ignore" if quiet else "default", UserWarning)
        if getattr(values, "saves_to_folder", False) and values.output:
            check_output_folder(values.output)
        if getattr(values, "dry_run", False):
            values.progress, values.cancel = None, cancel
            _print_plan(catch_plan(lambda: command(values, cancel)), values)
            return 0
        reports = getattr(values, "command", None) in COMMANDS and values.command not in WITHOUT_RESULT
        with ProgressBars(quiet=quiet, verbose=getattr(values, "verbose", False), reports=reports) as bars:
            values.progress, values.cancel = bars, cancel
            outcome = command(values, cancel)
        if outcome is None:
            return 0
        if getattr(values, "json", False):
            print_json(outcome.to_dict(values.command))
        else:
            outcome.show()
    return _fail(outcome.error) if outcome.error is not None else outcome.status


def _fail(error: TrtkitError, *, json: bool = False) -> int:
    """Print an error; with `--json` also as an object, for a program that reads stdout."""
    from trtkit.cli.output import print_json
    from trtkit.cli.wording import describe_error

    sentence = describe_error(error)
    if json:
        print_json({"error": {"code": error.code, "message": sentence, **error.fields}})
    _print_error(f"trtkit: {sentence}")
    return 2


def _print_plan(plan: Plan, values: argparse.Namespace) -> None:
    """Print a verb's plan, with the files that only the command line writes."""
    from trtkit.cli.output import print_json, print_text

    options = vars(values)
    own = {} if not hasattr(values, "verb") else inspect.signature(values.verb).parameters
    written = [options.get(name) for name in ("output", "tensorrt_cache") if name not in own]
    more = tuple(Path(path) for path in written if path and Path(path) not in plan.files)
    plan = dataclasses.replace(plan, files=plan.files or more)
    if getattr(values, "json", False):
        print_json({"command": values.command, **plan.to_dict()})
    else:
        print_text(plan)


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
    from trtkit.cli.wording import to_command_words

    if issubclass(category, UserWarning):
        _print_error(f"trtkit: note: {to_command_words(str(message))}")


def _print_error(text: str) -> None:
    # Not imported above: `--help` and `--version` need no rich.
    from trtkit.cli.output import print_error

    print_error(text)


Command = Callable[[argparse.Namespace, threading.Event], "Outcome | None"]
"""Runs a command; returns what it has to say."""

MODULES = {
    "model": "trtkit.cli.model_commands",
    "system": "trtkit.cli.system_commands",
    "lab": "trtkit.cli.lab_command",
}

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
    "zoo": ("model", "[MODEL ...]", "measure many models, sizes, precisions and backends alike, into one table"),
    "why-slow": ("model", "ENGINE BASELINE", "say why an engine is not faster than another, and which nodes to change"),
    "report": ("model", "FOLDER", "write the report of a saved comparison again"),
    "examine": ("model", "DATA", "check the images of a calibration set"),
    "sweep": ("model", "MODEL DATA", "compare calibration algorithms and numbers of images"),
    "sensitivity": ("model", "MODEL DATA", "measure what INT8 costs each layer and block"),
    "search": ("model", "MODEL DATA", "find the fastest INT8/FP16 assignment within an accepted loss"),
    "engine": ("system", "show|check|strip|wrap|refit FILE", "show, check, strip, wrap or refit an engine file"),
    "selftest": ("system", "", "build, verify and time the embedded models; one file to send back"),
    "doctor": ("system", "", "show what this machine can build and run"),
    "demo": ("system", "", "compare the embedded model's precisions"),
    "lab": ("lab", "", "open JupyterLab on the notebooks, or on copies of them"),
    "completion": ("system", "SHELL", "print a script that completes commands and options in a shell"),
}
"""By command: the key of its module, its positional arguments, and what it does."""


def parse_command(words: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """Parse the words of a command line; imports only the chosen command.

    Args:
        words: The words after `trtkit`.

    Returns:
        The command and its options.

    Raises:
        SystemExit: `--help` or `--version` was printed (0), or the words are invalid (2).
    """
    top = _make_top_parser()
    # argparse alone would need every command's options, and so import every command, to parse any.
    own = words[: next((index + 1 for index, word in enumerate(words) if not word.startswith("-")), len(words))]
    name = top.parse_args(own or ["--help"]).command
    parser = Parser(**_describe(name))
    command = _add_command(parser, name)
    values, rest = parser.parse_known_args(words[len(own) :])
    if rest and not hasattr(values, "passed_on"):
        parser.refuse_unknown(rest, values)
    if getattr(values, "recipe", None) is not None:
        # Options that are given replace the recipe's.
        defaults = argparse.Namespace(**values.read_defaults(values))
        values, _ = parser.parse_known_args(words[len(own) :], defaults)
    values.passed_on = rest
    missing = [metavar for name, metavar in getattr(values, "required", {}).items() if getattr(values, name) is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    values.command = name
    return command, values


def make_full_parser() -> Parser:
    """The parser of all commands at once, which imports all of them."""
    top = _make_top_parser(choose=False)
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, _, text) in COMMANDS.items():
        _add_command(commands.add_parser(name, help=text, **_describe(name)), name)
    return top


def _make_top_parser(*, choose: bool = True) -> Parser:
    """The parser of the first word."""
    width = max(map(len, COMMANDS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items())
    top = Parser(
        prog="trtkit",
        usage="trtkit COMMAND [options]",
        description="YOLO models to TensorRT engines, with accuracy and latency by precision.",
        epilog=f"commands:\n{verbs}\n\n{format_examples(OVERVIEW, first=True)}\n\n{CLOSING}",
    )
    top.add_argument("--version", action="version", version=f"trtkit {__version__}")
    if choose:
        top.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return top


CLOSING = """trtkit COMMAND --help shows the options; they have the names and defaults of the Python functions.
Exit status: 0 done, 2 error, 130 stopped by Ctrl-C; compare --gate: 0 ship, 1 don't ship, 3 can't tell."""


def _describe(name: str) -> dict[str, Any]:
    """The texts of a command's parser."""
    _, positional, text = COMMANDS[name]
    return {
        "prog": f"trtkit {name}",
        "usage": " ".join(word for word in (f"trtkit {name}", positional, "[options]") if word),
        "description": f"{text[0].upper()}{text[1:]}.",
    }


def _add_command(parser: Parser, name: str) -> Command:
    """Add a command's options, those that all commands have, and its examples."""
    module = COMMANDS[name][0]
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
    if name not in WITHOUT_RESULT:
        # Options of a subcommand stand behind it.
        for each in _list_subparsers(parser) or [parser]:
            each.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
            loud = each.add_mutually_exclusive_group()
            loud.add_argument("-q", "--quiet", action="store_true", help="print no progress and no notes")
            loud.add_argument("-v", "--verbose", action="store_true", help="print every step's log and every number")
    for each in (parser, *_list_subparsers(parser)):
        each.epilog = "\n\n".join(filter(None, (each.epilog, format_examples((name,), begin=each.prog))))
    return command


WITHOUT_RESULT = ("lab", "completion")


def list_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of its subparsers.

    Args:
        parser: The parser.
    """
    yield from parser._actions
    for each in _list_subparsers(parser):
        yield from list_actions(each)


def _list_subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [each for action in actions for each in action.choices.values()]

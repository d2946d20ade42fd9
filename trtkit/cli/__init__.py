"""The command line: every verb of the package, with the same names and defaults."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any

from trtkit.errors import CancelledError, TrtkitError

__all__ = ["main"]

INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after `trtkit`; None takes the process's own.

    Returns:
        The exit status: 0 when done, 2 for an error of trtkit (one sentence on stderr), 130 after Ctrl-C.
    """
    from trtkit.cli.parser import parsed

    words = list(sys.argv[1:] if arguments is None else arguments)
    cancel = threading.Event()
    before = _watch_signals(cancel)
    try:
        command, values = parsed(words)
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

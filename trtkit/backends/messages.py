"""What TensorRT says while it works: one logger a process and module, listened to by whoever is at work."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from typing import Any

from trtkit.backends.surfaces import module

__all__ = ["Messages", "listening", "logger"]

LOG = logging.getLogger("trtkit.tensorrt")
# The builder prints its layer table under one of these lines when the engine keeps detailed profiling information.
TABLES = ("Layers:\n", "Engine Layer Information:\n")


class Messages:
    """What was said during one piece of work.

    Attributes:
        errors: Error messages, in order.
        warnings: Warnings, in order.
        table: The builder's layer table as text, "" where it printed none.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.table = ""

    def hear(self, severity: str, text: str) -> None:
        """Keep a message.

        Args:
            severity: TensorRT's name of it.
            text: The message.
        """
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(text)
        elif severity == "WARNING":
            self.warnings.append(text)
        elif text.startswith(TABLES):
            self.table = text

    def why(self, otherwise: str = "TensorRT gives no reason") -> str:
        """The errors as one clause.

        Args:
            otherwise: What to say where there was none.
        """
        lines = list(dict.fromkeys(" ".join(text.split()) for text in self.errors))
        return " | ".join(lines[:3]) or otherwise


_HEARING: list[Messages] = []
_LOCK = threading.Lock()


@contextlib.contextmanager
def listening() -> Iterator[Messages]:
    """Yield the messages that arrive while the block runs, those of other threads included.

    Yields:
        A collection that grows.
    """
    messages = Messages()
    with _LOCK:
        _HEARING.append(messages)
    try:
        yield messages
    finally:
        with _LOCK:
            _HEARING.remove(messages)


@functools.cache
def logger(backend: str) -> Any:
    """The one logger of a backend: TensorRT keeps the first it gets for the whole process.

    Args:
        backend: "tensorrt" or "tensorrt_rtx".
    """
    trt = module(backend)

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            name = str(getattr(severity, "name", severity)).rsplit(".", 1)[-1]
            if name != "VERBOSE":
                LOG.debug("%s: %s", name, msg)
            for messages in tuple(_HEARING):
                messages.hear(name, msg)

    found = Logger()
    # Graphs with suppression become one of these plugins on TensorRT 8; both reading and running them need it.
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(found, "")
    return found

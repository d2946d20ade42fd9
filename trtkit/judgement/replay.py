"""A call's settings as the Python and the command line that make it again."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["changed", "command_of", "python_of"]


def changed(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that differ from the function's defaults, in its order."""
    return {
        name: _plain(values[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if name in values and _plain(values[name]) != _plain(parameter.default)
    }


def python_of(verb: str, function: Callable[..., Any], values: Mapping[str, Any]) -> str:
    """Python that calls `trtkit.<verb>` with these arguments.

    Args:
        verb: A name of `trtkit`.
        function: What it is.
        values: Arguments by name, as plain data.
    """
    lines = "".join(f"    {name}={value!r},\n" for name, value in changed(function, values).items())
    return f"import trtkit as tk\n\nresult = tk.{verb}(\n{lines})\n"


def command_of(verb: str, function: Callable[..., Any], values: Mapping[str, Any]) -> str:
    """The command line that does the same, quoted for a POSIX shell."""
    words = ["trtkit", verb]
    for name, value in changed(function, values).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif name == "keep":
            words += [f"{flag}={pattern}" for pattern in value]
        elif isinstance(value, tuple):
            words.append(f"{flag}={','.join(map(str, value))}")
        else:
            words.append(f"{flag}={value}")
    return shlex.join(words)


def _plain(value: Any) -> Any:
    """Lists as tuples, and one number in a list as the number, since the verbs take either."""
    if isinstance(value, (list, tuple)):
        return value[0] if len(value) == 1 and isinstance(value[0], int) else tuple(value)
    return value

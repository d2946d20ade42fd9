"""A function's signature and docstring as options of a command, so that the two can't say different things."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["add_options", "call_with_options", "parse_argument_texts", "parse_numbers", "parse_size"]

# Arguments that watch the work and shape no result.
WATCHERS = ("progress", "cancel")


def add_options(
    parser: argparse.ArgumentParser,
    function: Callable[..., Any],
    *,
    first: Mapping[str, str] | None = None,
    without: Iterable[str] = (),
) -> None:
    """Give `parser` one option an argument of `function`, with its default and its words.

    Args:
        parser: Receives the options.
        function: A verb of trtkit with a Google docstring.
        first: Arguments that may also stand without their name, in this order, and what a command line takes for them.
        without: Arguments to leave out.
    """
    first = first or {}
    texts = {**parse_argument_texts(function), **first}
    parameters = inspect.signature(function).parameters
    for name, text in first.items():
        # The option of the same name holds the value where the word is missing.
        parser.add_argument(name, nargs="?", default=argparse.SUPPRESS, metavar=name.upper(), help=_escaped(text))
    for name, parameter in parameters.items():
        if name in WATCHERS or name in without:
            continue
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        shown = "" if required or default in (None, (), False) else f" [default: {_format_value(default)}]"
        text = argparse.SUPPRESS if name in first else _escaped(texts[name] + shown)
        if parameter.annotation == "Sequence[str]" and not default:
            # argparse appends to a copy of the default, which a tuple has no room for.
            default = []
        parser.add_argument(
            "--" + name.replace("_", "-"), dest=name, default=default, help=text, **_argument_kind(parameter)
        )
    parser.set_defaults(needed=tuple(name for name in first if parameters[name].default is inspect.Parameter.empty))


def call_with_options(function: Callable[..., Any], values: argparse.Namespace, **more: Any) -> Any:
    """Call `function` with the parsed settings it knows and `more`."""
    known = inspect.signature(function).parameters
    return function(**{name: value for name, value in vars(values).items() if name in known} | more)


def parse_argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """The texts of a Google docstring's `Args`, by argument."""
    section = re.search(r"Args:\n(.*?)(?:\n\s*\n|\Z)", inspect.getdoc(function) or "", re.DOTALL)
    texts: dict[str, str] = {}
    for line in section.group(1).splitlines() if section else ():
        begun = re.match(r" {4}(\w+): (.*)", line)
        if begun:
            name = begun.group(1)
            texts[name] = begun.group(2)
        else:
            texts[name] += " " + line.strip()
    return texts


def _argument_kind(parameter: inspect.Parameter) -> dict[str, Any]:
    """What argparse needs to know to read an argument of this annotation."""
    annotation = str(parameter.annotation)
    if annotation.startswith("bool") and parameter.default is False:
        return {"action": "store_true"}
    if annotation.startswith("bool"):
        return {"action": argparse.BooleanOptionalAction}
    if annotation.startswith("int | Sequence[int]"):
        return {"type": parse_numbers, "metavar": "N[,N...]"}
    if annotation.startswith("int | tuple"):
        return {"type": parse_size, "metavar": "SIDE|H,W"}
    if annotation.startswith(("int | str", "str | int")):
        return {"type": parse_device, "metavar": "DEVICE"}
    if annotation.startswith("Sequence[str]"):
        if parameter.default:
            return {"type": lambda text: tuple(text.split(",")), "metavar": "WORD[,WORD...]"}
        return {"action": "append", "metavar": "PATTERN"}
    if annotation.startswith("int"):
        return {"type": int, "metavar": "N"}
    if annotation.startswith("float"):
        return {"type": float, "metavar": "X"}
    return {"type": str, "metavar": parameter.name.upper()}


def parse_numbers(text: str) -> int | tuple[int, ...]:
    """ "8" as 8, "1,8" as (1, 8)."""
    found = tuple(int(part) for part in text.split(","))
    return found[0] if len(found) == 1 else found


def parse_size(text: str) -> int | tuple[int, ...]:
    """ "640" as 640; "480,640" and "480x640" as (480, 640)."""
    found = parse_numbers(text.replace("x", ","))
    if isinstance(found, tuple) and len(found) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither one side nor height,width")
    return found


def parse_device(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else text


def _format_value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _escaped(text: str) -> str:
    """A docstring's words for argparse, where % begins a placeholder, and without Python's None."""
    return re.sub(r"\bNone\b", "leaving it out", text.replace("%", "%%").replace("`", ""))

"""Messages of the package in the words of the command line: `--batch 8` for `batch=8`, `trtkit export` for `export()`.

The package writes every message once, for Python; the command line translates it where it is printed, and nowhere else.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from typing import Any

from trtkit.cli import COMMANDS
from trtkit.cli.options import OPTIONS, Option
from trtkit.errors import TrtkitError

__all__ = ["describe_error", "to_command_words"]

_VALUE = r"'[^']*'|\"[^\"]*\"|\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|-?\d+(?:\.\d+)?|[A-Z]\w*|[a-z](?:[\w:./-]*\w)?|"
# Behind a letter, a slash or a hyphen it is a part of a name or a path; so it is in front of one.
_SETTING = re.compile(
    rf"(?<![\w./=-])({'|'.join(sorted(OPTIONS, key=len, reverse=True))})=({_VALUE})(?=[\s,;:)\]]|\.?$|\.\s)"
)
_COMMAND = re.compile(rf"\b(?:trtkit|tk)\.({'|'.join(name.replace('-', '_') for name in COMMANDS)})\b(?:\(\))?")
_CALL = re.compile(rf"(?<![\w.])({'|'.join(name.replace('-', '_') for name in COMMANDS)})\(\)")
# A message that already names the option beside the argument; both are the same by now.
_TWICE = re.compile(r"(--[\w-]+)(, \1|(?: [^\s()]+)? \(\1\))(?=[\s,;:.)])")
_NONE = re.compile(r"\b(pass|use) None\b")


def describe_error(error: TrtkitError) -> str:
    """An error's sentence in the words of the command line.

    Args:
        error: The error.
    """
    text = to_command_words(str(error))
    name = str(error.fields.get("name"))
    if error.code == "argument-invalid" and name in OPTIONS:
        text = text.replace(f": {name} must be ", f": {_flag(name)} must be ", 1)
    return text


def to_command_words(text: str) -> str:
    """A sentence with arguments of Python as options, and functions as commands.

    Args:
        text: The sentence; names of files in it stay as they are.
    """
    text = _SETTING.sub(lambda match: _to_option(match[1], match[2]), text)
    for pattern in (_COMMAND, _CALL):
        text = pattern.sub(lambda match: f"trtkit {match[1].replace('_', '-')}", text)
    text = _NONE.sub("leave it out", text).replace(", or None ", ", or leave it out ").replace(".save()", "--output")
    return _TWICE.sub(r"\1", text)


def _flag(name: str) -> str:
    """The option of an argument."""
    singular = name.removesuffix("s") if OPTIONS[name].pairs else name
    return f"--{singular.replace('_', '-')}"


def _to_option(name: str, text: str) -> str:
    """One `name=value` of Python as an option."""
    option, flag = OPTIONS[name], _flag(name)
    if not text:
        return flag
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        # A placeholder such as N, or a word that a message does not quote.
        value = text
    if value is None or (option.switch and value is False and name not in _NEGATED):
        return f"no {flag}"
    if option.switch and isinstance(value, bool):
        return flag if value else f"--no-{name.replace('_', '-')}"
    return " ".join(_words(option, flag, value))


_NEGATED = ("build", "decode", "dynamic", "histograms", "protect", "repair", "simplify", "verify")
"""Switches that have a `--no-` form: their default is not false."""


def _words(option: Option, flag: str, value: Any) -> list[str]:
    """An option with its value, repeated where it collects several."""
    if isinstance(value, Mapping):
        return [f"{flag} {shlex.quote(f'{name}={item}')}" for name, item in value.items()] or [flag]
    if isinstance(value, (list, tuple)):
        if option.repeat:
            return [f"{flag} {shlex.quote(str(item))}" for item in value] or [flag]
        value = (" " if option.several else ",").join(map(str, value))
        return [f"{flag} {value}"]
    return [f"{flag} {shlex.quote(str(value))}"]

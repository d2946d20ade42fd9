"""The public names and their signatures, against the list that was last agreed on.

A change is made on purpose: run `python tests/test_public_api.py`, look at the difference, and name each removed or
renamed entry in CHANGELOG.md.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import trtkit

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def _signature(function: object) -> str:
    parameters = []
    for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        keyword = " (keyword)" if parameter.kind is parameter.KEYWORD_ONLY else ""
        parameters.append(f"{star}{parameter.name}{default}{keyword}")
    return "(" + ", ".join(parameters) + ")"


def _members(kind: type) -> list[str]:
    """Fields, then methods and properties, of a public class; those of bases outside the package are left out."""
    lines = []
    if dataclasses.is_dataclass(kind):
        lines += [f"  .{field.name}" for field in dataclasses.fields(kind) if not field.name.startswith("_")]
    for name, member in sorted(vars(kind).items()):
        target = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if name.startswith("_") or isinstance(target, type):
            continue
        if isinstance(target, property):
            lines.append(f"  .{name} (property)")
        elif callable(target):
            lines.append(f"  .{name}{_signature(target)}")
    return lines


def describe() -> str:
    """Every public name with its signature, fields and methods, a line each."""
    lines = []
    for name in dir(trtkit):
        value = getattr(trtkit, name)
        if inspect.isclass(value):
            lines += [f"class {name}", *_members(value)]
        elif callable(value):
            lines.append(f"{name}{_signature(value)}")
        elif inspect.ismodule(value):
            lines.append(f"module {name}")
            lines += [f"  {public}" for public in sorted(value.__all__)]
        else:
            lines.append(name)
    return "\n".join(lines) + "\n"


def test_the_public_api_is_the_one_agreed_on():
    assert describe() == SNAPSHOT.read_text(encoding="utf-8")


if __name__ == "__main__":
    SNAPSHOT.write_text(describe(), encoding="utf-8")

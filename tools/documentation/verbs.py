"""One page a verb: what it is for, an example, its command line, its signature; written from the package itself."""

from __future__ import annotations

import argparse
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import trtkit
from trtkit.cli import COMMANDS, list_actions, make_full_parser
from trtkit.cli.examples import EXAMPLES

__all__ = ["INTERACTIVE", "OPTIONS", "list_pages", "read_sections"]

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ROOT / "docs" / "verbs.md"
"""By hand: a heading, a sentence and an example for each page."""

FUNCTIONS = {
    "predict": "open",
    "report": "Comparison.report",
    "engine": "backends.read_engine",
    "doctor": "capabilities",
}
"""What a command is in Python where the names differ."""

INTERACTIVE = ("wizard", "tuner", "dashboard", "gallery", "explorer")
"""Functions that show a widget; their pages come after those of the other verbs."""

OPTIONS = {
    "docstring_style": "google", "show_root_heading": True, "show_source": False, "heading_level": 3,
    "docstring_section_style": "table", "separate_signature": True, "show_signature_annotations": True,
    "show_root_full_path": False, "members_order": "source", "merge_init_into_class": True,
    "line_length": 100, "filters": ["!^_", "!^restore$", "!^upgrade$"],
}  # fmt: skip
"""Of mkdocstrings, for everything that a page documents."""


def read_sections() -> dict[str, str]:
    """The hand-written part of each page, by heading."""
    parts = re.split(r"^## (\S+)\n", SECTIONS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


def list_pages(fit_links: Callable[[str, str], str] | None = None) -> dict[str, str]:
    """Every page by its name: verbs, then widgets, commands without a function, and all other public names.

    Args:
        fit_links: Gives a page's name and its section in docs/verbs.md the links of the site.

    Raises:
        SystemExit: A verb has no hand-written section, or a section belongs to no verb.
    """
    sections = read_sections()
    functions = {name for name in dir(trtkit) if inspect.isfunction(getattr(trtkit, name))}
    commands = {name.replace("-", "_"): name for name in COMMANDS}
    expected = {*commands, *functions} - {*HELPERS, *FUNCTIONS.values()}
    if different := expected ^ set(sections):
        raise SystemExit(f"docs/verbs.md and the package differ in {sorted(different)}")
    parser = make_full_parser()
    documented: set[str] = set()
    pages = {}
    for title in sections:
        function = FUNCTIONS.get(title, title if title in functions else "")
        section = sections[title] if fit_links is None else fit_links(title, sections[title])
        pages[title] = _write_page(title, section, function, commands.get(title), parser, documented)
    pages["other_names"] = _write_others(documented)
    return pages


HELPERS = ("losses_figure", "plan", "precision_shares_figure", "read_layers", "summarize_layers")
"""Functions that are documented together with the classes, on the page of all other names."""


def _write_page(
    title: str,
    section: str,
    function: str,
    command: str | None,
    parser: argparse.ArgumentParser,
    documented: set[str],
) -> str:
    lines = [f"# {command or title}", "", section, ""]
    if command is not None:
        lines += ["## Command line", "", *_write_command(command, parser), ""]
    if function:
        lines += ["## In Python", "", *_write_object(function, documented)]
        if result := _find_result(function):
            lines += ["## What it returns", "", *_write_object(result, documented)]
    return "\n".join(lines)


def _write_command(command: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    (choices,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    own: argparse.ArgumentParser = choices.choices[command]
    yield f"`{own.usage or own.format_usage().removeprefix('usage: ').strip()}`"
    yield ""
    yield "```bash"
    for line, text in EXAMPLES[command].items():
        yield f"{line}  # {text}"
    yield "```"
    yield ""
    rows = {}
    for action in list_actions(own):
        if action.help in (None, argparse.SUPPRESS) or isinstance(action, argparse._SubParsersAction):
            continue
        if "--help" in action.option_strings:
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        value = _format_value(action)
        rows[f"`{name}{f' {value}' if value else ''}`"] = _escape(own._get_formatter()._expand_help(action))
    if rows:
        yield "| option | |"
        yield "|---|---|"
        yield from (f"| {name} | {text} |" for name, text in rows.items())


def _format_value(action: argparse.Action) -> str:
    if action.nargs == 0 or not action.option_strings:
        return ""
    if action.metavar is not None:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()


def _escape(text: str) -> str:
    """Text for a table's cell: what looks like Markdown or HTML stays as it is."""
    return re.sub(r"([|<>*_\[\]])", r"\\\1", " ".join(text.split()))


def _find_result(function: str) -> str | None:
    """The public class that a function returns."""
    name = str(inspect.signature(_find_member(function)).return_annotation)
    return name if inspect.isclass(getattr(trtkit, name, None)) else None


def _find_member(name: str) -> Callable[..., object]:
    member = functools.reduce(getattr, name.split("."), trtkit)
    assert callable(member)
    return member


def _write_object(name: str, documented: set[str]) -> list[str]:
    """A directive for mkdocstrings, or a link where a page has the object already."""
    member = _find_member(name)
    path = f"{member.__module__}.{member.__qualname__}"
    if path in documented or path.rpartition(".")[0] in documented:
        return [f"[`{name}`][{path}]", ""]
    documented.add(path)
    return [f"::: {path}", ""]


def _write_others(documented: set[str]) -> str:
    lines = ["# Other public names", "", "What the verbs take and return, and the functions behind single figures.", ""]
    for name in dir(trtkit):
        member = getattr(trtkit, name)
        if not (inspect.isfunction(member) or inspect.isclass(member)) or name == "TrtkitError":
            continue
        if f"{member.__module__}.{member.__qualname__}" not in documented:
            lines += _write_object(name, documented)
    lines += ["## Errors", "", "::: trtkit.errors", ""]
    return "\n".join(lines)

"""The parser of the command line: suggestions for misspelled words, no abbreviations, help wrapped at the terminal."""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

__all__ = ["HelpText", "Parser", "describe_choice", "find_similar"]

MAX_CHOICES = 12
"""Most choices that an error lists beside a suggestion."""

_COLUMNS = re.compile(r"( *\S+(?: \S+)* {2,})\S")


def find_similar(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known words that a misspelled or abbreviated one may stand for, the likeliest first.

    Args:
        word: The word.
        known: The words it may stand for.
        count: Most words to return.
    """
    names = list(known)
    bare = word.replace("_", "-").lower()
    begun = [name for name in names if len(bare.strip("-")) > 1 and name.lower().startswith(bare)]
    close = difflib.get_close_matches(bare, names, n=count, cutoff=0.65)
    return list(dict.fromkeys(begun + close))[:count]


def describe_choice(value: object, choices: Iterable[Any]) -> str:
    """What is wrong with a word that is none of the choices: "invalid choice: 'fp61', did you mean 'fp16'? (...)".

    Args:
        value: The word.
        choices: What it may be.
    """
    names = [str(choice) for choice in choices]
    similar = find_similar(str(value), names)
    asked = f", did you mean {' or '.join(map(repr, similar))}?" if similar else ""
    listed = f" (choose from {', '.join(names)})" if not similar or len(names) <= MAX_CHOICES else ""
    return f"invalid choice: {str(value)!r}{asked}{listed}"


class HelpText(argparse.HelpFormatter):
    """Wraps descriptions and epilogs line by line, so that lists and examples keep their indentation and columns."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for line in text.splitlines():
            columns = _COLUMNS.match(line)
            begin = indent + line[: len(line) - len(line.lstrip())]
            lines += textwrap.wrap(
                line.strip(),
                width,
                initial_indent=begin,
                subsequent_indent=" " * len(columns[1]) if columns else begin,
                break_long_words=False,
                break_on_hyphens=False,
            ) or [""]
        return "\n".join(lines)

    def _format_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None) -> str:
        text = super()._format_usage(usage, actions, groups, prefix)
        if usage is None:
            return text
        return "\n".join(textwrap.wrap(text, self._width, subsequent_indent=" " * 7, break_long_words=False)) + "\n\n"


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations whose errors suggest the words that were meant.

    Its messages hold no control characters; a shell's pattern may put any file name into them.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": HelpText, **settings})

    def error(self, message: str) -> NoReturn:
        """Print the usage and a message, and exit with 2."""
        from trtkit.cli.output import escape_controls

        super().error(escape_controls(message))

    def refuse_unknown(self, words: Sequence[str], values: argparse.Namespace) -> NoReturn:
        """Refuse words that no argument takes.

        Args:
            words: The words.
            values: What the others were parsed to.
        """
        options = [word.partition("=")[0] for word in words if word.startswith("-")]
        known = self._list_options(values)
        parts = []
        for option in options:
            similar = find_similar(option, known)
            parts.append(f"{option}, did you mean {' or '.join(similar)}?" if similar else option)
        # The words behind an unknown option are its value.
        self.error(f"unrecognized arguments: {' '.join(parts or words)}")

    def _list_options(self, values: argparse.Namespace) -> list[str]:
        """The long options of this parser, and of the subcommand that was chosen."""
        found: list[str] = []
        for action in self._actions:
            found += [name for name in action.option_strings if name.startswith("--")]
            if isinstance(action, argparse._SubParsersAction):
                chosen = action.choices.get(getattr(values, action.dest, ""))
                found += chosen._list_options(values) if isinstance(chosen, Parser) else []
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, describe_choice(value, action.choices))

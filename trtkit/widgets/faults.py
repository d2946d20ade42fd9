"""Errors in a widget: one sentence, with the traceback folded below it."""

from __future__ import annotations

import functools
import html
import traceback
from collections.abc import Callable
from typing import Any

from trtkit.errors import TrtkitError

__all__ = ["fault_html", "guarded", "sentence"]


def sentence(error: BaseException) -> str:
    """What went wrong, in one sentence.

    Args:
        error: An error of trtkit says itself what was asked, found and what to do; any other one is named.
    """
    if isinstance(error, TrtkitError):
        text = str(error)
        return text[:1].upper() + text[1:]
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else 'no message'}"


def fault_html(error: BaseException) -> str:
    """The sentence and, folded, the traceback; HTML for an `ipywidgets.HTML`.

    Args:
        error: What was raised.
    """
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return (
        "<div class='trtkit-fault' role='alert'><span class='trtkit-sign' aria-hidden='true'>✕</span>"
        f"<div><p><b>Error.</b> {html.escape(sentence(error))}</p>"
        f"<details><summary>Traceback</summary><pre>{html.escape(trace)}</pre></details></div></div>"
    )


def guarded(show: Callable[[BaseException | None], None]) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a callback that shows what it raises, instead of losing it in the kernel's log.

    Args:
        show: Receives None before each call, which clears what was shown, and the error after a failed one.

    Returns:
        A decorator. An interrupt ends the callback and is shown like an error, so that no half-done state is hidden.
    """

    def decorate(callback: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(callback)
        def call(*arguments: Any, **settings: Any) -> None:
            show(None)
            try:
                callback(*arguments, **settings)
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (shown to the user, traceback and all)
                show(error)

        return call

    return decorate

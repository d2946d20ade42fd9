"""`trtkit engine`: what an engine file says, whether it fits this machine, and its header on or off."""

from __future__ import annotations

import argparse
import dataclasses
import threading
from typing import TYPE_CHECKING

from trtkit.cli.options import size
from trtkit.cli.parser import Command
from trtkit.cli.printing import columns, print_table
from trtkit.errors import EngineError, RecipeError

if TYPE_CHECKING:
    from trtkit.sources.card import Card

__all__ = ["engine_options"]


def engine_options(parser: argparse.ArgumentParser) -> Command:
    """The four things to do with an engine file."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="show|check|strip|wrap")
    shown = kinds.add_parser("show", help="what the file says about itself")
    shown.add_argument("file", metavar="ENGINE")
    shown.add_argument("--layers", action="store_true", help="the table of layers too")
    shown.set_defaults(run=show)
    checked = kinds.add_parser("check", help="whether it runs on this machine, and what differs if not")
    checked.add_argument("file", metavar="ENGINE")
    checked.add_argument("--device", help="GPU index or name; the first GPU if left out")
    checked.set_defaults(run=check)
    stripped = kinds.add_parser("strip", help="write the bare plan, as trtexec and Triton take it")
    stripped.add_argument("file", metavar="ENGINE")
    stripped.add_argument("output", metavar="PLAN")
    stripped.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    stripped.set_defaults(run=strip)
    wrapped = kinds.add_parser("wrap", help="give a bare plan a header, so that trtkit and Ultralytics open it")
    wrapped.add_argument("file", metavar="PLAN")
    wrapped.add_argument("output", metavar="ENGINE")
    wrapped.add_argument("--like", required=True, metavar="MODEL", help="the .pt or .onnx the plan was built from")
    wrapped.add_argument("--imgsz", type=size, metavar="SIDE|H,W", help="picture size it was built for")
    wrapped.add_argument("--batch", type=int, default=1, metavar="N", help="largest batch [default: 1]")
    wrapped.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    wrapped.set_defaults(run=wrap)
    return lambda values, cancel: values.run(values, cancel)


def show(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Print the passport, the description, and what precisions the layers run in."""
    from trtkit.backends import layer_frame, read_engine

    file = read_engine(values.file)
    table = columns("", "")
    table.show_header = False
    known = dict(file.metadata)
    known.pop("trtkit", None)
    if file.passport is None:
        told = "a bare plan" if not known else "no passport of trtkit's"
        table.add_row("header", told)
        table.add_row("plan", f"{len(file.plan):,} bytes")
    else:
        passport = dataclasses.asdict(file.passport)
        rows = layer_frame(passport.pop("layers"))
        passport |= {"recipe": passport.pop("recipe"), "versions": passport.pop("versions")}
        for name, value in passport.items():
            if value not in ("", None, {}):
                table.add_row(name.replace("_", " "), _spelled(value))
        if len(rows):
            counts = rows["precision"].fill_null("?").value_counts(sort=True)
            layers = ", ".join(f"{count} {name}" for name, count in counts.iter_rows())
            table.add_row("layers", f"{len(rows)}: {layers}; {rows['reformat'].sum()} only reformat")
    for name in ("task", "imgsz", "batch", "stride", "names"):
        if name in known and not (file.passport and name in ("imgsz", "batch")):
            table.add_row(name, _spelled(known[name]))
    print_table(table)
    if values.layers and file.passport is not None and file.passport.layers:
        listed = columns("", "name", "type", "precision", "shape")
        for row in layer_frame(file.passport.layers).iter_rows(named=True):
            words = (str(row["index"]), row["name"], row["type"], row["precision"], row["shape"])
            listed.add_row(*(word or "" for word in words))
        print()
        print_table(listed)


def check(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Say that the engine fits this machine, or fail with what differs."""
    from trtkit import backends
    from trtkit.backends.gpus import device_of

    file = backends.read_engine(values.file)
    if file.passport is not None:
        found = backends.capabilities(file.backend)
        device = int(values.device) if values.device and values.device.isdecimal() else values.device
        mismatch = backends.check(file.passport, found, device_of(device)) if found.present else None
        if mismatch is not None:
            raise EngineError(f"run {values.file} here", mismatch.found, mismatch.do)
    backends.require_run(file.backend, device=values.device)
    known = "it fits" if file.passport is not None else "it has no passport, so only opening it tells more"
    print(f"{values.file}: {known}.")


def strip(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Write the bare plan."""
    from trtkit.backends import strip_engine

    print(strip_engine(values.file, values.output, overwrite=values.overwrite))


def wrap(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Write the plan behind a header."""
    from trtkit.backends import wrap_engine

    card = _card(values.like)
    if values.imgsz is not None:
        side = values.imgsz
        card = dataclasses.replace(card, imgsz=(side, side) if isinstance(side, int) else side)
    if values.batch < 1:
        raise RecipeError(f"wrap with batch={values.batch}", "a batch holds at least one picture", "use batch >= 1")
    print(wrap_engine(values.file, values.output, card, overwrite=values.overwrite, batch=values.batch))


def _card(path: str) -> Card:
    from trtkit.sources import load

    return load(path).card


def _spelled(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items() if inner not in (None, "", [], {}))
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value)) if len(value) == 2 else ", ".join(map(str, value))
    return str(value)

"""`trtkit engine`: what an engine file says, whether it fits this machine, and its header on or off."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from trtkit.cli import Command
from trtkit.cli.model_commands import print_comparison
from trtkit.cli.options import parse_size
from trtkit.cli.output import ProgressBars, make_table, print_table
from trtkit.errors import CapabilityError, EngineError, RecipeError

if TYPE_CHECKING:
    from trtkit.models.model import ModelInfo

__all__ = ["demo_options", "doctor_options", "engine_options", "lab_options"]


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
    wrapped.add_argument("--imgsz", type=parse_size, metavar="SIDE|H,W", help="image size it was built for")
    wrapped.add_argument("--batch", type=int, default=1, metavar="N", help="largest batch [default: 1]")
    wrapped.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    wrapped.set_defaults(run=wrap)
    return lambda values, cancel: values.run(values, cancel)


def show(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Print the passport, the description, and what precisions the layers run in."""
    from trtkit.backends import layer_frame, read_engine

    file = read_engine(values.file)
    table = make_table("", "")
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
                table.add_row(name.replace("_", " "), _format_value(value))
        if len(rows):
            counts = rows["precision"].fill_null("?").value_counts(sort=True)
            layers = ", ".join(f"{count} {name}" for name, count in counts.iter_rows())
            table.add_row("layers", f"{len(rows)}: {layers}; {rows['reformat'].sum()} only reformat")
    for name in ("task", "imgsz", "batch", "stride", "names"):
        if name in known and not (file.passport and name in ("imgsz", "batch")):
            table.add_row(name, _format_value(known[name]))
    print_table(table)
    if values.layers and file.passport is not None and file.passport.layers:
        listed = make_table("", "name", "type", "precision", "shape")
        for row in layer_frame(file.passport.layers).iter_rows(named=True):
            words = (str(row["index"]), row["name"], row["type"], row["precision"], row["shape"])
            listed.add_row(*(word or "" for word in words))
        print()
        print_table(listed)


def check(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Say that the engine fits this machine, or fail with what differs."""
    from trtkit import backends
    from trtkit.backends.devices import parse_device

    file = backends.read_engine(values.file)
    if file.passport is not None:
        found = backends.probe(file.backend)
        device = int(values.device) if values.device and values.device.isdecimal() else values.device
        mismatch = backends.check_compatibility(file.passport, found, parse_device(device)) if found.present else None
        if mismatch is not None:
            raise EngineError(f"run {values.file} here", mismatch.found, mismatch.do, code=mismatch.code)
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

    info = _info(values.like)
    if values.imgsz is not None:
        side = values.imgsz
        info = dataclasses.replace(info, imgsz=(side, side) if isinstance(side, int) else side)
    if values.batch < 1:
        raise RecipeError(f"wrap with batch={values.batch}", "a batch holds at least one image", "use batch >= 1")
    print(wrap_engine(values.file, values.output, info, overwrite=values.overwrite, batch=values.batch))


def _info(path: str) -> ModelInfo:
    from trtkit.models import load

    return load(path).info


def _format_value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items() if inner not in (None, "", [], {}))
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value)) if len(value) == 2 else ", ".join(map(str, value))
    return str(value)


# Commands about this machine: doctor, demo and lab.


def doctor_options(parser: argparse.ArgumentParser) -> Command:
    """Doctor takes no settings."""
    return doctor


def doctor(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Print what is installed and what each backend can do here."""
    from trtkit.backends import get_backend, list_backends, probe, require_build, require_run
    from trtkit.results import describe_machine, package_versions

    machine = describe_machine()
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['system']}")
    print(", ".join(f"{name} {version}" for name, version in package_versions().items()))
    gpus = probe("tensorrt").gpus
    for gpu in gpus:
        print(f"GPU {gpu.index}: {gpu.name} ({gpu.sm}), {gpu.memory_gib:.0f} GiB, driver {gpu.driver or 'unknown'}")
    if not gpus:
        print("GPU: none (no NVIDIA driver with a GPU was found)")
    for name in list_backends():
        try:
            backend, here = get_backend(name), probe(name)
        except CapabilityError as error:
            print(f"\n{name}: {error.found}; {error.do}")
            continue
        print(f"\n{here.title}" if here.present else f"\n{backend.title}: {here.missing}")
        if backend.build is None:
            print(f"  builds  nothing; runs {backend.models}")
            continue
        for word, require in (("builds", require_build), ("runs", require_run)):
            try:
                require(name)
            except CapabilityError as error:
                print(f"  {word:<6}  no: {error.found}; {error.do}")
                continue
            targets = (
                f" for {', '.join(here.cross_build_targets)}" if word == "builds" and here.cross_build_targets else ""
            )
            print(f"  {word:<6}  {backend.models}{targets}")


def demo_options(parser: argparse.ArgumentParser) -> Command:
    """Where the demo writes."""
    from trtkit import demo as embedded

    parser.add_argument(
        "--output", type=Path, default=embedded.OUTPUT_DIR, metavar="FOLDER", help=f"[default: {embedded.OUTPUT_DIR}]"
    )
    return demo


def demo(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Compare the embedded model's precisions and print the table and the places of the files."""
    from trtkit import demo as embedded
    from trtkit.backends.capabilities import probe
    from trtkit.comparison.comparator import compare

    # The demo's own results may be replaced; where there is no GPU it builds for one that is common.
    device = None if probe("tensorrt_rtx").gpus else embedded.DEVICE
    with ProgressBars() as bars:
        found = compare(
            embedded.model_path(),
            embedded.data_path(),
            device=device,
            output=values.output,
            overwrite=True,
            progress=bars,
            cancel=cancel,
        )
    print_comparison(found, values.output)


def lab_options(parser: argparse.ArgumentParser) -> Command:
    """What JupyterLab is told."""
    parser.epilog = "All other settings go to JupyterLab, such as --no-browser."
    parser.set_defaults(passed_on=[])
    return lab


def lab(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Open JupyterLab on the notebooks, or here where there are none."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise CapabilityError("open JupyterLab", "it is not installed", "run pip install 'trtkit[notebook]'")
    # JupyterLab answers Ctrl-C itself, and asks before it stops.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    folder = Path("notebooks") if Path("notebooks").is_dir() else Path()
    subprocess.run([sys.executable, "-m", "jupyterlab", *values.passed_on], cwd=folder, check=False)

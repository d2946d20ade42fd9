"""`trtkit lab`: JupyterLab on the notebooks, those of a checkout or copies of those in the package."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import subprocess
import sys
import threading
from pathlib import Path

from trtkit.cli import Command
from trtkit.cli.output import print_error
from trtkit.errors import CapabilityError, OutputError
from trtkit.writing import check_output_folder, write_bytes

__all__ = ["COPIES", "add_lab", "copy_notebooks", "find_notebooks"]

CHECKOUT = Path("notebooks")
"""Where a checkout has the notebooks, relative to its root."""

COPIES = Path("trtkit-notebooks")
"""Where `trtkit lab` copies them to elsewhere, relative to the current folder."""

PACKAGE = Path(__file__).resolve().parents[1]


def add_lab(parser: argparse.ArgumentParser) -> Command:
    """`trtkit lab` passes the options that it does not know to JupyterLab."""
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"folder of the notebooks; missing ones are copied there, others stay as they are [default: {CHECKOUT} of "
        f"a checkout, else {COPIES}]",
    )
    parser.epilog = "All other options are passed to JupyterLab, such as --no-browser."
    parser.set_defaults(passed_on=[])
    return _run_lab


def find_notebooks() -> list[Path]:
    """The notebooks that came with trtkit: in the package of a wheel, beside it in a checkout.

    Raises:
        CapabilityError: This installation has none.
    """
    for folder in (PACKAGE / "notebooks", PACKAGE.parent / "notebooks"):
        notebooks = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
        if notebooks:
            return notebooks
    raise CapabilityError(
        "find the notebooks",
        f"this installation has none in {PACKAGE}",
        "install trtkit from its wheel, or run trtkit lab in a checkout",
        code="cli-notebooks-missing",
        folder=PACKAGE,
    )


def copy_notebooks(folder: Path) -> list[Path]:
    """Copy the notebooks that a folder does not have; files that exist there stay as they are.

    Args:
        folder: The folder; it is created if it is missing.

    Returns:
        The copies that were made.

    Raises:
        OutputError: The folder is the package's own, or can't be written.
    """
    notebooks = find_notebooks()
    if PACKAGE in (folder.resolve(), *folder.resolve().parents):
        raise OutputError(
            f"edit notebooks in {folder}",
            "it is part of the installed package",
            "name a folder of your own by --output",
            code="cli-notebooks-in-package",
            path=folder,
        )
    missing = [path for path in notebooks if not (folder / path.name).exists()]
    if missing:
        check_output_folder(folder)
    for path in missing:
        write_bytes(folder / path.name, path.read_bytes())
    return [folder / path.name for path in missing]


def _run_lab(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Open JupyterLab in the folder of the notebooks."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise CapabilityError(
            "open JupyterLab",
            "it is not installed",
            "run pip install 'trtkit[notebook]'",
            code="cli-jupyterlab-missing",
        )
    folder = values.output
    if folder is None:
        of_checkout = {path.name for path in CHECKOUT.glob("*.ipynb")} & {path.name for path in find_notebooks()}
        folder = CHECKOUT if of_checkout and PACKAGE not in CHECKOUT.resolve().parents else COPIES
    if folder != CHECKOUT:
        count = len(copy_notebooks(folder))
        print_error(f"trtkit: {count} notebook{'s' * (count != 1)} copied to {folder}; what was there stays as it is.")
    with subprocess.Popen([sys.executable, "-m", "jupyterlab", *values.passed_on], cwd=folder) as server:
        # JupyterLab gets a terminal's Ctrl-C itself, but not a signal to this process alone.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        signal.signal(signal.SIGTERM, lambda number, frame: server.terminate())

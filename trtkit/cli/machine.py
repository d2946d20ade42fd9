"""Commands about this machine: doctor, demo and lab."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import subprocess
import sys
import threading
from pathlib import Path

from trtkit.cli.bars import Bars
from trtkit.cli.judging import show_comparison
from trtkit.cli.parser import Command
from trtkit.errors import CapabilityError

__all__ = ["demo_options", "doctor_options", "lab_options"]


def doctor_options(parser: argparse.ArgumentParser) -> Command:
    """Doctor takes no settings."""
    return doctor


def doctor(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Print what is installed and what each backend can do here."""
    from trtkit.backends.capabilities import BACKENDS, TITLES, describe, require_build, require_run
    from trtkit.origin import machine, versions

    here = machine()
    print(f"{here['processor']}, {here['cores']} cores, {here['system']}")
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    gpus = describe("tensorrt").gpus
    for gpu in gpus:
        print(f"GPU {gpu.index}: {gpu.name} ({gpu.sm}), {gpu.memory_gib:.0f} GiB, driver {gpu.driver or 'unknown'}")
    if not gpus:
        print("GPU: none (no NVIDIA driver with a GPU was found)")
    for name in BACKENDS:
        found = describe(name)
        print(f"\n{found.title}" if found.present else f"\n{TITLES[name]}: {found.missing}")
        if name == "onnxruntime":
            print("  builds  nothing; runs the ONNX files of every precision on the CPU")
            continue
        for word, require in (("builds", require_build), ("runs", require_run)):
            try:
                require(name)
            except CapabilityError as error:
                print(f"  {word:<6}  no: {error.found}; {error.do}")
                continue
            targets = (
                f" for {', '.join(found.cross_build_targets)}" if word == "builds" and found.cross_build_targets else ""
            )
            print(f"  {word:<6}  engines{targets}")


def demo_options(parser: argparse.ArgumentParser) -> Command:
    """Where the demo writes."""
    from trtkit import demo as embedded

    parser.add_argument(
        "--output", type=Path, default=embedded.OUTPUT, metavar="FOLDER", help=f"[default: {embedded.OUTPUT}]"
    )
    return demo


def demo(values: argparse.Namespace, cancel: threading.Event) -> None:
    """Compare the embedded model's precisions and print the table and the places of the files."""
    from trtkit import demo as embedded
    from trtkit.backends.capabilities import describe
    from trtkit.judgement.comparing import compare

    # The demo's own results may be replaced; where there is no GPU it builds for one that is common.
    device = None if describe("tensorrt_rtx").gpus else embedded.DEVICE
    with Bars() as bars:
        found = compare(
            embedded.model_path(),
            embedded.data_path(),
            device=device,
            output=values.output,
            overwrite=True,
            progress=bars,
            cancel=cancel,
        )
    show_comparison(found, values.output)


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

"""kill -9 at random points of export, calibrate, compare and save: what is left, and whether the next run succeeds.

    python benchmarks/kill.py --verb export --points 25 [--first 0] [--seed 0]

Each case prepares a whole old output, starts a process that replaces it, and kills that process: every other one after
a random time, the others at a random call that opens, creates, renames or removes something in the output folder or in
TMPDIR, where most kills by time would never fall. Then it reads the output, which must be the old one or the new one
with nothing of the other, runs the same again, which must succeed, and lists what is left beside the outputs and in
TMPDIR. Prints one line for each case and a row of a Markdown table; exits with 1 if anything was damaged or left.

The processes are forked from one that has imported everything, so that no time goes into imports. Linux.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # noqa: F401 (imported once, before the forks)
import plotly.graph_objects  # noqa: F401
import polars as pl
import torch  # noqa: F401

import trtkit as tk
from trtkit import demo
from trtkit.calibration import Calibration
from trtkit.comparison.comparison import Comparison
from trtkit.graph.onnx_file import check_onnx, read_trtkit_metadata

SIDES = {"old": 32, "new": 64}
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
REFERENCE = Path(__file__).resolve().parents[1] / "tests/comparison/references/v1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
    """What is killed.

    Attributes:
        write: Writes the "old" or the "new" output into a folder, over what is there.
        read: Reads it whole and returns which of them it is, by everything that tells.
    """

    write: Callable[[Path, str], Any]
    read: Callable[[Path], set[str]]


def which(side: int) -> str:
    return next(name for name, value in SIDES.items() if value == side)


def write_export(folder: Path, name: str) -> None:
    tk.export(
        demo.model_path(), format="onnx", imgsz=SIDES[name], half=name == "new", overwrite=True,
        output=folder / "model.onnx",
    )  # fmt: skip


def read_onnx(path: Path) -> set[str]:
    check_onnx(path, asked="check")
    proto = onnx.load(path)
    with tk.open(path) as runner:
        runner.predict([np.zeros((32, 32, 3), np.uint8)])
    size = proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    return {which(size), which(read_trtkit_metadata(proto)["recipe"]["imgsz"])}


def write_source(root: Path) -> None:
    """The ONNX file that `calibrate` and `compare` take: tracing it in each run would take most of the time."""
    tk.export(demo.model_path(), format="onnx", dynamic=True, output=root / "yolo11n.onnx")


def write_calibration(folder: Path, name: str) -> None:
    calibration = tk.calibrate(
        folder.parent / "yolo11n.onnx", demo.data_path(), calibration_images=2, imgsz=SIDES[name], histograms=True,
        algorithm="minmax" if name == "old" else "mse",
    )  # fmt: skip
    calibration.save(folder)


def read_calibration(folder: Path) -> set[str]:
    calibration = Calibration.load(folder)
    # Loading compares the hash of ranges and settings; the histograms must be there too.
    assert all(stats.histogram is not None for stats in calibration.stats.values())
    return {"old" if calibration.algorithm == "minmax" else "new"}


def write_comparison(folder: Path, name: str) -> None:
    tk.compare(
        folder.parent / "yolo11n.onnx", demo.data_path(), ("fp32", "fp16"), imgsz=SIDES[name], eval_images=2, runs=2,
        seconds=0.1, build=False, output=folder, overwrite=True,
    )  # fmt: skip


def read_comparison(folder: Path) -> set[str]:
    comparison = Comparison.load(folder)
    found = {which(comparison.about["imgsz"][0])}
    for files in comparison.about["files"].values():
        for path in files.values():
            found.add(which(read_trtkit_metadata(onnx.load(path))["recipe"]["imgsz"][0]))
    assert (folder / "report.html").stat().st_size > 10_000
    return found


def write_saved(folder: Path, name: str) -> None:
    saved = Comparison.load(REFERENCE)
    mark = pl.lit(name).alias("mark")
    tables = {key: getattr(saved, key).with_columns(mark) for key in ("rows", "images", "detections", "samples")}
    dataclasses.replace(saved, **tables, about={**saved.about, "mark": name}).save(folder)


def read_saved(folder: Path) -> set[str]:
    saved = Comparison.load(folder)
    frames = (saved.rows, saved.images, saved.detections, saved.samples)
    return {saved.about["mark"], *(mark for frame in frames for mark in frame["mark"].unique())}


VERBS = {
    "export": Verb(write=write_export, read=lambda folder: read_onnx(folder / "model.onnx")),
    "calibrate": Verb(write=write_calibration, read=read_calibration),
    "compare": Verb(write=write_comparison, read=read_comparison),
    "save": Verb(write=write_saved, read=read_saved),
}


def run_child(work: Callable[[], Any], kill_after: float | None = None) -> tuple[int, float]:
    """Run in a forked process of its own: its exit status (negative: the signal) and the seconds it took."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            warnings.simplefilter("ignore")
            work()
            status = 0
        except BaseException as error:  # noqa: BLE001 (it is the child's last act)
            print(f"  {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - start


def die_at(number: int, folders: tuple[Path, ...]) -> None:
    """Kill this process at the n-th call that touches something below the folders."""
    seen = 0
    prefixes = tuple(str(folder) for folder in folders)

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and any(str(value).startswith(prefixes) for value in values[:2]):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def ask_child(work: Callable[[], str]) -> str:
    """What a function returns in a forked process; this one starts no thread pools, which forks would inherit dead."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as answers:
        run_child(lambda: os.write(writing, work().encode()))
        os.close(writing)
        return answers.read()


def read_outcome(verb: Verb, folder: Path) -> str:
    """ "old", "new", "mixture ..." or "damaged ..."."""

    def read() -> str:
        try:
            found = verb.read(folder)
        except Exception as error:  # noqa: BLE001 (whatever it is, the output is damaged)
            return f"damaged ({type(error).__name__}: {str(error)[:200]})"
        return found.pop() if len(found) == 1 else f"mixture of {sorted(found)}"

    return ask_child(read)


def count_events(verb: Verb, folder: Path, folders: tuple[Path, ...]) -> int:
    """How many calls of a run touch something below the folders."""

    def work() -> str:
        seen = 0
        prefixes = tuple(str(folder) for folder in folders)

        def hook(event: str, values: tuple[Any, ...]) -> None:
            nonlocal seen
            seen += event in EVENTS and any(str(value).startswith(prefixes) for value in values[:2])

        sys.addaudithook(hook)
        verb.write(folder, "new")
        return str(seen)

    return int(ask_child(work))


def list_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def main() -> int:
    """Run the cases of one verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verb", choices=VERBS, required=True)
    parser.add_argument("--points", type=int, default=25)
    parser.add_argument("--first", type=int, default=0, help="the first case, to go on with")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    verb = VERBS[options.verb]
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        root = Path(name).resolve()
        folder, before, temporary, cache = (root / part for part in ("output", "before", "tmp", "cache"))
        temporary.mkdir()
        os.environ.update(TMPDIR=str(temporary), TRTKIT_CACHE=str(cache))
        tempfile.tempdir = str(temporary)
        assert run_child(lambda: write_source(root))[0] == 0
        assert run_child(lambda: verb.write(folder, "old"))[0] == 0
        shutil.copytree(folder, before)
        touched = (folder, temporary)
        events = count_events(verb, folder, touched)
        status, seconds = run_child(lambda: verb.write(folder, "new"))
        assert status == 0
        expected = list_below(folder)
        for case in range(options.first, options.first + options.points):
            dice = random.Random(f"{options.verb}/{options.seed}/{case}")
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            if case % 2:
                after = dice.uniform(0, seconds)
                point = f"{after:.2f} of {seconds:.2f} s"
                status, _ = run_child(lambda: verb.write(folder, "new"), after)
            else:
                number = dice.randint(1, events)
                point = f"call {number} of {events}"

                def write(number: int = number) -> None:
                    die_at(number, touched)
                    verb.write(folder, "new")

                status, _ = run_child(write)
            counts["killed" if status == -signal.SIGKILL else "ended before"] += 1
            outcome = read_outcome(verb, folder)
            counts[outcome.partition(" ")[0]] += 1
            status, _ = run_child(lambda: verb.write(folder, "new"))
            again = status == 0 and read_outcome(verb, folder) == "new"
            counts["re-run succeeded"] += again
            left = {*(list_below(folder) - expected), *list_below(temporary)}
            counts["left behind"] += bool(left)
            print(f"{case}: {point}: {outcome}, re-run {'ok' if again else 'FAILED'}, left {sorted(left)}", flush=True)
    names = ("killed", "ended before", "old", "new", "mixture", "damaged", "re-run succeeded", "left behind")
    print(f"| {options.verb} | {options.points} | " + " | ".join(str(counts[name]) for name in names) + " |")
    bad = counts["mixture"] + counts["damaged"] + counts["left behind"]
    return 1 if bad or counts["re-run succeeded"] < options.points else 0


if __name__ == "__main__":
    sys.exit(main())

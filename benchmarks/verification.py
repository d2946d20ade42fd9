"""How far healthy engines are from ONNX Runtime, and whether `verify` finds planted miscompiles.

    python benchmarks/verification.py run --models MODELS --scenes SCENES --out verification --lanes 8 --budget 540
    python benchmarks/verification.py write verification

`run` builds engines of ten models of five tasks in FP32, FP16 and INT8 (static and dynamic, several sizes, batches
and heads), several at a time, and compares each with ONNX Runtime by `tk.verify`; then graphs with a planted fault
are built and compared with the healthy graph. Each result is kept as soon as it is there, and the same command goes on
where it stopped. It leaves `verification.json`, `verification.parquet` (every difference) and `verification.md`.
`write` puts them into `results/`. With `--simulate` no TensorRT is needed: ONNX Runtime runs each graph with every
weight moved by half a step of FP16, as other kernels round.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    import polars as pl

HERE = Path(__file__).resolve()
# Run as a script, the package and the test helpers need not be installed.
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "tests" / "support")]

PRECISIONS = ("fp32", "fp16", "int8")
FAULTS = ("bias", "batch", "tanh")
"""Kinds of `planted_faults.py`; "bias!" is the strong one of the kind."""
EVAL_IMAGES = 16
CALIBRATION_IMAGES = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """One graph before its precision."""

    model: str
    task: str
    imgsz: int
    batch: int
    dynamic: bool = False
    head: str = "dense"
    faults: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}-{self.imgsz}-b{self.batch}{'-dynamic' if self.dynamic else ''}-{self.head}"


def _both(model: str, task: str, *heads: str, faults: str = "") -> Iterator[Unit]:
    """A model as a static and a dynamic graph."""
    size = 64 if task == "classify" else 320
    first, second = heads or ("dense", "dense")
    yield Unit(model=model, task=task, imgsz=size, batch=2, head=first, faults=faults == "static")
    small = 64 if task == "classify" else 256
    yield Unit(model=model, task=task, imgsz=small, batch=4, dynamic=True, head=second, faults=faults == "dynamic")


UNITS = (
    *_both("yolo11n", "detect", faults="dynamic"),
    *_both("yolo11n-seg", "segment", faults="static"),
    *_both("yolo11n-pose", "pose", faults="static"),
    *_both("yolo11n-obb", "obb", faults="static"),
    *_both("yolo11n-cls", "classify", faults="dynamic"),
    *_both("yolo26n", "detect", "dense", "end2end", faults="dynamic"),
    *_both("yolo26n-seg", "segment", "end2end", "dense", faults="static"),
    *_both("yolo26n-pose", "pose", "end2end", "dense"),
    *_both("yolo26n-obb", "obb", "end2end", "dense"),
    *_both("yolov10n", "detect", "end2end", "dense"),
    Unit(model="yolo11n", task="detect", imgsz=320, batch=1, head="nms"),
    Unit(model="yolo11n", task="detect", imgsz=192, batch=8),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One engine: a graph in a precision, healthy or with a fault."""

    unit: Unit
    precision: str
    fault: str | None = None

    @property
    def name(self) -> str:
        return (
            f"{self.unit.name}-{self.precision}{'' if self.fault is None else f'-{self.fault}'.replace('!', '-strong')}"
        )


def jobs() -> list[Job]:
    """45 healthy engines, then three faults for each other healthy one: a stopped run has some of each kind.

    An engine takes 90 to 220 s with twelve lanes on 16 cores: 150 of them take half an hour.
    """
    healthy = [Job(unit=unit, precision=precision) for unit in UNITS for precision in PRECISIONS]
    graphs = [(unit, precision) for unit in UNITS if unit.faults for precision in PRECISIONS]
    # What INT8 rounds away hides a mild fault: it comes last there.
    strong = [
        (turn, index, "!" if graph[1] == "int8" else "") for turn in range(3) for index, graph in enumerate(graphs)
    ]
    mild = [(turn, index, "") for turn in range(3) for index, graph in enumerate(graphs) if graph[1] == "int8"]
    faults, hidden = (
        [
            Job(unit=graphs[index][0], precision=graphs[index][1], fault=FAULTS[(index + index // 3 + turn) % 3] + sign)
            for turn, index, sign in order
        ]
        for order in (strong, mild)
    )
    others = iter(healthy[45:])
    mixed = [one for index in range(0, len(faults), 3) for one in (*faults[index : index + 3], next(others))]
    return [*healthy[:45], *mixed, *others, *hidden]


def graph_of(job: Job, options: argparse.Namespace) -> Path:
    """The healthy ONNX file of a job, exported once."""
    import trtkit as tk

    unit = job.unit
    path = Path(options.work) / "graphs" / f"{unit.name}-{job.precision}.onnx"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    model = tk.load(Path(options.models) / f"{unit.model}.pt", end2end=unit.head == "end2end")
    data = data_of(unit.task, Path(options.scenes))
    calibration = None
    if job.precision == "int8":
        calibration = tk.calibrate(
            model, data, imgsz=unit.imgsz, calibration_images=CALIBRATION_IMAGES, cache_dir=None, device="cpu"
        )
    tk.export(
        model,
        format="onnx",
        imgsz=unit.imgsz,
        batch=unit.batch,
        dynamic=unit.dynamic,
        half=job.precision == "fp16",
        int8=job.precision == "int8",
        calibration=calibration,
        nms=unit.head == "nms",
        output=path,
        overwrite=True,
    )
    return path


def data_of(task: str, scenes: Path) -> Path:
    return scenes / task if task == "classify" else scenes / task / "data.yaml"


@contextlib.contextmanager
def engine_of(job: Job, proto: onnx.ModelProto, options: argparse.Namespace) -> Iterator[tuple[Any, dict[str, Any]]]:
    """An open engine of a graph, and how it was built."""
    import onnx as onnx_package
    from planted_faults import add_rounding

    from trtkit import backends
    from trtkit.graph.pad_channels import pad_channels

    unit = job.unit
    if options.simulate:
        add_rounding(proto, seed=len(job.name))
        with backends.open(proto) as runner:
            if unit.dynamic:
                runner.batch = unit.batch
            yield runner, {"build_seconds": 0.0, "gpu": None, "tensorrt": None}
        return
    graph = pad_channels(proto) if job.precision == "int8" else proto
    settings = backends.BuildSettings(
        precision=job.precision,
        batch=unit.batch,
        imgsz=(unit.imgsz, unit.imgsz),
        dynamic=unit.dynamic,
        opt_level=options.level,
        # TensorRT 8.6 failed to read a cache that another lane had written meanwhile.
        timing_cache=Path(options.work) / f"timing-{os.getpid()}.cache",
    )
    built = backends.build(onnx_package.load_model_from_string(graph.SerializeToString()), settings)
    with backends.open(proto) as described:
        metadata = described.info.to_metadata(
            batch=unit.batch,
            imgsz=settings.imgsz,
            dynamic=unit.dynamic,
            half=job.precision == "fp16",
            int8=job.precision == "int8",
        )
        passport = backends.Passport.from_build(
            built, settings, backend=str(built.facts["backend"]), model_hash=described.hash
        )
    path = Path(options.work) / f"{job.name}.engine"
    facts = {
        "build_seconds": built.seconds,
        **{name: built.facts[name] for name in ("gpu", "tensorrt", "driver", "cuda")},
    }
    try:
        with backends.open(backends.write_engine(path, built.plan, metadata, passport)) as runner:
            yield runner, facts
    finally:
        path.unlink(missing_ok=True)


def run_job(job: Job, options: argparse.Namespace) -> None:
    """Build and compare one engine; leaves `<name>.json` and `<name>.parquet`."""
    import onnx as onnx_package
    import planted_faults

    import trtkit as tk
    from trtkit.writing import write_json

    folder = Path(options.work) / "results"
    facts: dict[str, Any] = {**dataclasses.asdict(job.unit), "precision": job.precision, "fault": job.fault}
    begin = time.monotonic()
    try:
        path = graph_of(job, options)
        facts["graph_seconds"] = time.monotonic() - begin
        proto = onnx_package.load(str(path))
        if job.fault is not None:
            kinds = planted_faults.STRONG_FAULTS if job.fault.endswith("!") else planted_faults.FAULTS
            facts["planted_at"] = kinds[job.fault.rstrip("!")](proto)
        with engine_of(job, proto, options) as (engine, built):
            facts |= built
            started = time.monotonic()
            result = tk.verify(engine, data_of(job.unit.task, Path(options.scenes)), onnx=path, eval_images=EVAL_IMAGES)
            facts |= {"verdict": result.verdict, "worst": result.worst(), "verify_seconds": time.monotonic() - started}
            facts["batches"] = list(engine.profile_batches)
        result.frame().write_parquet(folder / f"{job.name}.parquet")
    except Exception as error:  # noqa: BLE001 - one engine that fails must not stop the others: it is a row of the table.
        traceback.print_exc()
        facts["error"] = f"{type(error).__name__}: {error}"
    facts["seconds"] = time.monotonic() - begin
    write_json(folder / f"{job.name}.json", facts)
    print(f"{job.name}: {facts.get('verdict', facts.get('error'))} after {facts['seconds']:.0f} s", flush=True)


def work(options: argparse.Namespace) -> None:
    """Take jobs until none is left or the time is over; lanes share them by claims."""
    warnings.simplefilter("ignore")
    folder = Path(options.work)
    for job in jobs():
        if not any(fnmatch.fnmatch(job.name, pattern) for pattern in options.only or "*"):
            continue
        if time.time() > options.until:
            return
        try:
            (folder / "claims" / job.name).touch(exist_ok=False)
        except FileExistsError:
            continue
        run_job(job, options)


def run(options: argparse.Namespace) -> None:
    """Run the lanes, and write what is there every few seconds."""
    from parallel_builds import Program, drive, gpus_here

    folder = Path(options.work).resolve()
    for name in ("results", "claims"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for claim in (folder / "claims").iterdir():
        claim.unlink()
    for path in (folder / "results").glob("*.json"):
        # What failed or was stopped is tried again.
        if "error" not in json.loads(path.read_text()):
            (folder / "claims" / path.stem).touch()
    words = [
        sys.executable, str(HERE), "work", "--models", options.models, "--scenes", options.scenes,
        "--work", str(folder),
        "--level", str(options.level), "--until", str(time.time() + options.budget - options.reserve),
        *(["--simulate"] if options.simulate else []), *options.only,
    ]  # fmt: skip
    # A lane that TensorRT takes down is replaced once.
    lanes = [
        Program(name=f"lane {index}", words=words, log=folder / f"lane-{index}.log")
        for index in range(2 * options.lanes)
    ]
    stopped = threading.Event()

    def write_often() -> None:
        while not stopped.wait(15):
            gather(folder, Path(options.out), options)

    writer = threading.Thread(target=write_often, daemon=True)
    writer.start()
    try:
        gpus = ["0"] if options.simulate else gpus_here()
        drive(lanes, gpus=gpus, lanes=options.lanes, seconds=options.budget, service=not options.simulate)
    finally:
        stopped.set()
        writer.join()
        gather(folder, Path(options.out), options)
    print((Path(options.out) / "verification.md").read_text(), flush=True)


def gather(folder: Path, out: Path, options: argparse.Namespace) -> None:
    """Write everything there is as three files."""
    import polars as pl

    from trtkit.results import describe_machine, package_versions
    from trtkit.writing import write_bytes, write_json

    rows, frames = [], []
    for job in jobs():
        path = folder / "results" / f"{job.name}.json"
        if not path.is_file():
            continue
        rows.append(json.loads(path.read_text()) | {"name": job.name})
        table = path.with_suffix(".parquet")
        if table.is_file():
            frame = pl.read_parquet(table)
            image = pl.col("path").rank("dense").cast(pl.Int32)
            frames.append(frame.with_columns(name=pl.lit(job.name), image=image).drop("path"))
    out.mkdir(parents=True, exist_ok=True)
    frame = pl.concat(frames) if frames else pl.DataFrame()
    content = {
        "about": {
            "command": f"python benchmarks/verification.py run --level {options.level} --lanes {options.lanes}",
            "machine": describe_machine(),
            "versions": package_versions(),
            "cores": os.cpu_count(),
            "simulated": options.simulate,
        },
        "rows": rows,
        "jobs": len(jobs()),
    }
    write_json(out / "verification.json", content)
    frame.write_parquet(out / "verification.parquet")
    write_bytes(out / "verification.md", ("\n".join(report(content, frame)) + "\n").encode())


def report(content: dict[str, Any], frame: pl.DataFrame) -> list[str]:
    """The record as Markdown: healthy engines by precision and output, then the faults."""
    import polars as pl
    from records import table

    rows = content["rows"]
    healthy = [row for row in rows if row["fault"] is None and "verdict" in row]
    faulty = [row for row in rows if row["fault"] is not None and "verdict" in row]
    failed = [row for row in rows if "error" in row]
    about = content["about"]
    built = next((row for row in rows if row.get("gpu")), None)
    where = "ONNX Runtime with every weight moved by half a step of FP16" if about["simulated"] else "nothing built"
    if built is not None:
        where = f"TensorRT {built['tensorrt']} on {built['gpu']} (driver {built['driver']})"
    alarms = [row for row in healthy if row["verdict"] == "differs"]
    missed = [row for row in faulty if row["verdict"] != "differs"]
    lines = [
        "# Engines against ONNX Runtime", "", f"`{about['command']}`", "", f"{where}; {about['cores']} cores.", "",
        f"{len(healthy)} healthy engines: {len(alarms)} beyond the limits. {len(faulty)} engines with a planted fault: "
        f"{len(missed)} not found. {len(failed)} failed, {content['jobs'] - len(rows)} not reached.", "",
    ]  # fmt: skip
    if frame.is_empty():
        return lines
    lines += ["## Differences of healthy engines, by image", ""]
    names = [row["name"] for row in healthy]
    body = []
    mine = frame.filter(pl.col("name").is_in(names))
    for precision in PRECISIONS:
        of_precision = mine.filter(pl.col("name").str.ends_with(f"-{precision}"))
        for (output,), part in of_precision.group_by("output", maintain_order=True):
            part = part.filter((pl.col("objects") > 0) & pl.col("difference").is_finite())
            if part.is_empty():
                continue
            cells = [precision, str(output), str(part["name"].n_unique()), str(len(part))]
            for column, limit in (("difference", "limit"), ("mean", "mean_limit")):
                cells += [f"{part[column].quantile(q, 'linear'):.4f}" for q in (0.5, 0.99)]
                cells += [f"{part[column].max():.4f}", f"{part[limit][0]:g}"]
            body.append(cells)
    heads = ["p50", "p99", "largest", "limit"]
    lines += [
        *table(["precision", "output", "engines", "images", *heads, *(f"mean {name}" for name in heads)], body),
        "",
    ]
    lines += ["## Largest difference as a share of its limit, by engine", ""]
    shares = frame.with_columns(
        share=pl.max_horizontal(pl.col("difference") / pl.col("limit"), pl.col("mean") / pl.col("mean_limit"))
    )
    worst = {
        name: part.sort("share", nulls_last=False)[-1]
        for (name,), part in shares.filter(pl.col("output") != "objects").group_by("name", maintain_order=True)
    }
    body = []
    for row in (*healthy, *faulty):
        top = worst[row["name"]]
        body.append(
            [
                row["name"], row["verdict"], f"{top['share'][0]:.2f}", top["output"][0],
                ", ".join(f"{name} {value:.4f}" for name, value in row["worst"].items()), f"{row['build_seconds']:.0f}",
            ]
        )  # fmt: skip
    lines += [*table(["engine", "verdict", "share of the limit", "output", "largest", "build s"], body), ""]
    lines += [f"- {row['name']}: {row['error'][:300]}" for row in failed]
    return lines


def write(folder: Path) -> None:
    """Put a record into `results/`."""
    import polars as pl
    from records import write as write_record

    from trtkit.verification import add_limits

    content = json.loads((folder / "verification.json").read_text())
    frame = pl.read_parquet(folder / "verification.parquet")
    # By the limits of today, which follow from these differences.
    parts = []
    for row in content["rows"]:
        part = frame.filter(name=row["name"])
        if not part.is_empty():
            part = add_limits(part.drop("limit", "mean_limit", "differs"), row["precision"])
            row["verdict"] = "differs" if part["differs"].any() else "agrees"
            parts.append(part)
    frame = pl.concat(parts)
    gpu = next((row["gpu"] for row in content["rows"] if row.get("gpu")), None)
    name = "verification-simulated" if gpu is None else f"verification-{'-'.join(gpu.lower().split())}"
    write_record(name, content, report(content, frame))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("run", "work"):
        verb = verbs.add_parser(name)
        for flag in ("--models", "--scenes"):
            verb.add_argument(flag, required=True)
        verb.add_argument("--work", default="runs/verification", help="folder of graphs and of each result")
        verb.add_argument("--level", type=int, default=0, help="TensorRT's optimization level")
        verb.add_argument("--simulate", action="store_true", help="no TensorRT: ONNX Runtime with moved weights")
        verb.add_argument("only", nargs="*", help="patterns of engines' names; all without one")
        if name == "work":
            verb.add_argument("--until", type=float, required=True)
            continue
        verb.add_argument("--out", required=True)
        verb.add_argument("--lanes", type=int, default=8, help="engines built at once on each GPU")
        verb.add_argument("--budget", type=float, default=540, help="stop after so many seconds")
        verb.add_argument("--reserve", type=float, default=60, help="start nothing in the last seconds of the budget")
    verbs.add_parser("write").add_argument("folder", type=Path)
    options = parser.parse_args(words)
    if options.verb == "run":
        run(options)
    elif options.verb == "work":
        work(options)
    else:
        write(options.folder)


if __name__ == "__main__":
    main()

"""TensorRT's engines side by side: FP32, FP16, INT8 by Q/DQ and INT8 by TensorRT's own calibrator, for every task.

    python benchmarks/engines.py run --models MODELS --scenes SCENES --out engines --level 2 --jobs 5
    python benchmarks/engines.py write engines

`run` exports every engine (several at a time, each in a process with its share of the cores), evaluates it on the
images of `val`, and then times them one at a time on each GPU, each in a process of its own as where it is deployed.
It can be called again to go on where it stopped. `write` puts what is there into `results/engines-GPU.json` and `.md`.
Needs a GPU and TensorRT; several GPUs are all used.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import fnmatch
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parallel_builds import Program, drive, gpus_here

import trtkit as tk
from trtkit.writing import write_json

HERE = Path(__file__).resolve()

MODELS = {
    "detect": ("yolo11n.pt", 640),
    "segment": ("yolo11n-seg.pt", 320),
    "pose": ("yolo11n-pose.pt", 320),
    "obb": ("yolo11n-obb.pt", 320),
    "classify": ("yolo11n-cls.pt", 64),
}
LABELS = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8 (Q/DQ)", "implicit": "INT8 (calibrator)"}
RUNS = 500
CLOCKS = 4
"""Processes that time engines of one GPU: one does, the others load their libraries and wait for their turn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One engine: a task's model in a precision, at a batch."""

    task: str
    precision: str
    batch: int
    level: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.precision}-b{self.batch}-l{self.level}"


def jobs(level: int) -> Iterator[Job]:
    """Every engine of the table, so ordered that the timing cache knows as much as can be when a build begins.

    Engines of one task and batch time the same kernels, which FP16 and the calibrator need most of. Segment, pose and
    obb share most layers: the last two come late.
    """
    shared = ("pose", "obb")
    for tasks in ([task for task in MODELS if task not in shared], shared):
        for precision in ("fp16", "implicit", "int8", "fp32"):
            for batch in (8, 1):
                for task in tasks:
                    yield Job(task=task, precision=precision, batch=batch, level=level)


def data_of(task: str, scenes: Path) -> Path:
    return scenes / task if task == "classify" else scenes / task / "data.yaml"


def build(job: Job, models: Path, scenes: Path, out: Path) -> None:
    """Export one engine and evaluate it; leaves `<name>.engine` and `<name>.json`."""
    file, imgsz = MODELS[job.task]
    data = data_of(job.task, scenes)
    calibrated = out / f"calibration-{job.task}"
    explicit = job.precision == "int8"
    artifact = tk.export(
        models / file,
        imgsz=imgsz,
        batch=job.batch,
        half=job.precision == "fp16",
        int8=job.precision in ("int8", "implicit"),
        implicit=job.precision == "implicit",
        calibration=calibrated if explicit and calibrated.is_dir() else None,
        data=data if job.precision == "implicit" or (explicit and not calibrated.is_dir()) else None,
        dynamic=False,
        opt_level=job.level,
        output=out / f"{job.name}.engine",
        overwrite=True,
    )
    facts: dict[str, Any] = {
        **dataclasses.asdict(job),
        "model": file,
        "imgsz": imgsz,
        "cores": os.cpu_count(),
        "build_seconds": artifact.build_seconds,
        "bytes": artifact.size,
        "passport": None if artifact.passport is None else artifact.passport.to_dict(),
    }
    facts["passport"].pop("layers", None)
    evaluation = tk.evaluate(artifact, data)
    facts["metrics"] = dict(evaluation.metrics)
    write_json(out / f"{job.name}.json", facts)
    print(f"{job.name}: built in {artifact.build_seconds:.0f} s", flush=True)


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Nobody else who waits for a turn uses this GPU meanwhile; what a process imports before costs the others nothing.

    CUDA must not have been touched: from then on the process stays on the GPU.
    """
    with (folder / f"gpu-{os.environ.get('CUDA_VISIBLE_DEVICES', '0')}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def clock(path: Path) -> None:
    """Time an engine on the GPU's clock, read its layers; leaves `<name>.times.json` and `<name>.layers.parquet`."""
    with turn(path.parent):
        facts = _clock_one(path)
    alone = subprocess.run(command("bare", str(path)), capture_output=True, text=True, check=False)
    if alone.returncode:
        print(alone.stderr, flush=True)
        raise SystemExit(alone.returncode)
    facts["bare"] = json.loads(alone.stdout)
    write_json(path.with_suffix(".times.json"), facts)
    rounded = {name: round(value, 4) for name, value in facts.items() if isinstance(value, float)}
    copies = f"{facts['reformats']} reformats of {facts['layers']}"
    print(f"{path.stem}: {rounded}, bare {facts['bare']}, {copies}", flush=True)


def bare(path: Path) -> None:
    """Time an engine in its turn by the script that knows nothing of trtkit."""
    import bare_tensorrt

    with turn(path.parent):
        bare_tensorrt.main(str(path))


def _clock_one(path: Path) -> dict[str, Any]:
    with tk.open(path) as runner:
        timing = tk.benchmark({"engine": runner}, batch=runner.batch or 1, runs=RUNS, warmup=50, seconds=10)
        row = timing.frame().row(0, named=True)
        queued = runner.cuda_graph
        layers = runner.layers(runs=50)
        facts = {name: row[name] for name in ("runs", "mean_ms", "min_ms", "max_ms", "p50_ms", "p99_ms")}
        facts |= {"runner": runner.name, "device_memory": runner.device_memory, "cuda_graph": queued}
    layers.write_parquet(path.with_suffix(".layers.parquet"))
    kinds = dict(layers.filter(~layers["reformat"]).group_by("precision").len().iter_rows())
    copies = layers.filter(layers["reformat"])
    return {
        **facts,
        "layers": len(layers),
        "precisions": kinds,
        "reformats": len(copies),
        "reformat_ms": copies["ms"].sum(),
    }


def command(*words: str) -> list[str]:
    return [sys.executable, str(HERE), *words]


def run(options: argparse.Namespace) -> None:
    """Build what is not there, then time what was not timed: a task's engines of a batch all on the same GPU."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    gpus = gpus_here()
    wanted = [
        job for job in jobs(options.level) if any(fnmatch.fnmatch(job.name, pattern) for pattern in options.only or "*")
    ]
    builds = [
        Program(
            name=job.name,
            words=command(
                "build", json.dumps(dataclasses.asdict(job)), "--models", options.models, "--scenes", options.scenes,
                "--out", options.out,
            ),
            log=out / f"{job.name}.log",
            queue=f"{job.task} {job.batch}",
        )
        for job in wanted
        if not (out / f"{job.name}.json").is_file()
    ]  # fmt: skip
    drive(builds, gpus=gpus, lanes=options.jobs, seconds=options.seconds)
    ready = [
        job for job in wanted if (out / f"{job.name}.json").is_file() and not (out / f"{job.name}.times.json").is_file()
    ]
    places = {task: place for place, task in enumerate(MODELS)}
    ready.sort(key=lambda job: (places[job.task], -job.batch))
    clocks = [
        Program(
            name=f"clock-{job.name}",
            words=command("clock", str(out / f"{job.name}.engine")),
            log=out / f"clock-{job.name}.log",
            gpu=(2 * places[job.task] + (job.batch == 1)) % len(gpus),
        )
        for job in ready
    ]
    drive(clocks, gpus=gpus, lanes=CLOCKS, service=False)


def write(folder: Path, note: str) -> None:
    """Gather what `run` left into `results/`, engines that were not timed too; `note` tells what to know of the run."""
    from records import about_engines, line_of, of_gpu, table
    from records import write as write_record

    rows = []
    for path in sorted(folder.glob("*-l[0-9].json")):
        times = path.with_suffix(".times.json")
        rows.append(json.loads(path.read_text()) | (json.loads(times.read_text()) if times.is_file() else {}))
    rows.sort(key=lambda row: (list(MODELS).index(row["task"]), -row["batch"], list(LABELS).index(row["precision"])))
    words = f"run --models MODELS --scenes SCENES --out engines --level {rows[0]['level']}"
    about = about_engines(f"python benchmarks/engines.py {words}", rows[0])
    lines = ["# Engines of TensorRT by precision", "", f"`{about['command']}`", "", line_of(about), ""]
    for task, (file, imgsz) in MODELS.items():
        mine = [row for row in rows if row["task"] == task]
        if not mine:
            continue
        shown = [
            name for name in mine[0]["metrics"]
            if name.startswith(("mAP50", "top", "pycocotools/AP"))
            and not name.startswith(("pycocotools/AP_", "pycocotools/APs"))
        ]  # fmt: skip
        lines += [f"## {task}: {file} at {imgsz}", ""]
        heads = ["precision", "batch", "mean ms", "min", "max", "p50", "p99", *shown, "MB", "device MB", "build s"]
        body = [
            [
                LABELS[row["precision"]],
                str(row["batch"]),
                *(
                    f"{row[name] / row['batch']:.3f}" if name in row else "-"
                    for name in ("mean_ms", "min_ms", "max_ms", "p50_ms", "p99_ms")
                ),
                *(f"{row['metrics'][name]:.4f}" for name in shown),
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['device_memory'] / 1e6:.0f}" if "device_memory" in row else "-",
                f"{row['build_seconds']:.0f}",
            ]
            for row in mine
        ]
        lines += [*table(heads, body), ""]
    lines.append("Times are milliseconds an image: a whole batch's on the GPU's own clock, divided by the batch.")
    lines += ["", note] if note else []
    write_record(of_gpu("engines", rows[0]), {"about": about, "note": note, "rows": rows}, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("run", "build"):
        verb = verbs.add_parser(name)
        if name == "build":
            verb.add_argument("job", type=json.loads)
        for flag in ("--models", "--scenes", "--out"):
            verb.add_argument(flag, required=True)
        verb.add_argument("--level", type=int, default=2)
        if name == "run":
            verb.add_argument("--jobs", type=int, default=1, help="engines built at once on each GPU")
            verb.add_argument("--seconds", type=float, help="stop building after so long")
            verb.add_argument("only", nargs="*", help="patterns of engines' names; all without one")
    for name in ("clock", "bare"):
        verbs.add_parser(name).add_argument("path", type=Path)
    writing = verbs.add_parser("write")
    writing.add_argument("folder", type=Path)
    writing.add_argument("--note", default="")
    options = parser.parse_args()
    if options.verb == "run":
        run(options)
    elif options.verb == "build":
        build(Job(**options.job), Path(options.models), Path(options.scenes), Path(options.out))
    elif options.verb == "clock":
        clock(options.path)
    elif options.verb == "bare":
        bare(options.path)
    else:
        write(options.folder, options.note)


if __name__ == "__main__":
    main()

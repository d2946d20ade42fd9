"""TensorRT's engines side by side: FP32, FP16, INT8 by Q/DQ and INT8 by TensorRT's own calibrator, for every task.

    python benchmarks/engines.py run --models MODELS --scenes SCENES --out engines --level 2 --jobs 5
    python benchmarks/engines.py write engines
    python benchmarks/engines.py demo --out engines-demo --level 2 --jobs 5

`run` exports every engine (several at a time, each in a process with its share of the cores), evaluates it on the
images of `val`, and then times them one at a time on each GPU, each in a process of its own as where it is deployed.
It can be called again to go on where it stopped. `write` puts what is there into `results/engines-GPU.json` and `.md`.
`demo` does both for the models that the package ships, on the images that it ships, and puts the latencies where
`trtkit demo` finds them: `results/engines-demo-GPU.json` and `trtkit/comparison/published_latencies.json`. Needs a GPU
and TensorRT; several GPUs are all used.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parallel_builds import Program, drive, gpus_here

import trtkit as tk
from trtkit import demo
from trtkit.writing import write_json

HERE = Path(__file__).resolve()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A model and the side of its images, pixels."""

    task: str
    file: str
    imgsz: int

    def source(self, models: Path | None) -> Path:
        """The checkpoint: in a folder, or of those that the package ships."""
        return (models or Path(demo.__file__).parent) / self.file

    def data(self, scenes: Path | None) -> Path:
        """The images to calibrate and evaluate on."""
        if scenes is None:
            return demo.data_path(self.task)
        return scenes / self.task if self.task == "classify" else scenes / self.task / "data.yaml"


SCENES = {
    "detect": Subject(task="detect", file="yolo11n.pt", imgsz=640),
    "segment": Subject(task="segment", file="yolo11n-seg.pt", imgsz=320),
    "pose": Subject(task="pose", file="yolo11n-pose.pt", imgsz=320),
    "obb": Subject(task="obb", file="yolo11n-obb.pt", imgsz=320),
    "classify": Subject(task="classify", file="yolo11n-cls.pt", imgsz=64),
}
DEMO = {
    path.stem: Subject(task=task, file=path.name, imgsz=64 if task == "classify" else demo.IMGSZ)
    for task, path in (
        *((task, demo.model_path(task)) for task in demo.EMBEDDED_TASKS),
        ("detect", demo.model_path(family="yolo26")),
    )
}
"""The size is that of `trtkit demo`; crops for classify have their own."""
SUBJECTS = SCENES | DEMO
LABELS = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8 (Q/DQ)", "implicit": "INT8 (calibrator)"}
BUILD_ORDER = ("fp16", "implicit", "int8", "fp32")
COMPARED = ("fp16", "int8", "fp32")
"""What `trtkit demo` compares, in the order of builds."""
RUNS = 500
CLOCKS = 4
"""Processes that time engines of one GPU: one does, the others load their libraries and wait for their turn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One engine: a model in a precision, at a batch; `subject` is a name in `SUBJECTS`."""

    subject: str
    precision: str
    batch: int
    level: int

    @property
    def name(self) -> str:
        return f"{self.subject}-{self.precision}-b{self.batch}-l{self.level}"


def jobs(subjects: Mapping[str, Subject], precisions: Sequence[str], level: int) -> Iterator[Job]:
    """Every engine of a table, so ordered that the timing cache knows as much as can be when a build begins.

    Engines of one model and batch time the same kernels, which FP16 and the calibrator need most of. Segment, pose and
    obb share most layers: the last two come late.
    """
    late = [name for name, subject in subjects.items() if subject.task in ("pose", "obb")]
    for names in ([name for name in subjects if name not in late], late):
        for precision in precisions:
            for batch in (8, 1):
                for name in names:
                    yield Job(subject=name, precision=precision, batch=batch, level=level)


def build(job: Job, models: Path | None, scenes: Path | None, out: Path) -> None:
    """Export one engine and evaluate it; leaves `<name>.engine` and `<name>.json`."""
    subject = SUBJECTS[job.subject]
    data = subject.data(scenes)
    calibrated = out / f"calibration-{job.subject}"
    explicit = job.precision == "int8"
    artifact = tk.export(
        subject.source(models),
        imgsz=subject.imgsz,
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
        "task": subject.task,
        "model": subject.file,
        "imgsz": subject.imgsz,
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
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    gpus = gpus_here()
    shipped = options.verb == "demo"
    subjects, precisions = (DEMO, COMPARED) if shipped else (SCENES, BUILD_ORDER)
    wanted = [
        job
        for job in jobs(subjects, precisions, options.level)
        if any(fnmatch.fnmatch(job.name, pattern) for pattern in options.only or "*")
    ]
    sources = () if shipped else ("--models", str(options.models), "--scenes", str(options.scenes))
    builds = [
        Program(
            name=job.name,
            words=command("build", json.dumps(dataclasses.asdict(job)), *sources, "--out", str(out)),
            log=out / f"{job.name}.log",
            queue=f"{job.subject} {job.batch}",
        )
        for job in wanted
        if not (out / f"{job.name}.json").is_file()
    ]
    drive(builds, gpus=gpus, lanes=options.jobs, seconds=options.seconds)
    ready = [
        job for job in wanted if (out / f"{job.name}.json").is_file() and not (out / f"{job.name}.times.json").is_file()
    ]
    places = {name: place for place, name in enumerate(subjects)}
    ready.sort(key=lambda job: (places[job.subject], -job.batch))
    clocks = [
        Program(
            name=f"clock-{job.name}",
            words=command("clock", str(out / f"{job.name}.engine")),
            log=out / f"clock-{job.name}.log",
            gpu=(2 * places[job.subject] + (job.batch == 1)) % len(gpus),
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
    # Rows of before a task had several models are named for their task.
    rows = [{"subject": row["task"], **row} for row in rows]
    rows.sort(
        key=lambda row: (list(SUBJECTS).index(row["subject"]), -row["batch"], list(LABELS).index(row["precision"]))
    )
    shipped = rows[0]["subject"] in DEMO
    words = "demo --out engines-demo" if shipped else "run --models MODELS --scenes SCENES --out engines"
    about = about_engines(f"python benchmarks/engines.py {words} --level {rows[0]['level']}", rows[0])
    title = "Engines of TensorRT by precision" + (", of the models that the package ships" if shipped else "")
    lines = [f"# {title}", "", f"`{about['command']}`", "", line_of(about), ""]
    for name, subject in SUBJECTS.items():
        mine = [row for row in rows if row["subject"] == name]
        if not mine:
            continue
        shown = [
            name for name in mine[0]["metrics"]
            if name.startswith(("mAP50", "top", "pycocotools/AP"))
            and not name.startswith(("pycocotools/AP_", "pycocotools/APs"))
        ]  # fmt: skip
        lines += [f"## {subject.task}: {subject.file} at {subject.imgsz}", ""]
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
    write_record(
        of_gpu("engines-demo" if shipped else "engines", rows[0]), {"about": about, "note": note, "rows": rows}, lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("run", "build", "demo"):
        verb = verbs.add_parser(name)
        if name == "build":
            verb.add_argument("job", type=json.loads)
        if name != "demo":
            for flag in ("--models", "--scenes"):
                verb.add_argument(flag, type=Path, required=name == "run", help="default: what the package ships")
        verb.add_argument("--out", type=Path, required=True)
        verb.add_argument("--level", type=int, default=2)
        if name != "build":
            verb.add_argument("--jobs", type=int, default=1, help="engines built at once on each GPU")
            verb.add_argument("--seconds", type=float, help="stop building after so long")
            verb.add_argument("only", nargs="*", help="patterns of engines' names; all without one")
    for name in ("clock", "bare"):
        verbs.add_parser(name).add_argument("path", type=Path)
    writing = verbs.add_parser("write")
    writing.add_argument("folder", type=Path)
    writing.add_argument("--note", default="")
    options = parser.parse_args()
    if options.verb in ("run", "demo"):
        run(options)
        if options.verb == "demo":
            write(options.out, "")
            subprocess.run([sys.executable, str(HERE.parents[1] / "tools" / "published_latencies.py")], check=True)
    elif options.verb == "build":
        build(Job(**options.job), options.models, options.scenes, options.out)
    elif options.verb == "clock":
        clock(options.path)
    elif options.verb == "bare":
        bare(options.path)
    else:
        write(options.folder, options.note)


if __name__ == "__main__":
    main()

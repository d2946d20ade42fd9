"""Mixed-precision engines: accuracy and latency of corrected calibrations and of layers kept in FP16.

    python benchmarks/mixed_precision.py prepare --model yolo11n.pt --data detect/data.yaml --out assignments
    python benchmarks/mixed_precision.py run --model yolo11n.pt --data detect/data.yaml --out assignments --level 2
    python benchmarks/mixed_precision.py write assignments

`prepare` calibrates and corrects, as `search()` does, and needs no GPU. `run` builds, evaluates and then times what is
missing; with names only those. `--jobs` builds several at once, which disturbs TensorRT's choice of tactics.
`write` puts what is there into `results/mixed-precision-GPU.json` and `.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import engines
from parallel_builds import Program, drive, gpus_here
from records import about_engines, line_of, of_gpu, show, table
from records import write as write_record

import trtkit as tk
from trtkit.calibration import Calibration
from trtkit.data import open_dataset
from trtkit.graph.torch_export import trace
from trtkit.models import load
from trtkit.progress import Reporter
from trtkit.tuning.measurement import ResultCache
from trtkit.tuning.noise import LayerNoise
from trtkit.tuning.noise_probe import NoiseProbe, repair_ranges
from trtkit.writing import write_json

IMGSZ = 640
BATCH = 8
METRIC = "mAP50-95(B)"
BOX = "/model.23/cv2.?/cv2.?.2*"
REWRITINGS = {
    "remove_copies": "trtkit.graph.torch_export.remove_copies",
    "fuse_box_decoding": "trtkit.graph.torch_export.fuse_box_decoding",
    "fold_sums": "trtkit.graph.torch_export.fold_sums",
    "upsample_after_conv": "trtkit.backends.trt.network.upsample_after_conv",
    "read_splits_whole": "trtkit.backends.trt.network.read_splits_whole",
    "pad_channels": "trtkit.backends.trt.network.pad_channels",
}
RANGES = {
    "percentile": "percentile 99.999",
    "best": "per-tensor ranges",
    "corrected": "per-tensor ranges, bias correction",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """One engine of the table."""

    precision: str = "int8"
    calibration: str = "percentile"
    keep: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    """Those of `REWRITINGS` that are left out."""

    @property
    def label(self) -> str:
        parts = [f"INT8, {RANGES[self.calibration]}" if self.precision == "int8" else self.precision.upper()]
        if self.keep:
            parts.append(", ".join(f"`{pattern}`" for pattern in self.keep) + " in FP16")
        parts += [f"`{name}` left out" for name in self.skipped]
        return "; ".join(parts)

    def as_built(self) -> contextlib.ExitStack:
        """While open, exports leave out what `skipped` names."""
        stack = contextlib.ExitStack()
        for name in self.skipped:
            stack.enter_context(mock.patch(REWRITINGS[name], lambda graph: graph))
        return stack


def corrected(*keep: str) -> Assignment:
    return Assignment(calibration="corrected", keep=keep)


ASSIGNMENTS = {
    "fp32": Assignment(precision="fp32"),
    "fp16": Assignment(precision="fp16"),
    "default": Assignment(),
    "fp16-plain": Assignment(precision="fp16", skipped=tuple(REWRITINGS)),
    "default-plain": Assignment(skipped=tuple(REWRITINGS)),
    "default-unpadded": Assignment(skipped=("pad_channels",)),
    "default-box-2": Assignment(keep=(BOX, "/model.2/*")),
    "default-box-9": Assignment(keep=(BOX, "/model.9/*")),
    "corrected-8": corrected("/model.8/*"),
    "corrected-box": corrected(BOX),
    "corrected-box-6": corrected(BOX, "/model.6/*"),
    "corrected-box-7": corrected(BOX, "/model.7/*"),
    "corrected-box-8": corrected(BOX, "/model.8/*"),
    "corrected-box-8-9": corrected(BOX, "/model.8/*", "/model.9/*"),
    "corrected-box-9": corrected(BOX, "/model.9/*"),
    "corrected-box-10": corrected(BOX, "/model.10/*"),
    "corrected-box-19": corrected(BOX, "/model.19/*"),
    "corrected-box-20": corrected(BOX, "/model.20/*"),
    "corrected-box-22": corrected(BOX, "/model.22/*"),
    "corrected-box0-8": corrected("/model.23/cv2.0/cv2.0.2*", "/model.8/*"),
    "default-box0": Assignment(keep=("/model.23/cv2.0/cv2.0.2*",)),
    "corrected": corrected(),
    "corrected-box0": corrected("/model.23/cv2.0/cv2.0.2*"),
    "corrected-wide0": corrected("/model.23/cv2.0/cv2.0.[12]*"),
    "corrected-wide0-10.cv2": corrected("/model.23/cv2.0/cv2.0.[12]*", "/model.10/cv2/*"),
    "corrected-wide": corrected("/model.23/cv2.?/cv2.?.[12]*"),
    "corrected-box0-9.cv1": corrected("/model.23/cv2.0/cv2.0.2*", "/model.9/cv1/*"),
    "corrected-box0-6.cv1": corrected("/model.23/cv2.0/cv2.0.2*", "/model.6/cv1/*"),
    "default-10.cv2": Assignment(keep=("/model.10/cv2/*",)),
    "corrected-10.cv2": corrected("/model.10/cv2/*"),
    "corrected-9.cv1": corrected("/model.9/cv1/*"),
    "corrected-6.cv1": corrected("/model.6/cv1/*"),
    "corrected-8-10.cv2": corrected("/model.8/*", "/model.10/cv2/*"),
    "corrected-7-10.cv2": corrected("/model.7/*", "/model.10/cv2/*"),
    "corrected-box-10.cv2": corrected(BOX, "/model.10/cv2/*"),
    "corrected-box0-10.cv2": corrected("/model.23/cv2.0/cv2.0.2*", "/model.10/cv2/*"),
}
"""What ONNX Runtime ranked best of about a hundred, with the box branch's last layers as `BOX`, and what to hold it
against: other precisions, the default, and graphs that a rewriting did not touch."""


def prepare(options: argparse.Namespace) -> None:
    """Save the three calibrations of `RANGES`."""
    out = Path(options.out)
    model = load(options.model)
    dataset = open_dataset(options.data, task=model.task)
    size = (IMGSZ, IMGSZ)
    # Graphs with their copies have tensors that those without lack: measured with, a calibration serves both.
    with Assignment(skipped=("remove_copies",)).as_built():
        tk.calibrate(model, dataset, imgsz=IMGSZ, algorithm="percentile", calibration_images=512, progress=show).save(
            out / "percentile"
        )
        measured = tk.calibrate(model, dataset, imgsz=IMGSZ, calibration_images=128, histograms=True, progress=show)
        layer_noise = LayerNoise(trace(model, imgsz=size, batch=1), len(model.names), exact=False)
        probe = NoiseProbe(
            layer_noise, dataset, measured, preprocess=model.preprocess, imgsz=size, split="val", probe_images=8,
            seed=0, threads=None, reporter=Reporter(show, None),
        )  # fmt: skip
        assignments, _ = repair_ranges(probe, measured, ResultCache(None))
    calibrations = {assignment.label: assignment.calibration for assignment in assignments}
    for name in ("best", "corrected"):
        calibrations[RANGES[name]].save(out / name)


def build(name: str, options: argparse.Namespace) -> None:
    """Export one engine and evaluate it on both splits; leaves `<name>.engine` and `<name>.json`."""
    assignment, out = ASSIGNMENTS[name], Path(options.out)
    int8 = assignment.precision == "int8"
    with assignment.as_built():
        artifact = tk.export(
            options.model,
            imgsz=IMGSZ,
            batch=BATCH,
            half=assignment.precision == "fp16",
            int8=int8,
            calibration=Calibration.load(out / assignment.calibration) if int8 else None,
            keep=list(assignment.keep),
            dynamic=False,
            opt_level=options.level,
            output=out / f"{name}.engine",
            overwrite=True,
        )
    passport: dict[str, Any] = {} if artifact.passport is None else artifact.passport.to_dict()
    passport.pop("layers", None)
    facts: dict[str, Any] = {
        "assignment": name,
        **dataclasses.asdict(assignment),
        "level": options.level,
        "cores": os.cpu_count(),
        "build_seconds": artifact.build_seconds,
        "bytes": artifact.size,
        "passport": passport,
    }
    with tk.open(artifact) as runner:
        for split in ("val", "train"):
            facts[split] = tk.evaluate(runner, options.data, split).metrics[METRIC]
    write_json(out / f"{name}.json", facts)


def run(options: argparse.Namespace) -> None:
    """Build what is not there, then time what was not timed, all on the first GPU."""
    out, here = Path(options.out), str(Path(__file__).resolve())
    names, gpus = options.names or list(ASSIGNMENTS), gpus_here()
    paths = ["--model", options.model, "--data", options.data, "--out", options.out, "--level", str(options.level)]
    builds = [
        Program(name=name, words=[sys.executable, here, "build", *paths, name], log=out / f"{name}.log")
        for name in names
        if not (out / f"{name}.json").is_file()
    ]
    drive(builds, gpus=gpus, lanes=options.jobs, seconds=options.seconds)
    clocks = [
        Program(
            name=f"clock {name}",
            words=engines.command("clock", str(out / f"{name}.engine")),
            log=out / f"{name}.times.log",
            gpu=0,
        )
        for name in names
        if (out / f"{name}.json").is_file() and not (out / f"{name}.times.json").is_file()
    ]
    drive(clocks, gpus=gpus)


def page(about: dict[str, Any], rows: list[dict[str, Any]], note: str) -> list[str]:
    exact = next(row for row in rows if row["precision"] == "fp32")
    half = next(row for row in rows if row["precision"] == "fp16")
    heads = [
        "engine", "ms a batch (p50)", "of FP16", "mAP50-95, `val`", "loss", "mAP50-95, `train`", "loss", "layers",
        "reformats",
    ]  # fmt: skip
    body = [
        [
            ASSIGNMENTS[row["assignment"]].label,
            *([f"{row['p50_ms']:.3f}", f"{row['p50_ms'] / half['p50_ms']:.3f}"] if "p50_ms" in row else ["", ""]),
            *(
                text
                for split in ("val", "train")
                for text in (f"{row[split]:.4f}", f"{exact[split] - row[split]:+.4f}")
            ),
            *(str(row.get(name, "")) for name in ("layers", "reformats")),
        ]
        for row in rows
    ]
    return [
        "# Mixed-precision assignments on TensorRT",
        "",
        f"`{about['command']}`",
        "",
        line_of(about),
        "",
        f"yolo11n at {IMGSZ}, batch {BATCH}, level {rows[0]['level']}. Losses are against FP32 by the same TensorRT.",
        "",
        *table(heads, body),
        "",
        "These assignments were chosen on `val`, so their accuracy there is optimistic; no label of `train` was used, "
        "but the model was trained on its images.",
        *(["", note] if note else []),
    ]


def write(folder: Path, note: str) -> None:
    """Gather what `run` left into `results/`; `note` says what its reader should know of the run."""
    rows = []
    for name in ASSIGNMENTS:
        if (folder / f"{name}.json").is_file():
            times = folder / f"{name}.times.json"
            timed = json.loads(times.read_text()) if times.is_file() else {}
            rows.append({**json.loads((folder / f"{name}.json").read_text()), **timed})
    words = "--model yolo11n.pt --data detect/data.yaml --out assignments"
    about = about_engines(f"python benchmarks/mixed_precision.py run {words} --level {rows[0]['level']}", rows[0])
    write_record(
        of_gpu("mixed-precision", rows[0]), {"about": about, "note": note, "rows": rows}, page(about, rows, note)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("prepare", "run", "build"):
        verb = verbs.add_parser(name)
        for flag in ("--model", "--data", "--out"):
            verb.add_argument(flag, required=True)
        if name != "prepare":
            verb.add_argument("--level", type=int, default=2)
            verb.add_argument("names", nargs="*", help=f"of {', '.join(ASSIGNMENTS)}; all without one")
        if name == "run":
            verb.add_argument("--jobs", type=int, default=1, help="engines built at once on each GPU")
            verb.add_argument("--seconds", type=float, help="stop building after so long")
    writing = verbs.add_parser("write")
    writing.add_argument("folder", type=Path)
    writing.add_argument("--note", default="")
    options = parser.parse_args()
    unknown = sorted(set(getattr(options, "names", ())) - set(ASSIGNMENTS))
    if unknown:
        parser.error(f"no assignment is called {', '.join(unknown)}; there are {', '.join(ASSIGNMENTS)}")
    if options.verb == "prepare":
        prepare(options)
    elif options.verb == "run":
        run(options)
    elif options.verb == "build":
        for name in options.names:
            build(name, options)
    else:
        write(options.folder, options.note)


if __name__ == "__main__":
    main()

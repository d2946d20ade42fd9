"""What it costs that an engine runs on other machines: time and size of compatible and refittable engines.

    python benchmarks/compatibility.py run MODEL.pt DATA --out compatibility --builds 3 --budget 540
    python benchmarks/compatibility.py write compatibility

`run` builds the plain engine and each variant in turn, several times, one build at a time, and times each engine in a
process of its own. It can be called again to go on where it stopped. Needs a GPU and TensorRT.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import trtkit as tk
from trtkit import backends
from trtkit.writing import write_json

HERE = Path(__file__).resolve()
VARIANTS: dict[str, dict[str, str]] = {
    "plain": {},
    "same_compute_capability": {"compatibility": "same_compute_capability"},
    "ampere_plus": {"compatibility": "ampere_plus"},
    "version": {"compatibility": "version"},
    "refittable": {"weights": "refittable"},
}


def build(options: argparse.Namespace) -> None:
    """Build, verify and time one engine; leaves `<name>.json`."""
    out = Path(options.out)
    path = out / f"{options.name}.engine"
    variant = options.name.split("-")[0]
    artifact = tk.export(
        options.model,
        imgsz=options.imgsz,
        batch=options.batch,
        half=options.precision == "fp16",
        int8=options.precision == "int8",
        calibration=out / "calibration" if options.precision == "int8" else None,
        dynamic=False,
        opt_level=options.level,
        verify=False,
        output=path,
        overwrite=True,
        **VARIANTS[variant],
    )
    with backends.open(path) as runner:
        timing = tk.benchmark({"engine": runner}, batch=options.batch, runs=500, warmup=50, seconds=10)
        row = timing.frame().row(0, named=True)
        with backends.open(options.reference) as reference:
            result = tk.verify(runner, options.data, onnx=reference, eval_images=16)
    passport = artifact.passport.to_dict() if artifact.passport is not None else {}
    passport.pop("layers", None)
    write_json(
        out / f"{options.name}.json",
        {
            "variant": variant,
            **{name: getattr(options, name) for name in ("precision", "imgsz", "batch", "level")},
            "model": Path(options.model).name,
            "cores": os.cpu_count(),
            "p50_ms": row["p50_ms"],
            "runs": row["runs"],
            "bytes": artifact.size,
            "build_seconds": artifact.build_seconds,
            "verdict": result.verdict,
            "worst": result.worst(),
            "passport": passport,
        },
    )
    path.unlink()
    print(f"{options.name}: {row['p50_ms']:.3f} ms, {artifact.size / 1e6:.1f} MB, {result.verdict}", flush=True)


def run(options: argparse.Namespace) -> None:
    """Build what is not there, the variants in turn, so that a run that ends early has as many of each."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    common = {"imgsz": options.imgsz, "batch": options.batch, "dynamic": False}
    int8 = options.precision == "int8"
    if int8 and not (out / "calibration").is_dir():
        tk.calibrate(options.model, options.data, imgsz=options.imgsz, device="cpu").save(out / "calibration")
    reference = out / f"{options.precision}.onnx"
    if not reference.is_file():
        calibration = out / "calibration" if int8 else None
        half = options.precision == "fp16"
        tk.export(
            options.model, format="onnx", half=half, int8=int8, calibration=calibration, output=reference, **common
        )
    supported = backends.probe("tensorrt")
    kinds = {*supported.compatibilities, *supported.weights, "plain"}
    for number in range(options.builds):
        for variant in (name for name in VARIANTS if name in kinds and name in (options.variants or VARIANTS)):
            name = f"{variant}-{options.precision}-b{options.batch}-{number}"
            if (out / f"{name}.json").is_file():
                continue
            if time.monotonic() - begin > options.budget - options.longest:
                return
            words = [
                sys.executable, str(HERE), "build", options.model, options.data, "--name", name, "--out", str(out),
                "--reference", str(reference), "--precision", options.precision, "--imgsz", str(options.imgsz),
                "--batch", str(options.batch), "--level", str(options.level),
            ]  # fmt: skip
            # A cache of its own: every build times its tactics anew.
            subprocess.run(words, check=False, env={**os.environ, "TRTKIT_CACHE": str(out / "cache" / name)})


def write(folder: Path) -> None:
    """Gather what `run` left into `results/`."""
    from records import about_engines, line_of, of_gpu, table
    from records import write as write_record

    rows: list[dict[str, Any]] = [json.loads(path.read_text()) for path in sorted(folder.glob("*-b*-*.json"))]
    command = "python benchmarks/compatibility.py run yolo11n.pt DATA --builds 3"
    about = about_engines(command, rows[0])
    body = []
    for precision, batch in sorted({(row["precision"], row["batch"]) for row in rows}):
        mine = [row for row in rows if (row["precision"], row["batch"]) == (precision, batch)]
        plain = statistics.median(row["p50_ms"] for row in mine if row["variant"] == "plain")
        for variant in VARIANTS:
            times = [row["p50_ms"] for row in mine if row["variant"] == variant]
            if not times:
                continue
            sizes = [row["bytes"] / 1e6 for row in mine if row["variant"] == variant]
            agree = sum(row["verdict"] != "differs" for row in mine if row["variant"] == variant)
            middle = statistics.median(times)
            body.append(
                [
                    precision, str(batch), variant, str(len(times)), f"{middle:.3f}",
                    f"{min(times):.3f} to {max(times):.3f}", f"{middle / plain:.3f}",
                    f"{statistics.median(sizes):.1f}", f"{agree} of {len(times)}",
                ]
            )  # fmt: skip
    heads = ["precision", "batch", "engine", "builds", "p50 ms", "range", "of plain", "MB", "agree with ONNX Runtime"]
    lines = ["# Engines for other machines", "", f"`{command}`", "", line_of(about), "", *table(heads, body)]
    write_record(of_gpu("compatibility", rows[0]), {**about, "rows": rows}, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("run", "build"):
        verb = verbs.add_parser(name)
        verb.add_argument("model")
        verb.add_argument("data")
        verb.add_argument("--out", required=True)
        verb.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="int8")
        verb.add_argument("--imgsz", type=int, default=640)
        verb.add_argument("--batch", type=int, default=8)
        verb.add_argument("--level", type=int, default=2)
        if name == "build":
            verb.add_argument("--name", required=True)
            verb.add_argument("--reference", required=True)
            continue
        verb.add_argument("--builds", type=int, default=3)
        verb.add_argument("--variants", nargs="*", choices=VARIANTS)
        verb.add_argument("--budget", type=float, default=540, help="stop after so many seconds")
        verb.add_argument("--longest", type=float, default=120, help="seconds that a build is expected to take")
    verbs.add_parser("write").add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.verb == "write":
        write(options.folder)
    else:
        {"run": run, "build": build}[options.verb](options)


if __name__ == "__main__":
    main()

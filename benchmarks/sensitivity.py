"""How long sensitivity() takes on the shared scenes, and what it finds; run by hand on an idle machine.

    python benchmarks/sensitivity.py --model yolo11n.pt --data detect/data.yaml

Everything is in the time: reading the checkpoint, tracing, calibrating, measuring every layer and block both ways, and
the metric of the worst layers. Each run has a process of its own. `--compare` then measures every layer on every image,
without the metric, and says how far that is from what fewer images found.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
from records import about, line_of, show, table, write

import trtkit as tk
from trtkit.progress import Event
from trtkit.tuning import noise
from trtkit.tuning.sensitivity import Sensitivity

STEPS = {
    "calibrate": "calibration",
    "measure every layer": "noise of every layer and block",
    "run the worst layers": "metric of the worst layers",
}


def run_once(values: argparse.Namespace) -> None:
    """Run sensitivity() once, save its result and print the time and memory it took as JSON."""
    if values.every_image:
        noise.NOISE_ERROR = 0.0
    begun = time.perf_counter()
    starts: dict[str, float] = {}

    def watch(event: Event) -> None:
        starts.setdefault(event.stage, time.perf_counter() - begun)
        show(event)

    scan = tk.sensitivity(
        values.model,
        values.data,
        probe_images=values.images,
        worst=0 if values.every_image else 3,
        progress=watch,
    )
    seconds = time.perf_counter() - begun
    scan.save(values.once)
    begins = [starts[step] for step in STEPS if step in starts]
    steps = [end - start for start, end in zip(begins, [*begins[1:], seconds], strict=True)]
    # ru_maxrss is in KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    used = {"seconds": seconds, "core_seconds": time.process_time(), "peak_gb": peak, "load": os.getloadavg()[0]}
    print(json.dumps({**used, "steps": steps}))


def run_alone(values: argparse.Namespace, *options: str) -> tuple[dict[str, Any], Sensitivity]:
    """Run sensitivity() in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "sensitivity"
        command = [sys.executable, __file__, "--model", values.model, "--data", values.data]
        command += ["--images", str(values.images), "--once", str(place), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        run = json.loads(done.stdout.splitlines()[-1])
        print(run, flush=True)
        return run, Sensitivity.load(place)


def compare(found: Sensitivity, every: Sensitivity) -> dict[str, Any]:
    """How far a result is from one that measured every layer and block on every image."""
    columns = ["sqnr_only", "sqnr_without", "gain"]
    rows = pl.concat(
        one.select(pl.lit(name).alias("kind"), pl.first().alias("name"), *columns)
        for name, one in (("layer", found.layers), ("block", found.blocks))
    )
    other = pl.concat(
        one.select(pl.lit(name).alias("kind"), pl.first().alias("name"), *columns)
        for name, one in (("layer", every.layers), ("block", every.blocks))
    )
    both = rows.join(other, on=["kind", "name"], suffix="_every")
    # The noise as a share of that of full INT8.
    errors = [
        (10 ** ((found.sqnr - both[f"sqnr_{way}"]) / 10) - 10 ** ((every.sqnr - both[f"sqnr_{way}_every"]) / 10)).abs()
        for way in ("only", "without")
    ]
    layers = both.filter(pl.col("kind") == "layer")

    def rank_correlation(column: str) -> float:
        return float(layers.select(pl.corr(column, f"{column}_every", method="spearman")).item())

    def in_common(column: str, count: int, *, descending: bool) -> int:
        best = [
            set(layers.sort(name, descending=descending)["name"].head(count)) for name in (column, f"{column}_every")
        ]
        return len(best[0] & best[1])

    return {
        "largest_error": max(float(one.max()) for one in errors),
        "median_error": float(pl.concat(errors).median()),
        "largest_gain_error": float((both["gain"] - both["gain_every"]).abs().max()),
        "rank_correlation_only": rank_correlation("sqnr_only"),
        "rank_correlation_gain": rank_correlation("gain"),
        "worst_10_in_common": in_common("sqnr_only", 10, descending=False),
        "gain_10_in_common": in_common("gain", 10, descending=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a YOLO checkpoint")
    parser.add_argument("--data", required=True, help="a labeled data.yaml")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--compare", action="store_true", help="also measure every layer on every image")
    parser.add_argument("--once", metavar="FOLDER", help="run once and save the result here")
    parser.add_argument("--every-image", action="store_true", help="with --once: measure every layer on every image")
    values = parser.parse_args()
    if values.once:
        run_once(values)
        return
    runs = []
    for _ in range(values.runs):
        run, scan = run_alone(values)
        runs.append(run)
    place = Path(values.data)
    provenance = about(
        f"--model {Path(values.model).name} --data {place.parent.name}/{place.name} --images {scan.image_count}"
        f" --runs {len(runs)}" + " --compare" * values.compare
    )
    counts = pl.concat(
        frame[column]
        for frame in (scan.layers, scan.blocks.filter(pl.col("layers") > 1))
        for column in ("images_only", "images_without")
    )
    seconds = sorted(run["seconds"] for run in runs)
    content = {
        **provenance,
        "seconds": statistics.median(seconds),
        "runs": runs,
        "images": scan.image_count,
        "variants": 1 + len(counts),
        "mean_images": float(counts.mean()),
        "sqnr": scan.sqnr,
        "metric": scan.metric,
        "metric_float": scan.metric_float,
        "metric_int8": scan.metric_int8,
        "layers": scan.layers.to_dicts(),
        "blocks": scan.blocks.to_dicts(),
    }
    if values.compare:
        run, every = run_alone(values, "--every-image")
        content["compared"] = {**compare(scan, every), "core_seconds": run["core_seconds"]}
    write("sensitivity", content, page(content, scan, provenance))


def page(content: dict[str, Any], scan: Sensitivity, provenance: dict[str, Any]) -> list[str]:
    runs = content["runs"]
    rows = [
        [
            f"`{row['node']}`",
            row["block"],
            f"{row['sqnr_only']:.1f}",
            f"{row['gain']:+.2f}",
            f"{row['images_only']}, {row['images_without']}",
            "" if row["metric_only"] is None else f"{row['metric_only']:.4f}",
            "" if row["metric_without"] is None else f"{row['metric_without']:.4f}",
        ]
        for row in scan.worst(10).iter_rows(named=True)
    ]
    blocks = [
        [row["block"], row["type"], str(row["layers"]), f"{row['sqnr_only']:.1f}", f"{row['gain']:+.2f}"]
        for row in scan.blocks.sort("sqnr_only").head(8).iter_rows(named=True)
    ]
    steps = [[name, *(f"{run['steps'][number]:.0f}" for run in runs)] for number, name in enumerate(STEPS.values())]
    loads = ", ".join(f"{run['load']:.1f}" for run in runs)
    lines = [
        "# What each layer costs in INT8, and how long it takes to know",
        "",
        f"`{provenance['command']}`",
        "",
        f"**{content['seconds']:.0f} s** ({min(run['seconds'] for run in runs):.0f} to "
        f"{max(run['seconds'] for run in runs):.0f} s in {len(runs)} run{'s' if len(runs) > 1 else ''}, load at the "
        f"end {loads}; "
        f"{runs[0]['core_seconds']:.0f} core-seconds) and "
        f"{max(run['peak_gb'] for run in runs):.2f} GB for {content['variants']} placements of {len(scan.layers)} "
        f"layers over at most {scan.image_count} images, {content['mean_images']:.1f} in the mean, calibration and the "
        f"metric of the worst layers included. INT8 throughout: {scan.sqnr:.1f} dB, {scan.metric} "
        f"{scan.metric_int8:.4f} against {scan.metric_float:.4f} in FP32 on these images.",
        "",
        *table(["step", *(f"run {number}, s" for number in range(1, len(runs) + 1))], steps),
        "",
    ]
    if "compared" in content:
        one = content["compared"]
        lines += [
            f"Against every layer and block on all {scan.image_count} images ({one['core_seconds']:.0f} core-seconds "
            f"without the metric, where run 1 took {runs[0]['core_seconds']:.0f} with it) the noise of a layer or "
            f"block is off by at most {one['largest_error']:.1%} of the noise of "
            f"full INT8 (median {one['median_error']:.2%}) and a gain by at most {one['largest_gain_error']:.2f} dB. "
            f"Of the ten layers with the lowest SQNR {one['worst_10_in_common']} are the same, of the ten with the "
            f"largest gain {one['gain_10_in_common']}; rank correlation over all layers "
            f"{one['rank_correlation_only']:.3f} and {one['rank_correlation_gain']:.3f}.",
            "",
        ]
    return [
        *lines,
        *table(
            ["layer", "block", "only it, dB", "gain of keeping it, dB", "images", "mAP, only it", "mAP, all but it"],
            rows,
        ),
        "",
        *table(["block", "type", "layers", "only it, dB", "gain of keeping it, dB"], blocks),
        "",
        line_of(provenance),
    ]


if __name__ == "__main__":
    main()

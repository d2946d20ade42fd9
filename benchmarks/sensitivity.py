"""How long sensitivity() takes on the shared scenes, and what it finds; run by hand on an idle machine.

    python benchmarks/sensitivity.py --model yolo11n.pt --data detect/data.yaml

Everything is in the time: reading the checkpoint, tracing, calibrating on as many images, measuring every layer and
block both ways, and the metric of the worst layers.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path

from records import about, line_of, show, table, write

import trtkit as tk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a YOLO checkpoint")
    parser.add_argument("--data", required=True, help="a labeled data.yaml")
    parser.add_argument("--images", type=int, default=32)
    values = parser.parse_args()
    begun = time.perf_counter()
    scan = tk.sensitivity(values.model, values.data, probe_images=values.images, progress=show)
    seconds = time.perf_counter() - begun
    # ru_maxrss is in KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    place = Path(values.data)
    provenance = about(
        f"--model {Path(values.model).name} --data {place.parent.name}/{place.name} --images {scan.image_count}"
    )
    ran = 1 + 2 * len(scan.layers) + 2 * int((scan.blocks["layers"] > 1).sum())
    content = {
        **provenance,
        "seconds": seconds,
        "peak_gb": peak,
        "load": os.getloadavg()[0],
        "images": scan.image_count,
        "variants": ran,
        "sqnr": scan.sqnr,
        "metric": scan.metric,
        "metric_float": scan.metric_float,
        "metric_int8": scan.metric_int8,
        "layers": scan.layers.to_dicts(),
        "blocks": scan.blocks.to_dicts(),
    }
    rows = [
        [
            f"`{row['node']}`",
            row["block"],
            f"{row['sqnr_only']:.1f}",
            f"{row['gain']:+.2f}",
            "" if row["metric_only"] is None else f"{row['metric_only']:.4f}",
            "" if row["metric_without"] is None else f"{row['metric_without']:.4f}",
        ]
        for row in scan.worst(10).iter_rows(named=True)
    ]
    blocks = [
        [row["block"], row["type"], str(row["layers"]), f"{row['sqnr_only']:.1f}", f"{row['gain']:+.2f}"]
        for row in scan.blocks.sort("sqnr_only").head(8).iter_rows(named=True)
    ]
    lines = [
        "# What each layer costs in INT8, and how long it takes to know",
        "",
        f"`{provenance['command']}`",
        "",
        f"**{seconds:.0f} s** and {peak:.2f} GB for {ran} placements of {len(scan.layers)} layers over "
        f"{scan.image_count} images, calibration and the metric of the worst layers included "
        f"(load {content['load']:.1f}). INT8 throughout: {scan.sqnr:.1f} dB, "
        f"{scan.metric} {scan.metric_int8:.4f} against {scan.metric_float:.4f} in FP32 on these images.",
        "",
        *table(["layer", "block", "only it, dB", "gain of keeping it, dB", "mAP, only it", "mAP, all but it"], rows),
        "",
        *table(["block", "type", "layers", "only it, dB", "gain of keeping it, dB"], blocks),
        "",
        line_of(provenance),
    ]
    write("sensitivity", content, lines)


if __name__ == "__main__":
    main()

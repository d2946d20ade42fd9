"""Write the published GPU latencies that the package ships, from the records of `benchmarks/engines.py`.

`python tools/published_latencies.py` reads `benchmarks/results/engines-*.json` and writes
`trtkit/comparison/published_latencies.json`; run it after a new record was committed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "trtkit" / "comparison" / "published_latencies.json"
PRECISIONS = ("fp32", "fp16", "int8")
"""What `compare` compares; "implicit", TensorRT's own calibrator, is left out."""


def collect_records() -> list[dict[str, Any]]:
    """One entry per record: where it is, how it was measured, and its latencies."""
    records = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("engines-*.json")):
        saved = json.loads(path.read_text())
        about = saved["about"]
        rows = [
            {
                "model": Path(row["model"]).stem,
                "task": row["task"],
                "imgsz": row["imgsz"],
                "model_hash": row["passport"]["model_hash"],
                "precision": row["precision"],
                "batch": row["batch"],
                "opt_level": row["level"],
                "runs": row["runs"],
                "p50_ms": round(row["p50_ms"], 4),
                "p99_ms": round(row["p99_ms"], 4),
            }
            for row in saved["rows"]
            # Engines that were built and not timed stand in a record too.
            if row["precision"] in PRECISIONS and "p50_ms" in row
        ]
        records.append(
            {
                "record": str(path.with_suffix(".md").relative_to(ROOT)),
                "command": about["command"],
                "gpu": about["machine"]["processor"],
                "versions": about["versions"],
                "rows": rows,
            }
        )
    return records


def render_records() -> str:
    """The file's content: one line per latency."""
    parts = []
    for record in collect_records():
        rows = ",\n".join(f"      {json.dumps(row)}" for row in record.pop("rows"))
        facts = "".join(f"    {json.dumps(name)}: {json.dumps(value)},\n" for name, value in record.items())
        parts.append(f'  {{\n{facts}    "rows": [\n{rows}\n    ]\n  }}')
    return "[\n" + ",\n".join(parts) + "\n]\n"


if __name__ == "__main__":
    OUTPUT.write_text(render_records())
    print(OUTPUT.relative_to(ROOT))

"""The tables of "INT8 or FP16", from the records in benchmarks/results: no number of that page is written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trtkit.evaluation.significance import decide_accuracy

__all__ = ["TABLES", "fill", "list_engine_rows"]

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "results"

METRICS = {
    "detect": "mAP50-95(B)", "segment": "mAP50-95(M)", "pose": "mAP50-95(P)", "obb": "mAP50-95(R)", "classify": "top1",
}  # fmt: skip
"""The metric that decides for each task."""

MAX_DROP = 0.005
"""The loss that `compare` accepts unless told otherwise."""

PLACEHOLDER = re.compile(r"^<!-- generated: (\S+) -->$", re.MULTILINE)


def fill(markdown: str) -> str:
    """A page with its tables in place of `<!-- generated: NAME -->`.

    Args:
        markdown: The page.

    Raises:
        SystemExit: No table has that name.
    """

    def replace(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise SystemExit(f"no table is called {match[1]!r}; there are {', '.join(TABLES)}")
        return "\n".join(TABLES[match[1]](RECORDS))

    return PLACEHOLDER.sub(replace, markdown)


def list_engine_rows(records: Path) -> Iterator[dict[str, Any]]:
    """INT8 engines beside the FP16 ones of the same GPU, model, image size and batch.

    Args:
        records: The folder of the records.

    Yields:
        GPU, task, model, size, batch, latencies in ms an image, their ratio, and the change of the task's metric.
    """
    for path in sorted(records.glob("engines-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = {(row["task"], row["model"], row["batch"], row["precision"]): row for row in record["rows"]}
        for (task, model, batch, precision), int8 in rows.items():
            fp16 = rows.get((task, model, batch, "fp16"))
            if precision != "int8" or fp16 is None:
                continue
            metric = METRICS[task]
            yield {
                "gpu": int8["passport"]["gpu"],
                "tensorrt": int8["passport"]["tensorrt"],
                "task": task,
                "model": Path(model).stem,
                "imgsz": int8["imgsz"],
                "batch": batch,
                "fp16_ms": fp16["mean_ms"] / batch,
                "int8_ms": int8["mean_ms"] / batch,
                "ratio": int8["mean_ms"] / fp16["mean_ms"],
                "metric": metric,
                "change": int8["metrics"][metric] - fp16["metrics"][metric],
                "fp16_mb": fp16["bytes"] / 1e6,
                "int8_mb": int8["bytes"] / 1e6,
                "record": path.name,
            }


def _engines(records: Path) -> Iterator[str]:
    yield "| GPU | model, image size | batch | FP16 ms/image | INT8 ms/image | INT8 / FP16 | change of metric | MB |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in list_engine_rows(records):
        yield (
            f"| {row['gpu']} | {row['model']}, {row['imgsz']} | {row['batch']} | {row['fp16_ms']:.3f} "
            f"| {row['int8_ms']:.3f} | {row['ratio']:.2f} | {row['change']:+.4f} {row['metric']} "
            f"| {row['fp16_mb']:.1f} to {row['int8_mb']:.1f} |"
        )


def _summary(records: Path) -> Iterator[str]:
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in list_engine_rows(records):
        groups.setdefault((row["gpu"], row["tensorrt"], row["batch"]), []).append(row)
    for (gpu, tensorrt, batch), rows in sorted(groups.items()):
        best, worst = (choose(rows, key=lambda row: row["ratio"]) for choose in (min, max))
        faster = sum(row["ratio"] < 1 for row in rows)
        yield (
            f"- **{gpu}, TensorRT {tensorrt}, batch {batch}**: INT8 takes {best['ratio']:.2f} ({best['model']}) to "
            f"{worst['ratio']:.2f} ({worst['model']}) of FP16's time; {faster} of {len(rows)} models are faster."
            if len(rows) > 1
            else f"- **{gpu}, TensorRT {tensorrt}, batch {batch}**: INT8 takes {best['ratio']:.2f} of FP16's time "
            f"({best['model']}; no other model was measured)."
        )


def _losses(records: Path) -> Iterator[str]:
    yield f"| model | metric | FP32 | change by INT8 [95 % interval] | images | at a tolerance of {MAX_DROP} |"
    yield "|---|---|---|---|---|---|"
    for row in sorted(_list_losses(records), key=lambda row: row["model"]):
        yield (
            f"| {row['model']} | {row['metric']} | {row['reference']:.4f} "
            f"| {row['delta']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}] | {row['images']} "
            f"| {decide_accuracy(row['low'], row['high'], MAX_DROP, row['images'])} |"
        )


def _list_losses(records: Path) -> Iterator[dict[str, Any]]:
    for row in json.loads((records / "newer_losses.json").read_text(encoding="utf-8"))["rows"]:
        if row["source"].startswith(".pt"):
            yield {**row, "model": f"{row['model']} ({row['source'].removeprefix('.pt, ')})"}
    tasks = json.loads((records / "five_tasks.json").read_text(encoding="utf-8"))["tasks"]
    for one in tasks.values():
        (change,) = (c for c in one["changes"] if (c["metric"], c["precision"]) == (one["metric"], "int8"))
        yield {**change, "model": Path(one["model"]).stem, "images": one["images"]}


def _sources(records: Path) -> Iterator[str]:
    names = [path.name for path in sorted(records.glob("engines-*.json"))] + ["newer_losses.json", "five_tasks.json"]
    for name in names:
        record = json.loads((records / name).read_text(encoding="utf-8"))
        about = record.get("about") or record
        versions = ", ".join(f"{key} {value}" for key, value in _short(about["versions"]))
        page = f"[{name.removesuffix('.json')}](../benchmarks/results/{name.removesuffix('.json')}.md)"
        yield f"- {page}: `{about['command'].strip()}`; {about['machine']['processor']}; {versions}."


def _short(versions: Mapping[str, str]) -> Sequence[tuple[str, str]]:
    wanted = ("TensorRT", "trtkit", "onnxruntime")
    return [(name, versions[name]) for name in wanted if name in versions]


TABLES: dict[str, Callable[[Path], Iterator[str]]] = {
    "engines": _engines,
    "losses": _losses,
    "sources": _sources,
    "summary": _summary,
}
"""By the name in a page's placeholder."""

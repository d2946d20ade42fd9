"""The tables of "INT8 or FP16", from the records in benchmarks/results: no number of that page is written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trtkit.evaluation.significance import decide_accuracy

__all__ = ["TABLES", "fill", "list_engine_rows"]

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "results"
ZOO = ROOT / "docs" / "zoo.json"

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


def list_engine_rows(records: Path, zoo: Path = ZOO) -> Iterator[dict[str, Any]]:
    """INT8 engines beside the FP16 ones of the same GPU, model, image size and batch.

    Args:
        records: The folder of the records.
        zoo: The saved zoo, which need not be there.

    Yields:
        GPU, task, model, size, batch, latencies in ms an image, their ratio, and the change of the task's metric.
    """
    for path in sorted(records.glob("engines-*.json")):
        yield from _pair(map(_from_engine, json.loads(path.read_text(encoding="utf-8"))["rows"]))
    if zoo.is_file():
        yield from _pair(_from_zoo(json.loads(zoo.read_text(encoding="utf-8"))["facts"]))


def _from_engine(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "gpu": row["passport"]["gpu"],
        "tensorrt": row["passport"]["tensorrt"],
        "model": Path(row["model"]).stem,
        "imgsz": row["imgsz"],
        "batch": row["batch"],
        "precision": row["precision"],
        "image_ms": row["mean_ms"] / row["batch"],
        "metric": METRICS[row["task"]],
        "value": row["metrics"][METRICS[row["task"]]],
        "mb": row["bytes"] / 1e6,
    }


def _from_zoo(facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    names = ("model", "imgsz", "precision", "backend", "gpu")
    timings: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for timing in facts["timings"]:
        timings.setdefault(tuple(timing[name] for name in names), []).append(timing)
    for row in facts["rows"]:
        # Without a GPU nothing is timed: no timing has the row's key.
        for timing in timings.get(tuple(row[name] for name in names), ()) if row["gpu"] else ():
            yield {
                **{name: row[name] for name in ("gpu", "model", "imgsz", "precision", "metric", "value")},
                "tensorrt": (row["versions"] or {}).get(row["backend"].replace("_", "-"), "version unknown"),
                "batch": timing["batch"],
                "image_ms": timing["image_ms"],
                "mb": row["size_mb"],
            }


def _pair(engines: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    names = ("gpu", "tensorrt", "model", "imgsz", "batch", "metric")
    groups: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for engine in engines:
        groups.setdefault(tuple(engine[name] for name in names), {})[engine["precision"]] = engine
    for key, group in groups.items():
        if {"fp16", "int8"} <= set(group):
            fp16, int8 = group["fp16"], group["int8"]
            yield {
                **dict(zip(names, key, strict=True)),
                "fp16_ms": fp16["image_ms"],
                "int8_ms": int8["image_ms"],
                "ratio": int8["image_ms"] / fp16["image_ms"],
                "change": int8["value"] - fp16["value"],
                "fp16_mb": fp16["mb"],
                "int8_mb": int8["mb"],
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


def _scope(records: Path) -> Iterator[str]:
    rows = list(list_engine_rows(records))
    models, gpus, versions = (", ".join(sorted({row[name] for row in rows})) for name in ("model", "gpu", "tensorrt"))
    yield f"Timed so far: {models}; on {gpus}; with TensorRT {versions}. What is not in this list is not known."


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
    if ZOO.is_file() and any(row["gpu"] for row in json.loads(ZOO.read_text(encoding="utf-8"))["facts"]["rows"]):
        yield "- [zoo](zoo.md), with the command of each row."
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
    "scope": _scope,
    "sources": _sources,
    "summary": _summary,
}
"""By the name in a page's placeholder."""

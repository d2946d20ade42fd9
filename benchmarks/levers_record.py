"""The record of `levers.py`: what its builds took, and where an engine's kernels spend their time."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from records import about_engines, line_of, of_gpu, table
from records import write as write_record

__all__ = ["HEADS", "summarize", "summarize_kinds", "summarize_ratios", "write"]


def summarize(rows: list[dict[str, Any]], variants: Sequence[str]) -> list[list[str]]:
    """The table: each variant's median and range over its builds, and its share of today's engine and of plain FP16.

    Args:
        rows: What `run` left.
        variants: Their names, in the table's order.
    """
    body = []
    for model, batch, precision in sorted({(row["model"], row["batch"], row["precision"]) for row in rows}):
        own = [row for row in rows if (row["model"], row["batch"]) == (model, batch)]
        today = _median(own, precision, "today")
        plain = _median(own, "fp16", "plain")
        for variant in variants:
            builds = [row for row in own if (row["precision"], row["variant"]) == (precision, variant)]
            if not builds:
                continue
            times = [row["p50_ms"] for row in builds]
            middle = statistics.median(times)
            body.append(
                [
                    model, str(batch), precision, variant, str(len(times)), f"{middle:.3f}",
                    f"{min(times):.3f} to {max(times):.3f}",
                    "" if today is None else f"{middle / today:.3f}",
                    "" if plain is None else f"{middle / plain:.3f}",
                    *(_format_median(builds, name) for name in ("predict_ms", "one_call_ms")),
                    _format_memory(builds),
                    f"{statistics.median(row['layers'] for row in builds):.0f}",
                    f"{statistics.median(row['reformats'] for row in builds):.0f}",
                ]
            )  # fmt: skip
    return body


def _format_median(builds: list[dict[str, Any]], name: str) -> str:
    """The median over the builds that have a value."""
    values = [row[name] for row in builds if name in row]
    return f"{statistics.median(values):.2f}" if values else ""


def _format_memory(builds: list[dict[str, Any]]) -> str:
    """Memory that an execution context takes, MiB, where it was read."""
    sizes = [row["memory"] / 2**20 for row in builds if "memory" in row]
    return f"{statistics.median(sizes):.0f}" if sizes else ""


def _median(rows: list[dict[str, Any]], precision: str, variant: str) -> float | None:
    times = [row["p50_ms"] for row in rows if (row["precision"], row["variant"]) == (precision, variant)]
    return statistics.median(times) if times else None


HEADS = (
    "model", "batch", "precision", "variant", "builds", "p50 ms", "range", "of today", "of plain FP16", "predict ms",
    "in one call", "context MiB", "layers", "reformats",
)  # fmt: skip


KINDS: Sequence[tuple[str, Callable[[str], bool]]] = (
    ("decoding of boxes", lambda name: "/dfl/" in name or "_copy_output" in name or name.endswith("Sigmoid)")),
    ("attention", lambda name: "/attn/" in name or ("_DequantizeLinear" in name and "Conv" not in name)),
    ("convolutions in INT8, with their activation", lambda name: "_weight_QuantizeLinear" in name),
    ("other convolutions", lambda name: "/Conv" in name),
    ("quantization of the input", lambda name: "images" in name),
    ("quantization elsewhere", lambda name: "QuantizeLinear" in name),
    ("copies for concatenations", lambda name: name.endswith(" copy")),
    ("sums of residuals", lambda name: name.startswith("PWN(") and "Add" in name),
    ("pools and resizing", lambda name: "MaxPool" in name or "Resize" in name),
    ("other", lambda name: True),
)
"""Kinds of layers, by the names that TensorRT gives them; the first that fits."""


def summarize_kinds(row: dict[str, Any]) -> list[list[str]]:
    """How long kernels of each kind take, with the least and the most; layers without a kernel are left out.

    The profiler waits after each layer; what that adds to the engine's own time is taken off in equal parts.

    Args:
        row: One build, with the times of all its layers.
    """
    extra = (row["profiled_ms"] - row["p50_ms"]) / row["layers"]
    found: dict[str, list[float]] = {}
    for ms, name in row["slowest"]:
        if ms > extra:
            found.setdefault(next(kind for kind, fits in KINDS if fits(name)), []).append(1e3 * (ms - extra))
    total = sum(map(sum, found.values()))
    return [
        [
            kind,
            str(len(times)),
            f"{sum(times):.0f}",
            f"{sum(times) / total:.0%}",
            f"{min(times):.1f} to {max(times):.1f}",
        ]
        for kind, times in sorted(found.items(), key=lambda entry: -sum(entry[1]))
    ]


def summarize_ratios(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table of engines timed by turns, from what `ratio` left."""
    body = [
        [
            "".join(gpu["uuid"] for gpu in row["gpu"]["gpus"]), "other work" if row["loaded"] else "",
            *(f"{engine['p50_ms']:.3f}" for engine in row["engines"][:2]),
            "{ratio:.3f} [{low:.3f}, {high:.3f}]".format(**row["ratios"][0]), row["engines"][0]["flags"],
        ]
        for row in rows
    ]  # fmt: skip
    first, second = (engine["label"] for engine in rows[0]["engines"][:2])
    return table(["GPU", "beside", f"{first}, p50 ms", f"{second}, p50 ms", "ratio", "flags"], body)


def write(out: Path, variants: Sequence[str]) -> None:
    """Gather what `run` left into `results/`.

    Args:
        out: The folder of `run`.
        variants: Their names, in the table's order.
    """
    rows: list[dict[str, Any]] = [json.loads(path.read_text()) for path in sorted(out.glob("*-b*-*.json"))]
    about = about_engines("python benchmarks/levers.py run levers --builds 3", rows[0])
    lines = ["# Levers: inputs, outputs, head and streams", "", f"`{about['command']}`", "", line_of(about)]
    for lanes in sorted({row["lanes"] for row in rows}):
        alone = "One build at a time on each GPU."
        beside = f"{lanes} builds at once on each GPU, timed beside others: ratios to look at, no latencies to quote."
        own = [row for row in rows if row["lanes"] == lanes]
        lines += ["", alone if lanes == 1 else beside, "", *table(HEADS, summarize(own, variants))]
    whole = [row for row in rows if row["profiled_ms"] and len(row["slowest"]) == row["layers"]]
    today = {
        (row["model"], row["batch"]): row for row in whole if (row["variant"], row["precision"]) == ("today", "int8")
    }
    for (model, batch), row in sorted(today.items()):
        lines += ["", f"Kernels of {model}, INT8, batch {batch}, today ({row['p50_ms']:.3f} ms):", ""]
        lines += table(["kind", "kernels", "us", "share", "us of one"], summarize_kinds(row))
    ratios = [row for path in sorted(out.glob("ratio*.json")) for row in json.loads(path.read_text())]
    if ratios:
        lines += ["", "Engines timed by turns, round by round; the interval is of the paired ratio:", ""]
        lines += summarize_ratios(ratios)
    # All layers of one engine are a page; of the others the longest will do.
    rows = [{**row, "slowest": row["slowest"][:25]} for row in rows]
    write_record(of_gpu("levers", rows[0]), {**about, "rows": rows, "ratios": ratios}, lines)

"""zoo.md: the zoo as a page in Markdown, one table per task and GPU, then hashes and commands of each row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from trtkit.recipe import format_label

if TYPE_CHECKING:
    from trtkit.model_zoo.table import Zoo

__all__ = ["NOT_MEASURED", "render_markdown"]

NOT_MEASURED = "not measured"
"""What stands for the latency of a row that ran without a GPU."""

HASH_DIGITS = 12
"""Digits of hashes in the page; zoo.json has all."""

_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#~])")
_BREAKS = re.compile(r"\s+")


def render_markdown(zoo: Zoo) -> str:
    """The page.

    Args:
        zoo: The zoo.
    """
    rows, about = zoo.rows, zoo.about
    done, failed = rows.filter(pl.col("status") == "done"), zoo.failed
    lines = [
        "# Zoo",
        "",
        f"{len(done)} of {len(rows)} rows are done, {len(failed)} failed. All rows of a task are measured on the same "
        f"images (split `{about['split']}`, seed {about['seed']}); in brackets the 95 % confidence interval by a "
        f"bootstrap over images ({about['resamples']} resamples). INT8 is calibrated on up to "
        f"{zoo.provenance.settings.get('calibration_images')} images. Changes are against FP32 of the same model, "
        f"size and backend, paired. The p50 latency is a batch's, of the engine on the GPU named; without a GPU it is "
        f"{NOT_MEASURED}.",
        "",
        *(f"- {_escape(note)}" for note in about["notes"]),
        *([""] if about["notes"] else []),
        f"Made by {_code(about['command'])}",
    ]
    groups = done.group_by("task", "gpu", maintain_order=True)
    for (task, gpu), group in groups:
        lines += ["", f"## {task}{f', {_escape(gpu)}' if gpu else ''}", "", *_render_rows(group)]
    if len(failed):
        cells = [
            [
                row["model"],
                row["imgsz"],
                format_label(row["precision"]),
                row["backend"],
                row["error_code"],
                row["error"],
            ]
            for row in failed.iter_rows(named=True)
        ]
        lines += ["", "## Failed", "", *_table(("model", "size", "precision", "backend", "code", "error"), cells)]
    if about["is_guide"] or len(zoo.timings):
        lines += ["", "## In the layout of Ultralytics' export guide", ""]
        lines += ["Times are ms per image: `predict` at the largest batch, the split at the smallest."]
        for title, table in zoo.guide_tables().items():
            lines += ["", f"### {_escape(title)}", "", *_render_guide(table)]
    disturbed = zoo.timings.filter(pl.col("flags") != "")
    if len(disturbed):
        lines += ["", "## Disturbed measurements", ""]
        lines += [
            f"- {_escape(_title(row))}, batch {row['batch']}: {_escape(row['flags'])}"
            for row in disturbed.iter_rows(named=True)
        ]
    return "\n".join([*lines, "", *_render_details(done)]) + "\n"


def _title(row: Mapping[str, Any]) -> str:
    """A row's name."""
    return f"{row['model']} {row['imgsz']} {format_label(row['precision'])} {row['backend']}"


def _render_rows(rows: pl.DataFrame) -> list[str]:
    """The table of one task on one GPU."""
    cells = []
    for row in rows.iter_rows(named=True):
        change = "" if row["delta"] is None else f"{row['delta']:+.4f}"
        if change and row["delta_low"] is not None:
            change += f" [{row['delta_low']:+.4f}, {row['delta_high']:+.4f}]"
        ms = NOT_MEASURED if row["p50_ms"] is None else f"{row['p50_ms']:.3f} (batch {row['batch']})"
        cells.append(
            [
                row["model"], row["imgsz"], format_label(row["precision"]), row["backend"],
                Raw(f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"),
                "reference" if row["precision"] == "fp32" else Raw(change),
                ms, f"{row['size_mb']:.2f}", row["eval_images"],
            ]
        )  # fmt: skip
    metric = rows["metric"][0]
    heads = ("model", "size", "precision", "backend", Raw(f"{metric} [95 %]"), "change", "p50, ms", "MB", "images")
    return _table(heads, cells, numbers=4)


def _render_guide(table: pl.DataFrame) -> list[str]:
    """One of the guide's tables."""
    metrics = [name for name in table.columns if name not in GUIDE_COLUMNS]
    cells = []
    for row in table.iter_rows(named=True):
        mean, least, most = (row[f"{name} ms"] for name in ("mean", "min", "max"))
        # The guide has the spread in the rows of predict alone.
        spread = "" if mean is None or row["test"] != "predict" else f"{least:.3f} \\| {most:.3f}"
        cells.append(
            [
                row["precision"], row["test"], NOT_MEASURED if mean is None else f"{mean:.3f}", Raw(spread),
                *("" if row[name] is None else f"{row[name]:.3f}" for name in metrics), row["batch"], row["imgsz"],
            ]
        )  # fmt: skip
    heads = ("precision", "test", "mean, ms", Raw("min \\| max, ms"), *metrics, "batch", "size, pixels")
    return _table(heads, cells, numbers=2)


GUIDE_COLUMNS = ("precision", "test", "mean ms", "min ms", "max ms", "batch", "imgsz")


def _render_details(done: pl.DataFrame) -> list[str]:
    """Hashes, machine, excluded nodes and the command of each row, folded."""
    lines = ["## Rows", ""]
    for row in done.iter_rows(named=True):
        versions = {name: value for name, value in json.loads(row["versions"]).items() if value}
        facts: dict[str, Any] = {
            "runner": row["runner"],
            "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
            "GPU": row["gpu"]
            and f"{row['gpu']} ({row['gpu_uuid']}), driver {row['driver']}, clocks {row['clocks']} MHz",
            "hashes": ", ".join(
                f"{name} {row[f'{name}_hash'][:HASH_DIGITS]}"
                for name in ("model", "data", "calibration", "file")
                if row[f"{name}_hash"]
            ),
            "keep": ", ".join(row["keep"]) or None,
            "excluded from INT8": ", ".join(row["excluded"]) if row["excluded"] else None,
            "build": row["build_s"] and f"{row['build_s']:.1f} s",
        }
        lines += [f"<details><summary>{_escape(_title(row))}</summary>", ""]
        lines += [f"- {name}: {_escape(value)}" for name, value in facts.items() if value]
        lines += [f"- command: {_code(row['command'])}", "", "</details>", ""]
    return lines[:-1]


class Raw(str):
    """Text that is Markdown already."""

    __slots__ = ()


def _escape(value: Any) -> str:
    """Text of others' files as Markdown shows it literally, on one line."""
    if isinstance(value, Raw):
        return value
    return _MARKUP.sub(r"\\\1", _BREAKS.sub(" ", str(value)))


def _code(command: str) -> str:
    """A command line, between as many backticks as it needs."""
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", command)), default=0))
    return f"{ticks}{_BREAKS.sub(' ', command)}{ticks}"


def _table(heads: Sequence[Any], rows: Iterable[Sequence[Any]], *, numbers: int | None = None) -> list[str]:
    """A table; columns from `numbers` on are right-aligned."""
    kinds = ["---" if numbers is None or index < numbers else "---:" for index in range(len(heads))]
    lines = [f"| {' | '.join(map(_escape, row))} |" for row in (heads, *rows)]
    return [lines[0], f"|{'|'.join(kinds)}|", *lines[1:]]

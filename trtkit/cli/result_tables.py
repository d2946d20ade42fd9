"""Results in the terminal: comparisons, zoos and what makes an engine slow."""

from __future__ import annotations

import itertools
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.cli.output import make_table, print_table, print_text, print_wrapped
from trtkit.recipe import format_label

if TYPE_CHECKING:
    from rich.table import Table

    from trtkit.comparison.cards import CardRow
    from trtkit.comparison.comparison import Comparison
    from trtkit.evaluation.latency import Timing
    from trtkit.inspection.slowness import SpeedDiagnosis
    from trtkit.model_zoo.table import Zoo

__all__ = ["MAX_LAYER_ROWS", "print_comparison", "print_slowness", "print_timing", "print_zoo"]

MAX_LAYER_ROWS = 12
"""Rows of layers that `trtkit why-slow` shows unless more are asked for; with the causes they fit a screen."""


def print_comparison(comparison: Comparison, folder: str | Path, *, verbose: bool = False) -> None:
    """Print the verdicts and cards of a comparison, and the paths of its files; they fit a screen of 80 x 24.

    Args:
        comparison: The comparison.
        folder: The folder it was saved in.
        verbose: Also print the table of numbers and the findings, before the verdicts.
    """
    from trtkit.comparison.cards import make_cards

    if verbose:
        print_table(_comparison_table(comparison))
        print_text()
        for sentence in comparison.findings():
            print_wrapped(f"- {sentence}")
        print_text()
    for verdict in comparison.verdicts.values():
        print_wrapped(verdict)
        for line in verdict.advice if verbose else ():
            print_wrapped(f"  {line}")
    print_text()
    cards = make_cards(comparison)
    columns = [[_format_card_row(row) for row in card.rows] for card in cards]
    widths = [max(map(len, (card.title, *lines))) for card, lines in zip(cards, columns, strict=True)]
    if sys.stdout.isatty():
        # On a narrow terminal latencies wrap, which have spaces at good places.
        widths[1] = max(12, min(widths[1], shutil.get_terminal_size().columns - widths[0] - widths[2] - 4))
    columns = [
        [*textwrap.wrap(card.subtitle, width), *(part for line in lines for part in textwrap.wrap(line, width))]
        for card, lines, width in zip(cards, columns, widths, strict=True)
    ]
    table = make_table(*(card.title for card in cards))
    for cells in itertools.zip_longest(*columns, fillvalue=""):
        table.add_row(*cells)
    print_table(table)
    for card in cards:
        if card.reference:
            print_text()
            print_wrapped(card.reference)
    print_text()
    for name in ("report.html", "comparison.parquet", "recipe.json"):
        print_text(Path(folder) / name)


def _format_card_row(row: CardRow) -> str:
    return " ".join(word for word in (row.label, row.value, row.note) if word)


def _comparison_table(comparison: Comparison) -> Table:
    """Accuracy, latency, size and build time, one row per precision and batch."""
    rows = comparison.rows
    batches = rows["batch"].n_unique() > 1
    heads = ["batch"] if batches else []
    for column, _ in comparison.about["metrics"]:
        heads += [column, "change"]
    table = make_table("", numbers=(*heads, "p50 ms/image", "p99", "ONNX MB", "engine MB", "build s"))
    for row in rows.iter_rows(named=True):
        cells: list[Any] = [str(row["batch"])] if batches else []
        for column, _ in comparison.about["metrics"]:
            is_reference = row["precision"] == comparison.about["reference"]
            cells += [f"{row[column]:.4f}", "" if is_reference else f"{row[f'delta {column}']:+.4f}"]
        cells += [_format_number(row[name] / row["batch"], 2) for name in ("p50_ms", "p99_ms")]
        cells += [_format_number(row[name], 1) for name in ("onnx_mb", "engine_mb", "build_s")]
        table.add_row(format_label(row["precision"]), *cells)
    return table


def _format_number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def print_zoo(zoo: Zoo, folder: str | Path) -> None:
    """Print accuracy, latency and size of each row, and the paths of the files."""
    table = make_table(
        "model", "size", "precision", "backend", "metric", numbers=("value", "95 %", "change", "p50 ms", "MB")
    )
    for row in zoo.rows.iter_rows(named=True):
        first = [row["model"], row["imgsz"] or "", format_label(row["precision"] or ""), row["backend"] or ""]
        if row["status"] == "failed":
            table.add_row(*first, f"failed: {row['error_code']}")
            continue
        change = "" if row["delta"] is None else f"{row['delta']:+.4f}"
        numbers = [f"{row['value']:.4f}", f"{row['low']:.4f}-{row['high']:.4f}", change]
        p50 = "not measured" if row["p50_ms"] is None else f"{row['p50_ms']:.3f}"
        table.add_row(*first, row["metric"], *numbers, p50, f"{row['size_mb']:.2f}")
    print_table(table)
    print_text()
    for row in zoo.failed.iter_rows(named=True):
        print_wrapped(f"{row['model']}: {row['error']}")
    for note in zoo.about["notes"]:
        print_wrapped(f"- {note}")
    for name in ("zoo.md", "zoo.json"):
        print_text(Path(folder) / name)


def print_slowness(diagnosis: SpeedDiagnosis, limit: int) -> None:
    """Print the causes, and the layers that differ most."""
    for line in repr(diagnosis).splitlines():
        print_wrapped(line)
    rows = diagnosis.layers.head(limit)
    if rows.is_empty():
        return
    print_text()
    table = make_table("node", "precision", "change", numbers=("us", "against", "difference", "kernels", "reformats"))
    for row in rows.iter_rows(named=True):
        table.add_row(
            row["node"],
            _format_pair(row["baseline_precision"], row["precision"]),
            row["cause"],
            *(_format_number(row[name], 1) for name in ("us", "baseline_us", "delta_us")),
            *(_format_pair(row[f"baseline_{name}"], row[name]) for name in ("kernels", "reformats")),
        )
    print_table(table)
    if len(diagnosis.layers) > len(rows):
        print_text(f"{len(diagnosis.layers) - len(rows)} more; --limit shows them")


def _format_pair(before: Any, after: Any) -> str:
    """One value, or both where they differ."""
    shown = ["-" if value is None else str(value) for value in (before, after)]
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]}"


def print_timing(timing: Timing) -> None:
    """Print the latencies of runners, the stages of `predict`, MLPerf's two scenarios, what disturbed, and the ratios.

    Args:
        timing: The result of `benchmark`.
    """
    from trtkit.evaluation.stage_times import tabulate_stages

    numbers = {
        "mean_ms": "mean, ms",
        "p50_ms": "p50, ms",
        "p90_ms": "p90, ms",
        "p99_ms": "p99, ms",
        "image_ms": "ms/image",
        "images_per_s": "images/s",
    }
    rows = timing.frame().to_dicts()
    table = make_table("label", "runner", "clock", "batch", numbers=tuple(numbers.values()))
    for row in rows:
        words = (row["label"], row["runner"], row["clock"], str(row["batch"]))
        table.add_row(*words, *(f"{row[name]:.2f}" for name in numbers))
    print_table(table)
    if not timing.stages.is_empty():
        (label, batch, *stages), cells = tabulate_stages(timing.stage_frame())
        table = make_table(label, batch, numbers=tuple(stages))
        for one in cells:
            table.add_row(*(cell or "-" for cell in one))
        print_text("\nStages of predict, ms/batch: median [95 % interval]")
        print_table(table)
        print_text()
    for row in rows:
        if row["batch"] == 1:
            print_text(f"{row['label']} single stream: p90 {row['p90_ms']:.2f} ms")
    for row in timing.offline.iter_rows(named=True):
        energy = "" if row["joules_per_image"] is None else f", {1000 * row['joules_per_image']:.1f} mJ an image"
        print_text(
            f"{row['label']} offline at batch {row['batch']}: {row['images_per_s']:,.0f} images/s"
            f"{energy}, {row['memory_mib']:.0f} MiB of GPU memory"
        )
    for row in rows:
        if row["flags"]:
            print_text(f"{row['label']}, batch {row['batch']}: {row['flags']}")
    for row in timing.ratios().iter_rows(named=True):
        print_text(
            f"{row['label']} takes {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of "
            f"{timing.runners['label'][0]}'s time at batch {row['batch']}"
        )

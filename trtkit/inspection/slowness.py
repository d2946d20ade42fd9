"""why_slow(): why an engine is not faster than another of the same model, from the layers of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from trtkit.errors import CapabilityError
from trtkit.inspection.engine_diff import NO_NODE, align_engines, original_nodes
from trtkit.inspection.layer_table import WEIGHTED_NODE, LayerTable, read_layers, weighted_node_precisions
from trtkit.progress import CancelToken, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb

__all__ = ["Cause", "SpeedDiagnosis", "diagnose_speed", "why_slow"]

LAUNCH_US = 6.0
"""Latency of a layer up to which its launch costs more than its arithmetic: 3 us at batch 1, 5 to 6 us at batch 8."""

LAUNCH_BOUND_SHARE = 0.5
"""Share of the latency in such layers from which an engine is launch-bound."""

SMALL_BATCH = 4
"""Batches up to this leave most of a large GPU idle in a launch-bound engine."""

MIN_SHARE = 0.02
"""Share of the latency below which a cause is not named: latencies of two builds differ by about as much."""

LISTED_NODES = 3
"""Largest number of nodes named in a sentence."""

PRECISION_ORDER = ("int8", "fp8", "fp16", "bf16", "fp32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cause:
    """One reason why an engine is not faster.

    Attributes:
        code: "launch-bound", "small-batch", "input-conversion", "reformats", "kept-layers" (in a higher precision than
            the engine's) or "unfused-layers" (more kernels for the same nodes than in the baseline).
        evidence: What the layer tables show.
        cost_us: Latency that it takes, us; None if layers were not timed, or if it is part of another cause.
        nodes: The ONNX nodes to change, the costliest first; () if no node is to blame.
        node_us: Cost of each node, us; () if layers were not timed.
        advice: What to try.
    """

    code: str
    evidence: str
    cost_us: float | None
    nodes: tuple[str, ...]
    node_us: tuple[float, ...]
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Cause:
        """The inverse of `to_dict`."""
        lists = {name: tuple(value[name]) for name in ("nodes", "node_us")}
        return cls(**{**value, **lists})

    @property
    def text(self) -> str:
        """Evidence and advice as a sentence."""
        return f"{self.evidence[0].upper()}{self.evidence[1:]}; {self.advice}."

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SpeedDiagnosis:
    """Why an engine is not faster than another one.

    Attributes:
        engine: Name of the engine.
        baseline: Name of the engine that it is compared with.
        total_us: Sum of the engine's layers, us; None if they were not timed.
        baseline_us: That of the baseline.
        causes: The costliest first; () if the layers show none.
        layers: The groups of layers in which the engines differ, the largest increase first: `node`, `block`,
            `precision`, `baseline_precision`, `us`, `baseline_us`, `delta_us`, `kernels`, `baseline_kernels`,
            `reformats`, `baseline_reformats`, and `cause` (codes, joined by commas).
        untimed_reason: Why there are no latencies; "" if there are.
    """

    engine: str
    baseline: str
    total_us: float | None
    baseline_us: float | None
    causes: tuple[Cause, ...]
    layers: pl.DataFrame
    untimed_reason: str = ""

    def frame(self) -> pl.DataFrame:
        """`layers`."""
        return self.layers

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        names = ("engine", "baseline", "total_us", "baseline_us", "untimed_reason")
        return {
            **{name: getattr(self, name) for name in names},
            "causes": [cause.to_dict() for cause in self.causes],
            "layers": self.layers.to_dicts(),
        }

    def __repr__(self) -> str:
        if self.total_us is None or self.baseline_us is None:
            first = f"{self.engine} against {self.baseline}, not timed: {self.untimed_reason}"
        else:
            ratio = self.total_us / self.baseline_us
            first = (
                f"{self.engine} {self.total_us:.0f} us, {self.baseline} {self.baseline_us:.0f} us ({ratio:.2f}x), "
                "sums of the layers"
            )
        causes = [str(cause) for cause in self.causes] or ["The layers show no cause."]
        return "\n".join((first, *(f"  {cause}" for cause in causes)))


@verb
def why_slow(
    engine: Any,
    baseline: Any,
    *,
    runs: int = 50,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> SpeedDiagnosis:
    """Say why an engine is not faster than another engine of the same model, and which nodes to change.

    Engine files that run here are opened and their layers timed. Elsewhere only precisions, reformats and the number of
    kernels are compared, unless layer tables that were timed on the GPU are passed (`read_layers(runner).save(path)`).

    Args:
        engine: The engine that is slow: an engine file, an `Artifact`, an open runner, or a layer table or its parquet
            file, as `read_layers` takes them.
        baseline: The engine to compare with, such as FP16 for an INT8 engine.
        runs: Runs over which each layer is timed.
        progress: Receives events.
        cancel: Checked before each engine.

    Returns:
        The causes with what each costs, and the layers in which the engines differ.

    Raises:
        EngineError: An engine has no layer table, or can't be read.
        DataError: A frame is not a layer table, or its file can't be read.
        CancelledError: The caller cancelled.
    """
    reporter = Reporter(progress, cancel)
    steps = ("read the engine's layers", "read the baseline's layers", "compare them")
    start_work(Plan(verb="why_slow", steps=steps, settings={"runs": runs}), reporter)
    tables = []
    for step, source in zip(steps, (engine, baseline), strict=False):
        reporter.begin(step)
        tables.append(_read(source, runs))
    reporter.begin(steps[-1])
    diagnosis = diagnose_speed(*tables)
    reporter.finish()
    return diagnosis


def _read(source: Any, runs: int) -> LayerTable:
    """The layers of an engine, timed where it runs here."""
    from trtkit import backends

    path = Path(source.path) if hasattr(source, "path") else source
    if isinstance(path, (str, Path)) and Path(path).suffix not in (".parquet", ".onnx", ".pt", ".pth"):
        table = read_layers(path)
        try:
            backends.require_run(backends.read_engine(path).backend)
        except CapabilityError:
            return table
        with backends.open(path) as runner:
            timed = read_layers(runner, runs=runs, name=table.name)
        return dataclasses.replace(timed, facts={**table.facts, **timed.facts})
    return read_layers(source, runs=runs if callable(getattr(source, "layers", None)) else 0)


def diagnose_speed(engine: LayerTable, baseline: LayerTable) -> SpeedDiagnosis:
    """As `why_slow`, from layer tables.

    Args:
        engine: The slow engine's.
        baseline: The other engine's.
    """
    rows = _compare_groups(engine, baseline)
    causes = [
        cause
        for cause in (
            _find_input_conversion(engine),
            _find_reformats(engine, baseline),
            _find_kept_layers(engine),
            _find_unfused_layers(rows, engine, baseline),
            _find_launches(engine),
            _find_small_batch(engine),
        )
        if cause is not None
    ]
    causes.sort(key=lambda cause: -(cause.cost_us or 0.0))
    names = {cause.code: set(cause.nodes) for cause in causes}
    found = [",".join(code for code, nodes in names.items() if row in nodes) for row in rows["node"]]
    rows = rows.with_columns(cause=pl.Series(found, dtype=pl.String))
    differing = rows.filter(
        (pl.col("precision") != pl.col("baseline_precision"))
        | (pl.col("kernels") != pl.col("baseline_kernels"))
        | (pl.col("reformats") != pl.col("baseline_reformats"))
        | (pl.col("delta_us") > 0)
        | (pl.col("cause") != "")
    )
    timed = engine.timed and baseline.timed
    return SpeedDiagnosis(
        engine=engine.name,
        baseline=baseline.name,
        total_us=_to_us(engine.total),
        baseline_us=_to_us(baseline.total),
        causes=tuple(causes),
        layers=differing.sort("delta_us", descending=True, nulls_last=True, maintain_order=True),
        untimed_reason="" if timed else engine.untimed_reason or baseline.untimed_reason,
    )


def _to_us(ms: float | None) -> float | None:
    return None if ms is None else 1000 * ms


def _compare_groups(engine: LayerTable, baseline: LayerTable) -> pl.DataFrame:
    """Groups of layers that compute the same nodes, with kernels counted without reformats."""
    rows = align_engines(baseline, engine)
    reformats = [set(table.frame.filter("reformat")["index"].to_list()) for table in (baseline, engine)]
    counts = [
        [len([index for index in indices if index not in skipped]) for indices in rows[column]]
        for column, skipped in zip(("layers", "other_layers"), reformats, strict=True)
    ]
    return rows.select(
        "node",
        "block",
        precision="other_precision",
        baseline_precision="precision",
        us=pl.col("other_ms") * 1000,
        baseline_us=pl.col("ms") * 1000,
        delta_us=pl.col("delta_ms") * 1000,
        kernels=pl.Series(counts[1], dtype=pl.Int64),
        baseline_kernels=pl.Series(counts[0], dtype=pl.Int64),
        reformats="other_reformats",
        baseline_reformats="reformats",
    )


# Causes


def _find_input_conversion(engine: LayerTable) -> Cause | None:
    """What converts and copies the images before the first layer with weights."""
    own = _own_precision(engine)
    before = engine.frame.head(_first_weighted(engine)).filter(pl.col("ms") > 0)
    cost = 1000 * float(before["ms"].sum())
    if own == "fp32" or not _is_relevant(cost if engine.timed else None, engine, untimed=False):
        return None
    if engine.facts.get("backend", "tensorrt") != "tensorrt":
        return None
    slowest = before.sort("ms", descending=True)
    names = _name(slowest["name"].to_list(), (1000 * slowest["ms"]).to_list())
    layers = "1 layer converts" if len(before) == 1 else f"{len(before)} layers convert"
    return Cause(
        code="input-conversion",
        evidence=f"{layers} the images to {own}{_cost_words(cost, engine)}: {names}",
        cost_us=cost,
        nodes=(),
        node_us=(),
        advice="export it with fixed shapes and space_to_depth=True: predict then writes pixels of this precision",
    )


def _first_weighted(table: LayerTable) -> int:
    """The first layer with weights or products; 0 without any."""
    rows = table.frame.select("onnx_nodes", "reformat").iter_rows()
    found = (
        index
        for index, (nodes, is_reformat) in enumerate(rows)
        if not is_reformat and any(WEIGHTED_NODE.search(node) for node in nodes or ())
    )
    return next(found, 0)


def _find_reformats(engine: LayerTable, baseline: LayerTable) -> Cause | None:
    """Layers that only change layout or type, and the nodes between which they stand."""
    # Those of the images are a cause of their own.
    mine, theirs = (table.frame.slice(_first_weighted(table)).filter("reformat") for table in (engine, baseline))
    more = len(mine) - len(theirs)
    cost = None
    if engine.timed and baseline.timed:
        cost = 1000 * (float(mine["ms"].sum()) - float(theirs["ms"].sum()))
    if not _is_relevant(cost, engine, untimed=more > 0):
        return None
    costs: dict[str, float] = {}
    changes_type = False
    for index, before, after in _reformat_neighbors(engine):
        if index < _first_weighted(engine):
            continue
        node, is_type = _node_to_change(engine, before, after)
        changes_type |= is_type
        costs[node] = costs.get(node, 0.0) + 1000 * float(engine.frame["ms"][index] or 0.0)
    nodes, node_us = _rank(costs, engine.timed)
    advice = (
        "quantize these nodes too, or keep their INT8 neighbors in FP16 (keep=)"
        if changes_type
        else "the layout changes, not the type: pad channels to multiples of 32 (INT8) or 8 (FP16)"
    )
    count = "1 reformat" if len(mine) == 1 else f"{len(mine)} reformats"
    evidence = f"{count} against {len(theirs)} in {baseline.name}{_cost_words(cost, engine)}: {_name(nodes, node_us)}"
    return Cause(code="reformats", evidence=evidence, cost_us=cost, nodes=nodes, node_us=node_us, advice=advice)


def _reformat_neighbors(table: LayerTable) -> Iterator[tuple[int, int | None, int | None]]:
    """Each reformat with the layers before and after it, by tensors, else by order."""
    frame = table.frame
    reformats, inputs, outputs = (frame[name].to_list() for name in ("reformat", "inputs", "outputs"))
    computing = [index for index, is_reformat in enumerate(reformats) if not is_reformat]
    producers = {tensor: index for index in computing for tensor in outputs[index] or ()}
    consumers = {tensor: index for index in reversed(computing) for tensor in inputs[index] or ()}
    for index, is_reformat in enumerate(reformats):
        if is_reformat:
            before = next((producers[name] for name in inputs[index] or () if name in producers), None)
            after = next((consumers[name] for name in outputs[index] or () if name in consumers), None)
            if before is None:
                before = next((one for one in reversed(computing) if one < index), None)
            if after is None:
                after = next((one for one in computing if one > index), None)
            yield index, before, after


def _node_to_change(table: LayerTable, before: int | None, after: int | None) -> tuple[str, bool]:
    """The node beside a reformat that is not in the engine's precision, and whether the type changes there."""
    frame, own = table.frame, _own_precision(table)
    sides = [index for index in (after, before) if index is not None]
    if not sides:
        return NO_NODE, False
    precisions = [frame["precision"][index] for index in sides]
    is_type = len(set(precisions)) > 1
    higher = [index for index, precision in zip(sides, precisions, strict=True) if precision != own]
    return _node_of(frame, (higher if is_type and higher else sides)[0]), is_type


def _node_of(frame: pl.DataFrame, index: int) -> str:
    row = frame.row(index, named=True)
    nodes = original_nodes(row["onnx_nodes"])
    return next((node for node in nodes if WEIGHTED_NODE.search(node)), nodes[0] if nodes else str(row["name"]))


def _find_kept_layers(engine: LayerTable) -> Cause | None:
    """Layers with weights or products in a higher precision than the engine's."""
    own = _own_precision(engine)
    precisions = weighted_node_precisions(engine)
    kept = [node for node, used in precisions.items() if own not in used]
    if own == "fp32" or not kept:
        return None
    costs: dict[str, float] = {}
    for names, ms in engine.frame.filter(~pl.col("reformat")).select("onnx_nodes", "ms").iter_rows():
        mine = [node for node in kept if node in (names or ())]
        if mine:
            costs[mine[0]] = costs.get(mine[0], 0.0) + 1000 * float(ms or 0.0)
    cost = sum(costs.values()) if engine.timed else None
    if not _is_relevant(cost, engine, untimed=True):
        return None
    nodes, node_us = _rank(costs, engine.timed)
    used = sorted({precision for node in kept for precision in precisions[node]})
    evidence = (
        f"{len(kept)} of {len(precisions)} layers with weights or products run in {' and '.join(used)}"
        f"{_cost_words(cost, engine)}: {_name(nodes, node_us)}"
    )
    advice = f"let them run in {own} where the accuracy allows (keep= and search decide)"
    return Cause(code="kept-layers", evidence=evidence, cost_us=cost, nodes=nodes, node_us=node_us, advice=advice)


def _find_unfused_layers(rows: pl.DataFrame, engine: LayerTable, baseline: LayerTable) -> Cause | None:
    """Nodes that take more kernels than in the baseline, such as separate quantization."""
    # Reformats stand for themselves, also where they belong to a node.
    more = rows.filter(
        (pl.col("kernels") > pl.col("baseline_kernels"))
        & (pl.col("reformats") <= pl.col("baseline_reformats"))
        & (pl.col("node") != NO_NODE)
        & (pl.col("delta_us").is_null() | (pl.col("delta_us") > 0))
    )
    extra = int((more["kernels"] - more["baseline_kernels"]).sum())
    cost = float(more["delta_us"].sum()) if engine.timed and baseline.timed else None
    if not extra or not _is_relevant(cost, engine, untimed=True):
        return None
    costs = {node: float(delta or 0.0) for node, delta in more.select("node", "delta_us").iter_rows()}
    nodes, node_us = _rank(costs, cost is not None)
    kernels = "1 kernel" if extra == 1 else f"{extra} kernels"
    evidence = (
        f"{kernels} more than {baseline.name} for the same nodes{_cost_words(cost, engine)}: {_name(nodes, node_us)}"
    )
    advice = "quantization runs apart there: keep these nodes in FP16 (keep=), or quantize what precedes them"
    return Cause(code="unfused-layers", evidence=evidence, cost_us=cost, nodes=nodes, node_us=node_us, advice=advice)


def _find_launches(engine: LayerTable) -> Cause | None:
    """Layers so short that their launch is most of their latency; no precision shortens it."""
    if not engine.timed:
        return None
    times = engine.frame.filter(pl.col("ms") > 0)["ms"] * 1000
    short = times.filter(times <= LAUNCH_US)
    cost, total = float(short.sum()), float(times.sum())
    if not total or cost < LAUNCH_BOUND_SHARE * total:
        return None
    evidence = (
        f"launch-bound: {len(short)} of {len(times)} layers take {LAUNCH_US:g} us or less, "
        f"{cost:.0f} of {total:.0f} us, most of it the launch of a kernel"
    )
    advice = (
        "use a larger batch, image or model, or let branches run beside each other (aux_streams=4); a smaller data "
        "type can't shorten launches"
    )
    return Cause(code="launch-bound", evidence=evidence, cost_us=cost, nodes=(), node_us=(), advice=advice)


def _find_small_batch(engine: LayerTable) -> Cause | None:
    """A small batch of a launch-bound engine."""
    batch = engine.facts.get("batch")
    if not isinstance(batch, int) or batch > SMALL_BATCH or _find_launches(engine) is None:
        return None
    return Cause(
        code="small-batch",
        evidence=f"batch {batch} leaves the GPU idle between short layers",
        cost_us=None,
        nodes=(),
        node_us=(),
        advice="export and time a larger batch (batch=8)",
    )


# Words and numbers


def _own_precision(engine: LayerTable) -> str:
    """The precision that an engine is for: the lowest in which a layer with weights or products runs."""
    used = {precision for precisions in weighted_node_precisions(engine).values() for precision in precisions}
    return next((name for name in PRECISION_ORDER if name in used), str(engine.facts.get("precision", "fp32")))


def _is_relevant(cost: float | None, engine: LayerTable, *, untimed: bool) -> bool:
    """Whether a cost is worth naming; without latencies, whether `untimed` says so."""
    return untimed if cost is None else cost >= MIN_SHARE * 1000 * (engine.total or 0.0) and cost > 0


def _rank(costs: Mapping[str, float], timed: bool) -> tuple[tuple[str, ...], tuple[float, ...]]:
    nodes = sorted(costs, key=lambda node: -costs[node])
    return tuple(nodes), tuple(costs[node] for node in nodes) if timed else ()


def _cost_words(cost: float | None, engine: LayerTable) -> str:
    return "" if cost is None or not engine.total else f", {cost:.0f} of {1000 * engine.total:.0f} us"


def _name(nodes: Sequence[str], node_us: Sequence[float]) -> str:
    shown = [
        f"{node} ({node_us[index]:.1f} us)" if node_us else node for index, node in enumerate(nodes[:LISTED_NODES])
    ]
    more = len(nodes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")

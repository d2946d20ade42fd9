"""The work behind search(): repair, rank, judge."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import polars as pl

from trtkit.calibration import Calibration, calibrate
from trtkit.data import open_dataset
from trtkit.errors import CalibrationError, RecipeError
from trtkit.graph.tracing import trace
from trtkit.origin import Origin
from trtkit.progress import Cancel, Progress, Work
from trtkit.recipe import rounded_imgsz
from trtkit.sources import Model, load
from trtkit.tasks import task as task_of
from trtkit.tuning.bench import Bench, how, repaired, shares_of
from trtkit.tuning.blocks import block_of
from trtkit.tuning.costs import cost_of
from trtkit.tuning.equalise import equalised
from trtkit.tuning.lab import Lab
from trtkit.tuning.search import Search
from trtkit.tuning.state import Judge, State
from trtkit.tuning.trials import Mix, Trials

if TYPE_CHECKING:
    import torch

    from trtkit.data import Dataset

__all__ = ["Settings", "find"]

SHARES = (0.02, 0.05, 0.08, 0.11, 0.14, 0.2, 0.3, 0.45, 0.6)
"""Shares of the arithmetic that leave INT8, tried one after the other until the loss is allowed."""

BEYOND = (0.05, 0.14)
"""Shares tried where INT8 throughout is allowed already, to show what slower mixes would gain."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `search` that shape its result; described there."""

    max_drop: float = 0.005
    split: str = "val"
    images: int | None = None
    calibration_images: int = 128
    probe: int = 8
    trials: int = 16
    keep: tuple[str, ...] = ()
    repair: bool = True
    imgsz: int | tuple[int, int] | None = None
    batch: int = 1
    backend: str | None = None
    draws: int = 500
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < 1:
            raise RecipeError(
                f"search with max_drop={self.max_drop}", "it is no loss of a metric", "use e.g. 0.005 of mAP50-95"
            )
        if min(self.calibration_images, self.probe, self.trials, self.batch, self.draws) < 1:
            raise RecipeError(
                f"search with calibration_images={self.calibration_images}, probe={self.probe}, "
                f"trials={self.trials}, batch={self.batch}, draws={self.draws}",
                "there would be nothing to search",
                "use numbers from 1 on",
            )


def find(
    model: Model | str | Path | torch.nn.Module,
    data: str | Path | Dataset,
    settings: Settings,
    calibration: Calibration | str | Path | None,
    state: str | Path | None,
    progress: Progress | None,
    cancel: Cancel | None,
) -> Search:
    """As `search` says."""
    work = Work(progress, cancel)
    loaded = load(model)
    size = rounded_imgsz(settings.imgsz if settings.imgsz is not None else loaded.imgsz, loaded.stride)
    dataset = open_dataset(data, task=loaded.task)
    kept = State(state)
    notes: list[str] = []
    exact = trace(loaded, imgsz=size, batch=1)
    tuned, graph = loaded, exact
    if settings.repair and calibration is None:
        tuned, graph = _equalised(loaded, exact, notes)
    measured = _measured(tuned, dataset, calibration, settings, size, kept, work)
    lab = Lab(graph, len(loaded.names), settings.keep, exact=False)
    bench = Bench(
        lab,
        dataset,
        measured,
        loaded.task,
        size,
        split=settings.split,
        probe=settings.probe,
        seed=settings.seed,
        keep=settings.keep,
        threads=settings.threads,
        work=work,
    )
    mixes = [Mix(label=how(measured), calibration=measured)]
    algorithms: Mapping[str, str] = {}
    if settings.repair:
        mixes, algorithms = repaired(bench, measured, kept)
    noise = bench.noise_of(mixes)
    bases = sorted(mixes, key=lambda mix: -noise[mix.label])
    shares = shares_of(bench, bases[0], kept)
    order = sorted(shares, key=lambda name: -shares[name] / max(lab.macs.get(name, 0), 1))
    judge = Judge(
        dataset=dataset,
        split=settings.split,
        images=settings.images,
        seed=settings.seed,
        state=kept,
        work=work,
        batch=settings.batch,
    )
    with tempfile.TemporaryDirectory() as folder:
        cost = cost_of(tuned, lab, size, Path(folder), batch=settings.batch, backend=settings.backend, work=work)
        wide = graph if settings.batch == 1 else trace(tuned, imgsz=size, batch=settings.batch)
        trials = Trials(
            lab=lab,
            graph=wide,
            judge=judge,
            cost=cost,
            metric=task_of(loaded.task).metric,
            max_drop=settings.max_drop,
            draws=settings.draws,
            seed=settings.seed,
        )
        trials.start()
        for mix in mixes:
            trials.judge_mix(mix, (), noise[mix.label])
        _exclusions(trials, bench, bases, order, settings.trials)
    chosen = trials.chosen()
    return Search(
        trials=trials.frame(),
        layers=_layer_frame(lab, shares, order, algorithms),
        keep=chosen.keep,
        calibration=chosen.mix.calibration if chosen.mix is not None else measured,
        reached=chosen.row["loss"] <= settings.max_drop,
        max_drop=settings.max_drop,
        metric=trials.metric,
        value_float=trials.reference.value,
        cost_source=trials.cost_source,
        notes=tuple(notes),
        equalised=bytes(graph.SerializeToString()) if graph is not exact else None,
        origin=Origin(
            model_hash=tuned.hash,
            data_hash=trials.data_hash,
            runner=trials.runner,
            settings={
                **{field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)},
                "keep": list(settings.keep),
                "imgsz": list(size),
                "data": str(dataset.path),
                "calibration": measured.hash,
            },
            seed=settings.seed,
        ),
    )


def _equalised(model: Model, graph: onnx.ModelProto, notes: list[str]) -> tuple[Model, onnx.ModelProto]:
    """The model with equalised weights where any pair of layers allows it."""
    found = equalised(graph)
    notes.append(str(found))
    if not found.pairs:
        return model, graph
    return load(found.graph, task=model.task, names=dict(model.names), imgsz=model.imgsz), found.graph


def _measured(
    model: Model,
    dataset: Dataset,
    given: Calibration | str | Path | None,
    settings: Settings,
    size: tuple[int, int],
    state: State,
    work: Work,
) -> Calibration:
    """The given calibration, checked, or a new one with histograms."""
    if given is None:
        return calibrate(
            model,
            dataset,
            images=settings.calibration_images,
            histograms=True,
            imgsz=size,
            seed=settings.seed,
            cache=None if state.folder is None else state.folder / "calibrations",
            progress=work.progress,
            cancel=work.cancel,
        )
    found = given if isinstance(given, Calibration) else Calibration.load(given)
    if found.origin.model_hash != model.hash:
        raise CalibrationError(
            f"search {model.stem} with a given calibration",
            f"it was measured on another model ({found.origin.model_hash[:12]}, not {model.hash[:12]})",
            "calibrate this model",
        )
    if settings.repair and not found.histograms:
        raise CalibrationError(
            f"repair {model.stem} with a given calibration",
            "it holds no histograms to read other ranges from",
            "calibrate with histograms=True, or search with repair=False",
        )
    return found


def _exclusions(trials: Trials, bench: Bench, bases: Sequence[Mix], order: Sequence[str], most: int) -> None:
    """Judge mixes with more and more layers kept high, until one is allowed.

    Args:
        trials: Judges.
        bench: Measures.
        bases: What layers are taken out of, the quietest first.
        order: Layers in the order in which they go.
        most: The largest number of trials.
    """
    done = trials.any_allowed()
    seen: set[int] = {0}
    for share in BEYOND if done else SHARES:
        layers = _up_to(bench.lab, order, share)
        if len(layers) in seen:
            continue
        seen.add(len(layers))
        allowed = False
        # Close to the limit chance decides between two mixes that are equally quiet: both get theirs.
        for base in bases[:1] if done else bases[:2]:
            if len(trials.rows) >= most:
                return
            mix = dataclasses.replace(base, label=f"{base.label}, {len(layers)} layers kept")
            allowed = trials.judge_mix(mix, layers, bench.noise_without(base, layers)) or allowed
        if allowed and not done:
            return


def _up_to(lab: Lab, order: Sequence[str], share: float) -> list[str]:
    """The first layers of an order that make up at most a share of the arithmetic, and at least one."""
    total, sum_, taken = sum(lab.macs.values()), 0, list[str]()
    for name in order:
        sum_ += lab.macs.get(name, 0)
        if taken and sum_ > share * total:
            break
        taken.append(name)
    return taken


def _layer_frame(
    lab: Lab, shares: Mapping[str, float], order: Sequence[str], algorithms: Mapping[str, str]
) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for name in lab.whole.layers:
        group = lab.whole.scale_of.get(lab.view.nodes[name].input[0], ())
        rows.append(
            {
                "node": name,
                "block": block_of(name),
                "macs": lab.macs.get(name),
                "noise": shares[name],
                "ranges": next((algorithms[tensor] for tensor in group if tensor in algorithms), None),
                "excluded_as": order.index(name) + 1,
            }
        )
    return pl.DataFrame(
        rows,
        schema={
            **dict.fromkeys(("node", "block"), pl.String),
            "macs": pl.Int64,
            "noise": pl.Float64,
            "ranges": pl.String,
            "excluded_as": pl.Int64,
        },
    )

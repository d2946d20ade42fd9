"""What INT8 loses on thousands of scenes: ours, candidates for it, onnxruntime's and ModelOpt's; run by hand.

    python tools/scenes.py write fitting --train 512 --val 1000 --seed 931
    python tools/scenes.py write claims --train 0 --val 4000 --seed 1032
    python benchmarks/refinement.py prepare --models shared/models --fitting fitting --work graphs
    python benchmarks/refinement.py evaluate --graphs graphs --scenes fitting --seed 931 --work work --out choosing
    python benchmarks/refinement.py evaluate --graphs graphs --scenes claims --seed 1032 --work work --out claims
    python benchmarks/refinement.py write claims.json choosing.json

`prepare` calibrates every quantizer on `train` of `fitting` and writes a file of graphs for each model; --modelopt
names a Python that has `nvidia-modelopt[onnx]`, which pins versions of its own. `evaluate` needs no torch: ONNX Runtime
runs all graphs of a model on the same scenes, each process on one core, some hundred scenes at a time, so that a run
that stops after --minutes has paired results of the scenes that are done; the same command then goes on from there.
`write` makes `results/refinement.{json,md}` of evaluations.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import polars as pl
from records import about, line_of, table, write
from refinement_candidates import (
    POWER,
    collect_channel_ranges,
    make_candidates,
    make_early_candidates,
    make_head_candidates,
    measure_scale_noise,
)
from refinement_graphs import clip_activations, leave_activations, rescale_channels, widen_activations

import trtkit as tk
from trtkit.calibration import DEFAULTS
from trtkit.calibration.sampling import load_input_batches, select_calibration_images
from trtkit.data import open_dataset
from trtkit.evaluation.bootstrap import ResampledMetric, resample_metric
from trtkit.evaluation.evaluation import Evaluation, evaluate
from trtkit.evaluation.significance import compute_loss_interval
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.graph.torch_export import trace
from trtkit.models.onnx_model import from_proto
from trtkit.progress import Reporter
from trtkit.tuning.corrections import compute_bias_corrections
from trtkit.writing import write_bytes

if TYPE_CHECKING:
    from trtkit.models import Model

MODELS = (
    "yolo11n", "yolo26n", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolo26n-seg", "yolo26n-pose", "yolo26n-obb",
    "yolo11n-cls",
)  # fmt: skip

PEER_IMAGES = 64
"""Calibration images of onnxruntime and ModelOpt, which hold them or their activations in memory."""

CHANNEL_IMAGES = 128
"""Calibration images for the extremes of channels."""

NOISE_IMAGES = 8
"""Calibration images for the noise of single scales."""

POWERS = (0.5, 1.0)
"""Other powers of the channels' ranges in their factors, for the first two models alone."""

RESAMPLES = 1000

FP32, DEFAULT = "fp32", "trtkit, default"

PEERS = ("onnxruntime quantize_static", "ModelOpt max", "ModelOpt entropy")

ALGORITHMS = {"MSE": ("mse", None), "percentile 99.99": ("percentile", 99.99), "min-max": ("minmax", None)}
"""Other ranges of the same calibration."""

MODELOPT = """
import sys
import numpy
from modelopt.onnx.quantization import quantize
source, images, method, target = sys.argv[1:]
quantize(source, quantize_mode="int8", calibration_data=numpy.load(images), calibration_method=method,
         calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=target)
"""
"""ModelOpt as Ultralytics calls it for TensorRT 11, and as it comes ("entropy")."""


# Preparing


def calibration_inputs(model: Model, data: Path, count: int) -> Iterator[np.ndarray]:
    """Calibration images, (1, C, H, W)."""
    _, _, paths = select_calibration_images(
        data, task=model.task, channels=model.channels, split="train", calibration_images=count, fraction=1.0,
        seed=DEFAULTS.seed,
    )  # fmt: skip
    return load_input_batches(paths, preprocess=model.preprocess, size=model.imgsz, batch=1, skipped=[])


def quantize_by_onnxruntime(source: Path, inputs: Iterator[np.ndarray], target: Path) -> None:
    """`quantize_static` as its documentation calls it: Q/DQ, min-max, every operator that it knows."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(inputs, None)
            return None if image is None else {"images": image}

    prepared = target.with_suffix(".pre.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(target), Reader(), per_channel=True, weight_type=QuantType.QInt8)
    prepared.unlink()


def quantize_by_modelopt(python: Path, source: Path, images: Path, method: str, target: Path) -> None:
    # It writes the file that it reads anew, and others beside it.
    with tempfile.TemporaryDirectory() as folder:
        copied, written = Path(shutil.copy(source, folder)), Path(folder) / "int8.onnx"
        subprocess.run(
            [str(python), "-c", MODELOPT, str(copied), str(images), method, str(written)],
            check=True,
            capture_output=True,
        )
        shutil.move(written, target)


def prepare_model(name: str, words: argparse.Namespace) -> dict[str, onnx.ModelProto]:
    """Each variant's graph; slow steps are kept in the work folder."""
    model = tk.load(words.models / f"{name}.pt")
    data = words.fitting / model.task if model.task == "classify" else words.fitting / model.task / "data.yaml"
    folder = words.work / name
    folder.mkdir(parents=True, exist_ok=True)
    source, images = folder / "fp32.onnx", folder / "images.npy"
    if not source.is_file():
        onnx.save(trace(model, imgsz=model.imgsz, batch=1), source)
    graph = onnx.load(source)
    calibration = tk.calibrate(model, data, split="train", histograms=True, cache_dir=words.work / "calibrations")
    placement, ranges = plan_qdq(graph), calibration.ranges
    channels_file = folder / "channels.npz"
    if not channels_file.is_file():
        measured = collect_channel_ranges(graph, placement.tensors, calibration_inputs(model, data, CHANNEL_IMAGES))
        np.savez(channels_file, **{name: np.stack(sides) for name, sides in measured.items()})  # type: ignore[arg-type]
    with np.load(channels_file) as file:
        channels = {name: (file[name][0], file[name][1]) for name in placement.tensors}
    int8 = insert_qdq(graph, ranges)
    graphs = {
        FP32: graph, DEFAULT: int8, "no clipping": widen_activations(int8, 1),
        "half a step, no clipping": widen_activations(int8, 2),
        "a quarter of a step, no clipping": widen_activations(int8, 4),
        "clipping alone": clip_activations(int8), "weights alone": leave_activations(int8),
    }  # fmt: skip
    calibrated = {
        label: calibration.with_algorithm(algorithm, percentile=percentile).ranges
        for label, (algorithm, percentile) in ALGORITHMS.items()
    }
    rescaled, new_ranges, _ = rescale_channels(graph, ranges, channels, power=POWER)
    for label, corrected, its_ranges in (
        ("biases corrected", graph, ranges), ("channels scaled, biases corrected", rescaled, new_ranges),
    ):  # fmt: skip
        target = folder / f"{label.replace(', ', '-').replace(' ', '-')}.onnx"
        if not target.is_file():
            inputs = calibration_inputs(model, data, PEER_IMAGES)
            its_placement = plan_qdq(corrected)
            corrections = compute_bias_corrections(
                corrected, its_placement, its_ranges, inputs, PEER_IMAGES, Reporter(), threads=1
            )
            onnx.save(insert_qdq(corrected, its_ranges, corrections=corrections), target)
        graphs[label] = onnx.load(target)
    powers = POWERS if name in MODELS[:2] else ()
    refined = tk.calibrate(
        model, data, split="train", histograms=True, refine="ranges", cache_dir=words.work / "calibrations"
    )
    calibrated["least noise"] = refined.ranges
    noise = {}
    for name_of, its_ranges in (("noise", ranges), ("noise-refined", refined.ranges)):
        noise_file = folder / f"{name_of}.json"
        if not noise_file.is_file():
            inputs = list(calibration_inputs(model, data, NOISE_IMAGES))
            noise_file.write_text(json.dumps(measure_scale_noise(graph, its_ranges, len(model.names), inputs)))
        noise[name_of] = json.loads(noise_file.read_text())
    graphs.update(make_head_candidates(graph, refined.ranges, noise["noise-refined"]))
    graphs.update(make_early_candidates(int8))
    graphs.update(make_candidates(graph, {"default": ranges, **calibrated}, channels, noise["noise"], powers))
    target = folder / "onnxruntime.onnx"
    if not target.is_file():
        quantize_by_onnxruntime(source, calibration_inputs(model, data, PEER_IMAGES), target)
    graphs["onnxruntime quantize_static"] = onnx.load(target)
    for method in ("max", "entropy") if words.modelopt else ():
        target = folder / f"modelopt-{method}.onnx"
        if not target.is_file():
            if not images.is_file():
                np.save(images, np.concatenate(list(calibration_inputs(model, data, PEER_IMAGES))))
            quantize_by_modelopt(words.modelopt, source, images, method, target)
        graphs[f"ModelOpt {method}"] = onnx.load(target)
    facts = {prop.key: prop.value for prop in graph.metadata_props}
    for one in graphs.values():
        # ModelOpt drops what a file says of its model.
        for key, value in facts.items():
            if key not in {prop.key for prop in one.metadata_props}:
                one.metadata_props.add(key=key, value=value)
    return graphs


def pack(graphs: Mapping[str, onnx.ModelProto], path: Path) -> None:
    """Write graphs to one file, constants that several of them hold once."""
    constants: dict[str, bytes] = {}
    entries = {"labels.json": json.dumps(list(graphs)).encode()}
    for number, graph in enumerate(graphs.values()):
        light = onnx.ModelProto()
        light.CopyFrom(graph)
        for tensor in light.graph.initializer:
            if len(tensor.raw_data) > 1024:
                digest = hashlib.sha256(tensor.raw_data).hexdigest()
                constants[digest] = tensor.raw_data
                tensor.doc_string, tensor.raw_data = digest, b""
        entries[f"{number}.onnx"] = light.SerializeToString()
    # One stream: the graphs are nearly equal.
    with tarfile.open(path, "w:xz") as file:
        for name, data in {**entries, **constants}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))


def unpack(path: Path, folder: Path) -> dict[str, Path]:
    """The graphs of a file, by label, as ONNX files in a folder; there already are those of an earlier call."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path) as file:
        entries = {entry.name: file.extractfile(entry).read() for entry in file}  # type: ignore[union-attr]
    files = {}
    for number, label in enumerate(json.loads(entries["labels.json"])):
        graph = onnx.ModelProto.FromString(entries[f"{number}.onnx"])
        for tensor in graph.graph.initializer:
            if tensor.doc_string in entries:
                tensor.raw_data, tensor.doc_string = entries[tensor.doc_string], ""
        data = graph.SerializeToString(deterministic=True)
        files[label] = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.onnx"
        if not files[label].is_file():
            write_bytes(files[label], data)
    return files


def prepare(words: argparse.Namespace) -> None:
    for name in words.only:
        start = time.monotonic()
        graphs = prepare_model(name, words)
        path = words.work / f"{name}.tar.xz"
        pack(graphs, path)
        megabytes = path.stat().st_size / 1e6
        print(f"{name}: {len(graphs)} graphs, {megabytes:.1f} MB, {time.monotonic() - start:.0f} s", flush=True)


# Evaluating


@dataclasses.dataclass(frozen=True)
class MergedEvaluation:
    """Evaluations of parts of a split, as the bootstrap needs them."""

    metrics: dict[str, float]
    per_class: pl.DataFrame
    per_image: pl.DataFrame
    detections: pl.DataFrame
    labels: pl.DataFrame


def merge(parts: list[Any]) -> MergedEvaluation:
    """The parts one after the other, their images numbered through."""
    starts = np.cumsum([0, *(len(part.per_image) for part in parts)])
    frames = {
        name: pl.concat(
            getattr(part, name).with_columns(pl.col("image") + int(start))
            for part, start in zip(parts, starts, strict=False)
        )
        for name in ("per_image", "detections", "labels")
    }
    return MergedEvaluation(metrics=parts[0].metrics, per_class=parts[0].per_class, **frames)


@dataclasses.dataclass(frozen=True)
class Part:
    """One graph on some of the scenes."""

    graph: Path
    task: str
    scenes: Path
    start: int
    stop: int
    folder: Path
    deadline: float


def evaluate_part(part: Part) -> bool:
    """Evaluate a graph on some scenes, unless that is done or time is over; whether it is done."""
    if (part.folder / f"{Evaluation.kind}.json").is_file():
        return True
    if time.time() > part.deadline:
        return False
    dataset = open_dataset(data_of(part.scenes, part.task), task=part.task)
    # The class of a crop is its folder's: a sample of them in one step, which is short.
    if part.task != "classify":
        dataset = dataclasses.replace(dataset, splits={"val": dataset.images("val")[part.start : part.stop]})
    with tk.open(onnx.load(part.graph)) as runner:
        evaluation = evaluate(runner, dataset, "val", batch=1, eval_images=part.stop - part.start, seed=0)
    evaluation.save(part.folder)
    return True


def resample(folders: list[Path]) -> tuple[int, dict[str, ResampledMetric]]:
    """Each metric on resamples of the images of all parts, and their number."""
    merged = merge([Evaluation.load(folder) for folder in folders])
    metrics = [name for name in merged.metrics if name.startswith("mAP50-95(") or name == "top1"]
    return len(merged.per_image), {name: resample_metric(merged, name, resamples=RESAMPLES) for name in metrics}


def data_of(scenes: Path, task: str) -> Path:
    return scenes / task if task == "classify" else scenes / task / "data.yaml"


def pin(cores: Any) -> None:
    """One core for each process: trtkit's threads follow the cores that a process may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})


def run(words: argparse.Namespace) -> None:
    deadline = time.time() + 60 * words.minutes
    jobs: list[tuple[int, int, str, str, Part]] = []
    for place, name in enumerate(words.only):
        path = words.graphs / f"{name}.tar.xz"
        if not path.is_file():
            print(f"{name}: no graphs", flush=True)
            continue
        files = unpack(path, words.work / "graphs" / name)
        task = from_proto(onnx.load(files[FP32])).task
        total = min(len(open_dataset(data_of(words.scenes, task), task=task).images("val")), words.most)
        step = total if task == "classify" else words.chunk
        for label, file in files.items():
            if words.labels and label not in (FP32, DEFAULT, *PEERS, *words.labels):
                continue
            for start in range(0, total, step):
                stop = min(start + step, total)
                folder = words.work / "parts" / words.out.name / name / file.stem / f"{start}-{stop}"
                part = Part(file, task, words.scenes, start, stop, folder, deadline)
                jobs.append((start, place, name, label, part))
    # Scenes first, so that a run that stops has all graphs of a model on the same ones.
    jobs.sort(key=lambda job: job[:2])
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(words.processes))
    for number in range(words.processes):
        cores.put(allowed[number % len(allowed)])
    began = time.monotonic()
    with context.Pool(words.processes, initializer=pin, initargs=(cores,)) as pool:
        done = []
        for number, finished in enumerate(pool.imap(evaluate_part, [job[-1] for job in jobs]), 1):
            done.append(finished)
            if number % max(1, len(jobs) // 50) == 0:
                print(f"{number} of {len(jobs)} parts, {time.monotonic() - began:.0f} s", flush=True)
        unfinished = {job[2:3] + job[:1] for job, finished in zip(jobs, done, strict=True) if not finished}
        folders: dict[tuple[str, str], list[Path]] = {}
        for start, _, name, label, part in jobs:
            if (name, start) not in unfinished:
                folders.setdefault((name, label), []).append(part.folder)
        results = dict(zip(folders, pool.map(resample, folders.values(), chunksize=1), strict=True))
    save(words, results, f"{len(unfinished)} of {len({job[2:3] + job[:1] for job in jobs})} parts left")


def save(words: argparse.Namespace, results: Mapping[tuple[str, str], Any], left: str) -> None:
    """Losses with intervals as JSON, and the resamples themselves, so that any two graphs can be compared."""
    models: dict[str, Any] = {}
    resamples = []
    for (name, label), (images, metrics) in results.items():
        one = models.setdefault(name, {"images": images, "rows": []})
        for metric, resampled in metrics.items():
            resamples.append({"model": name, "metric": metric, "quantizer": label, "values": resampled.values.tolist()})
            if label == FP32:
                continue
            row: dict[str, Any] = {"metric": metric, "quantizer": label}
            for name_of, reference in (("loss", FP32), ("more", DEFAULT)):
                references = results[name, reference][1]
                row["fp32" if reference == FP32 else "default"] = references[metric].value
                interval = compute_loss_interval(references[metric], resampled)
                row[name_of] = [interval.value, interval.low, interval.high]
            one["rows"].append(row)
    words.out.with_suffix(".json").write_text(
        json.dumps({"seed": words.seed, "models": models, "about": about(command_of(words))})
    )
    frame = pl.DataFrame(resamples).with_columns(pl.col("values").cast(pl.List(pl.Float32)))
    frame.write_parquet(words.out.with_suffix(".parquet"))
    counts = [f"{name} on {one['images']}" for name, one in models.items()]
    print(f"{', '.join(counts)} images; {left}")


def command_of(words: argparse.Namespace) -> str:
    labels = "".join(f' "{label}"' for label in words.labels or ())
    return (
        f"evaluate --graphs graphs --scenes scenes --seed {words.seed} --work work --out {words.out.name}"
        f" --only {' '.join(words.only)} --most {words.most}{' --labels' + labels if labels else ''}"
    )


# Writing


def spans(interval: list[float]) -> str:
    value, low, high = interval
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def rows_of(name: str, one: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name, str(one["images"]), row["metric"], f"{row['fp32']:.4f}", row["quantizer"],
            spans(row["loss"]), "" if row["quantizer"] == DEFAULT else spans(row["more"]),
        ]
        for row in one["rows"]
    ]  # fmt: skip


def write_page(words: argparse.Namespace) -> None:
    """A table of every evaluation, of the last first."""
    runs = [json.loads(path.read_text()) for path in words.found]
    columns = ["model", "images", "metric", "FP32", "quantizer", "loss (95 % interval)", "beyond the default's"]
    lines = [
        "# What INT8 loses on scenes that nothing was fitted to",
        "",
        f"trtkit calibrates by {DEFAULTS.algorithm} {DEFAULTS.percentile:g} on {DEFAULTS.calibration_images} images of "
        f"`train`, seed 931, the others on {PEER_IMAGES} of them; all graphs of a model are evaluated on the same "
        "scenes by ONNX Runtime. In brackets the 95 % interval of a bootstrap over images, paired with FP32; a "
        "negative loss is a gain by chance. Seeds from 1000 on are for claims; nothing was fitted or chosen on them.",
    ]
    for run in runs:
        rows = [row for name, one in run["models"].items() for row in rows_of(name, one)]
        about_run = run["about"]
        lines += ["", f"## Seed {run['seed']}", "", line_of(about_run), "", f"`{about_run['command']}`", ""]
        lines += table(columns, rows)
    write("refinement", {"runs": runs}, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("prepare")
    first.set_defaults(function=prepare)
    first.add_argument("--models", type=Path, required=True, help="folder of the checkpoints")
    first.add_argument("--fitting", type=Path, required=True, help="scenes to calibrate on")
    first.add_argument("--modelopt", type=Path, help="a Python with nvidia-modelopt[onnx]")
    second = commands.add_parser("evaluate")
    second.set_defaults(function=run)
    second.add_argument("--graphs", type=Path, required=True, help="folder of what prepare wrote")
    second.add_argument("--scenes", type=Path, required=True, help="scenes to evaluate on")
    second.add_argument("--out", type=Path, required=True, help="name of the .json and .parquet to write")
    second.add_argument("--labels", nargs="*", help="candidates to evaluate beside default and peers; all if not given")
    second.add_argument("--most", type=int, default=4000, help="most scenes to evaluate on, or crops of classify")
    second.add_argument("--chunk", type=int, default=100, help="scenes per step")
    second.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    second.add_argument("--minutes", type=float, default=1e6, help="begin no step after so many")
    for one in (first, second):
        one.add_argument("--work", type=Path, required=True, help="folder of finished steps; a run resumes there")
        one.add_argument("--only", nargs="*", default=list(MODELS), help="names of models")
    second.add_argument("--seed", type=int, required=True, help="that the scenes were written with")
    third = commands.add_parser("write")
    third.set_defaults(function=write_page)
    third.add_argument("found", type=Path, nargs="+", help="JSON files of evaluate")
    words = parser.parse_args()
    words.function(words)


if __name__ == "__main__":
    main()

"""What INT8 loses on thousands of scenes: ours, ours refined, onnxruntime's and ModelOpt's; run by hand.

    python tools/scenes.py write fitting --train 512 --val 1000 --seed 931
    python tools/scenes.py write claims --train 0 --val 4000 --seed 1031
    python benchmarks/refinement.py --models shared/models --fitting fitting --claims claims --work work

Every quantizer calibrates on `train` of `fitting` and is evaluated on `val` of `claims`, of which nothing was fitted or
chosen. ONNX Runtime evaluates all graphs, some hundred scenes at a time and every graph on them, so that a run that
stops after --minutes has paired results of the scenes that are done; the same command then goes on where it stopped.
Refined are the default ranges: with biases corrected; with a constant subtracted before Q/DQ where only 1x1
convolutions read a tensor, and added back in their biases, so that SiLU's one-sided values use all codes; and, as a
bound which no TensorRT builds, with a zero point for every tensor.
--modelopt names a Python that has `nvidia-modelopt[onnx]`, which pins versions of its own. Writes
`results/refinement.{json,md}`; a run for some models keeps the rows of the others.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import polars as pl
from onnx import helper, numpy_helper
from records import about, earlier, line_of, table, write

import trtkit as tk
from trtkit.calibration import DEFAULTS, Calibration
from trtkit.calibration.sampling import load_input_batches, select_calibration_images
from trtkit.data import open_dataset
from trtkit.evaluation.bootstrap import resample_metric
from trtkit.evaluation.significance import compute_loss_interval
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.editing import remove_unused_constants
from trtkit.graph.qdq import INT8_MAX, QDQPlacement, insert_qdq, passes_int8, plan_qdq
from trtkit.graph.torch_export import trace
from trtkit.models.onnx_model import from_proto
from trtkit.progress import Reporter
from trtkit.tuning.corrections import compute_bias_corrections
from trtkit.tuning.measurement import CachedEvaluator, ResultCache

if TYPE_CHECKING:
    from trtkit.models import Model

MODELS = (
    "yolo11n", "yolo26n", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolo11n-cls", "yolo26n-seg", "yolo26n-pose",
    "yolo26n-obb",
)  # fmt: skip

PEER_IMAGES = 64
"""Calibration images of onnxruntime and ModelOpt, which hold them or their activations in memory."""

RESAMPLES = 1000

DEFAULT = "trtkit, default"

REFINED = ("biases corrected", "1x1 inputs shifted", "zero points (bound)")
"""Experiments on the default ranges."""

MODELOPT = """
import sys
import numpy
from modelopt.onnx.quantization import quantize
source, images, method, target = sys.argv[1:]
quantize(source, quantize_mode="int8", calibration_data=numpy.load(images), calibration_method=method,
         calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=target)
"""
"""ModelOpt as Ultralytics calls it for TensorRT 11, and as it comes ("entropy")."""


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


def calibration_inputs(model: Model, data: Path) -> Iterator[np.ndarray]:
    """The peers' calibration images, (1, C, H, W)."""
    _, _, paths = select_calibration_images(
        data, task=model.task, channels=model.channels, split="train", calibration_images=PEER_IMAGES, fraction=1.0,
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


def find_shiftable_groups(graph: onnx.ModelProto, placement: QDQPlacement) -> list[tuple[str, ...]]:
    """Scale groups that nothing but 1x1 convolutions reads, through nodes that move values."""
    index, layers, tensors = GraphIndex(graph), set(placement.layers), set(placement.tensors)

    def can_shift(node: onnx.NodeProto) -> bool:
        if node.name in layers:
            return node.op_type == "Conv" and len(node.input) > 2 and index.array(node.input[1]).shape[2:] == (1, 1)
        # Others read the tensor before its constant is subtracted, but not behind a node that moves shifted values.
        return passes_int8(node) and node.output[0] in tensors

    return [
        group
        for group in dict.fromkeys(placement.scale_groups.values())
        if all(can_shift(node) for name in group for node in index.consumers[name])
    ]


def shift_activations(
    int8: onnx.ModelProto,
    placement: QDQPlacement,
    groups: list[tuple[str, ...]],
    ranges: Mapping[str, tuple[float, float]],
) -> onnx.ModelProto:
    """Subtract the middle of a range before Q/DQ and add its product with the weights to the readers' biases."""
    result = copy.deepcopy(int8)
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    producers = {name: node for node in result.graph.node for name in node.output}
    middles: dict[str, float] = {}
    for group in groups:
        low, high = (extreme(ranges[name][side] for name in group) for side, extreme in ((0, min), (1, max)))
        for name in group:
            middles[name] = (low + high) / 2
            scale = np.array((high - low) / 2 / INT8_MAX, np.float32)
            constants[f"{name}_scale"].CopyFrom(numpy_helper.from_array(scale, f"{name}_scale"))
    nodes = []
    for node in result.graph.node:
        source = node.input[0] if node.input else ""
        if node.op_type == "QuantizeLinear" and source in middles and not passes_int8(producers[source]):
            middle = np.array(-middles[source], np.float32)
            result.graph.initializer.append(numpy_helper.from_array(middle, f"{source}_middle"))
            nodes.append(
                helper.make_node("Add", [source, f"{source}_middle"], [f"{source}_shifted"], f"{source}_Shift")
            )
            node.input[0] = f"{source}_shifted"
        if node.name in placement.layers and source.removesuffix("_dq") in middles:
            values, scales = (numpy_helper.to_array(constants[name]) for name in producers[node.input[1]].input[:2])
            sums = (values.astype(np.float32) * scales.reshape(-1, 1, 1, 1)).sum((1, 2, 3))
            bias = numpy_helper.to_array(constants[node.input[2]]) + middles[source.removesuffix("_dq")] * sums
            node.input[2] = f"{node.name}_shifted_bias"
            result.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), node.input[2]))
        nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    remove_unused_constants(result.graph)
    return result


def use_zero_points(
    int8: onnx.ModelProto, placement: QDQPlacement, ranges: Mapping[str, tuple[float, float]]
) -> onnx.ModelProto:
    """UINT8 with a zero point for every activation."""
    result = copy.deepcopy(int8)
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    zero_points = {}
    for name, group in placement.scale_groups.items():
        low = min(0.0, *(ranges[member][0] for member in group))
        scale = (max(ranges[member][1] for member in group) - low) / 255
        constants[f"{name}_scale"].CopyFrom(numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"))
        zero_points[f"{name}_scale"] = f"{name}_zero_point"
        zero = np.array(round(-low / scale), np.uint8)
        result.graph.initializer.append(numpy_helper.from_array(zero, f"{name}_zero_point"))
    for node in result.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] in zero_points:
            node.input[2] = zero_points[node.input[1]]
    remove_unused_constants(result.graph)
    return result


def refine(graph: onnx.ModelProto, calibration: Calibration, data: Path, model: Model) -> dict[str, onnx.ModelProto]:
    """The experiments, by name."""
    placement, ranges = plan_qdq(graph), calibration.ranges
    int8 = insert_qdq(graph, ranges, placement=placement)
    corrections = compute_bias_corrections(
        graph, placement, ranges, calibration_inputs(model, data), PEER_IMAGES, Reporter(), threads=1
    )
    groups = find_shiftable_groups(graph, placement)
    return {
        "biases corrected": insert_qdq(graph, ranges, placement=placement, corrections=corrections),
        "1x1 inputs shifted": shift_activations(int8, placement, groups, ranges),
        "zero points (bound)": use_zero_points(int8, placement, ranges),
    }


def make_graphs(name: str, words: argparse.Namespace) -> dict[str, onnx.ModelProto]:
    """Each variant's graph, from the work folder or made now."""
    model = tk.load(words.models / f"{name}.pt")
    data = words.fitting / model.task if model.task == "classify" else words.fitting / model.task / "data.yaml"
    folder = words.work / name
    folder.mkdir(parents=True, exist_ok=True)
    source, images = folder / "fp32.onnx", folder / "images.npy"
    if not source.is_file():
        onnx.save(trace(model, imgsz=model.imgsz, batch=1), source)
    graphs = {"fp32": onnx.load(source)}
    calibration = tk.calibrate(model, data, split="train", histograms=True, cache_dir=words.work / "calibrations")
    graphs[DEFAULT] = insert_qdq(graphs["fp32"], calibration.ranges)
    refined = {label: folder / f"{label.replace(' ', '-')}.onnx" for label in REFINED}
    if not all(path.is_file() for path in refined.values()):
        for label, graph in refine(graphs["fp32"], calibration, data, model).items():
            onnx.save(graph, refined[label])
    graphs |= {label: onnx.load(path) for label, path in refined.items()}
    target = folder / "onnxruntime.onnx"
    if not target.is_file():
        quantize_by_onnxruntime(source, calibration_inputs(model, data), target)
    graphs["onnxruntime quantize_static"] = onnx.load(target)
    for method in ("max", "entropy") if words.modelopt else ():
        target = folder / f"modelopt-{method}.onnx"
        if not target.is_file():
            if not images.is_file():
                np.save(images, np.concatenate(list(calibration_inputs(model, data))))
            quantize_by_modelopt(words.modelopt, source, images, method, target)
        graphs[f"ModelOpt {method}"] = onnx.load(target)
    facts = {prop.key: prop.value for prop in graphs["fp32"].metadata_props}
    for graph in graphs.values():
        # ModelOpt drops what a file says of its model.
        for key, value in facts.items():
            if key not in {prop.key for prop in graph.metadata_props}:
                graph.metadata_props.add(key=key, value=value)
    return graphs


def measure(name: str, words: argparse.Namespace, deadline: float) -> dict[str, Any] | None:
    """A model's losses on the scenes that every graph has been evaluated on; None before the first of them."""
    graphs = make_graphs(name, words)
    task = from_proto(graphs["fp32"]).task
    data = words.claims / task if task == "classify" else words.claims / task / "data.yaml"
    dataset = open_dataset(data, task=task)
    images = dataset.images("val")
    total = min(len(images), words.scenes)
    parts: dict[str, list[Any]] = {label: [] for label in graphs}
    for start in range(0, total, total if task == "classify" else words.chunk):
        # The class of a crop is its folder's: a sample of them in one step, which is short.
        chunk = (
            dataset
            if task == "classify"
            else dataclasses.replace(dataset, splits={"val": images[start : min(start + words.chunk, total)]})
        )
        evaluator = CachedEvaluator(
            dataset=chunk, split="val", eval_images=total, seed=0, cache=ResultCache(words.work), reporter=Reporter()
        )
        found = {}
        for label, graph in graphs.items():
            if time.monotonic() > deadline:
                break
            found[label] = evaluator(graph, label)
        if len(found) < len(graphs):
            break
        for label, evaluation in found.items():
            parts[label].append(evaluation)
    if not parts["fp32"]:
        return None
    merged = {label: merge(several) for label, several in parts.items()}
    rows = []
    for metric in merged["fp32"].metrics:
        if not metric.startswith("mAP50-95(") and metric != "top1":
            continue
        resampled = {label: resample_metric(one, metric, resamples=RESAMPLES) for label, one in merged.items()}
        for label, one in resampled.items():
            if label != "fp32":
                row: dict[str, Any] = {"metric": metric, "fp32": resampled["fp32"].value, "quantizer": label}
                for name_of, reference in (("loss", "fp32"), ("more", DEFAULT)):
                    interval = compute_loss_interval(resampled[reference], one)
                    row[name_of] = [interval.value, interval.low, interval.high]
                rows.append(row)
    return {"images": len(merged["fp32"].per_image), "of": total, "rows": rows, "about": about(command_of(words))}


def command_of(words: argparse.Namespace) -> str:
    return "--models shared/models --fitting fitting --claims claims --work work" + (
        " --modelopt python" if words.modelopt else ""
    )


def spans(interval: list[float]) -> str:
    value, low, high = interval
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def page(models: dict[str, Any]) -> list[str]:
    last = list(models.values())[-1]
    columns = ["model", "images", "metric", "FP32", "quantizer", "loss (95 % interval)", "beyond the default's"]
    cells = [
        [
            name, str(one["images"]), row["metric"], f"{row['fp32']:.4f}", row["quantizer"],
            spans(row["loss"]), "" if row["quantizer"] == DEFAULT else spans(row["more"]),
        ]
        for name, one in models.items() for row in one["rows"]
    ]  # fmt: skip
    return [
        "# What INT8 loses on scenes that nothing was fitted to",
        "",
        line_of(last["about"]),
        "",
        f"`{last['about']['command']}`",
        "",
        f"trtkit calibrates by {DEFAULTS.algorithm} {DEFAULTS.percentile:g} on {DEFAULTS.calibration_images} images of "
        f"`train`, seed 931, the others on {PEER_IMAGES} of them; all graphs are evaluated on `val` of seed 1031 by "
        "ONNX Runtime, on as many scenes as the table says. In brackets the 95 % interval of a bootstrap over images, "
        "paired with FP32; a negative loss is a gain by chance.",
        "",
        *table(columns, cells),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--fitting", type=Path, required=True, help="scenes to calibrate on")
    parser.add_argument("--claims", type=Path, required=True, help="scenes to evaluate on")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of graphs and evaluations; a run resumes there"
    )
    parser.add_argument("--only", nargs="*", default=list(MODELS), help="names of models")
    parser.add_argument("--modelopt", type=Path, help="a Python with nvidia-modelopt[onnx]")
    parser.add_argument("--scenes", type=int, default=4000, help="most scenes to evaluate on, or crops of classify")
    parser.add_argument("--chunk", type=int, default=125, help="scenes per step")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no step after so many")
    words = parser.parse_args()
    words.work = words.work.absolute()
    deadline = time.monotonic() + 60 * words.minutes
    for name in words.only:
        one = measure(name, words, deadline)
        if one is not None:
            models = {**earlier("refinement").get("models", {}), name: one}
            models = {known: models[known] for known in MODELS if known in models}
            write("refinement", {"models": models}, page(models))
            print(f"{name}: {one['images']} of {one['of']} scenes", flush=True)
        if time.monotonic() > deadline:
            print("out of time: the same command goes on", flush=True)
            return


if __name__ == "__main__":
    main()

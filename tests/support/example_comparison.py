"""A comparison with known numbers, for which nothing ran."""

import random

import polars as pl

from trtkit.comparison.comparison import Comparison
from trtkit.evaluation.latency import summarize_runs
from trtkit.evaluation.significance import DIFFERENCE_COLUMNS
from trtkit.results import Provenance

RUNNERS = {"cpu": ("ONNX Runtime 1.32.0 CPU", False, "wall"), "gpu": ("TensorRT 8.6.0 NVIDIA H100", True, "gpu")}
ULTRALYTICS, PYCOCOTOOLS = "mAP50-95(B)", "pycocotools/AP"
ACCURACY = {"fp32": (0.7612, 0.7421), "fp16": (0.7612, 0.7420), "int8": (0.7571, 0.7370)}
SPEED = {"fp32": 34.0, "fp16": 41.0, "int8": 71.0}
SIZE = {"fp32": (10.6, 11.9), "fp16": (5.4, 6.8), "int8": (3.2, 4.9)}


def example_comparison(
    *, where="cpu", batches=(1,), built=True, split="train", changes=None, groups=(), speed=SPEED, **about
):
    """A comparison of three precisions.

    Args:
        where: "cpu" or "gpu".
        batches: Batch sizes.
        built: Whether engines were built.
        split: The split of the calibration.
        changes: (delta, low, high) of the metrics by precision; None leaves the comparison without intervals.
        groups: Rows (precision, scope, name, delta, low, high) of classes and sizes.
        speed: Latency of one image by precision, ms.
        **about: Replaces entries of `Comparison.about`.
    """
    name, engine, clock = RUNNERS[where]
    accuracy = {
        label: tuple(value + changes[label][0] for value in ACCURACY["fp32"])
        if changes and label in changes
        else values
        for label, values in ACCURACY.items()
    }
    differences = [
        {"precision": label, "metric": metric, "scope": "all", "name": "", "reference": reference,
         "value": reference + delta, "delta": delta, "low": low, "high": high, "significant": low > 0 or high < 0}
        for label, (delta, low, high) in (changes or {}).items()
        for metric, reference in zip((ULTRALYTICS, PYCOCOTOOLS), ACCURACY["fp32"], strict=True)
    ] + [
        {"precision": label, "metric": ULTRALYTICS, "scope": scope, "name": group, "reference": 0.7,
         "value": 0.7 + delta, "delta": delta, "low": low, "high": high, "significant": low > 0 or high < 0}
        for label, scope, group, delta, low, high in groups
    ]  # fmt: skip
    dice = random.Random(3)
    samples = pl.DataFrame(
        [
            {"label": label, "batch": size, "turn": turn, "ms": speed[label] * size * (1 + abs(dice.gauss(0, 0.03)))}
            for size in batches
            for turn in range(40)
            for label in SPEED
        ]
    )
    whole_call = {"decode": 1.0, "preprocess": 0.1, "engine": 0.2, "postprocess": 0.3} | (
        {"upload": 0.2, "download": 0.1} if engine else {}
    )
    stages = pl.DataFrame(
        [
            {"label": label, "batch": size, "run": run, "stage": stage, "ms": speed[label] * size * share}
            for size in batches
            for label in SPEED
            for run in range(6)
            for stage, share in {**whole_call, "predict": sum(whole_call.values()) + 0.05}.items()
        ]
    )
    runners = pl.DataFrame(
        [
            {"label": label, "runner": name, "engine": engine, "precision": label, "clock": clock, "imgsz": "640x640",
             "static_batch": None}
            for label in SPEED
        ],
        schema_overrides={"static_batch": pl.Int64},
    )  # fmt: skip
    facts = pl.DataFrame(
        [
            {
                "label": label,
                ULTRALYTICS: accuracy[label][0],
                PYCOCOTOOLS: accuracy[label][1],
                f"delta {ULTRALYTICS}": accuracy[label][0] - accuracy["fp32"][0],
                f"delta {PYCOCOTOOLS}": accuracy[label][1] - accuracy["fp32"][1],
                **{
                    f"delta {metric} {end}": value
                    for metric in ((ULTRALYTICS, PYCOCOTOOLS) if changes else ())
                    for end, value in zip(("low", "high"), (changes or {}).get(label, (None,) * 3)[1:], strict=True)
                },
                "onnx_mb": SIZE[label][0],
                "engine_mb": SIZE[label][1] if built else None,
                "build_s": 3.25 if built else None,
            }
            for label in SPEED
        ],
        schema_overrides={"engine_mb": pl.Float64, "build_s": pl.Float64},
        infer_schema_length=None,
    )
    rows = (
        summarize_runs(samples)
        .join(runners.drop("precision"), on="label", maintain_order="left")
        .join(facts, on="label", maintain_order="left")
        .rename({"label": "precision"})
        .with_columns(padded=pl.lit(False))
    )
    classes = pl.DataFrame(
        [
            {"precision": label, "class": index, "name": str(index), ULTRALYTICS: 0.6 + 0.03 * index - loss * index}
            for label, loss in (("fp32", 0.0), ("fp16", 0.0001), ("int8", 0.002))
            for index in range(10)
        ]
    )
    whole = {
        "model": "yolo11n",
        "task": "detect",
        "data": "scenes/data.yaml",
        "split": "val",
        "imgsz": [640, 640],
        "eval_images": 40,
        "skipped": [],
        "reference": "fp32",
        "max_drop": 0.005,
        "metrics": [
            [ULTRALYTICS, "mAP50-95 by Ultralytics' rule"],
            [PYCOCOTOOLS, "pycocotools/AP by pycocotools' rule"],
        ],
        "all_metrics": [ULTRALYTICS, PYCOCOTOOLS],
        "builder": "TensorRT-RTX 1.7.1.116" if built else None,
        "target": "sm89",
        "why_not_built": "" if built else "neither TensorRT nor TensorRT-RTX works here",
        "why_not_run": "" if where == "gpu" else "no GPU of sm89 was found",
        "engines": {label: {"tensorrt": "1.7.1.116", "sm": "sm89", "layers": 120} for label in SPEED} if built else {},
        "files": {},
        "calibration": {"algorithm": "minmax", "image_count": 64, "split": split, "hash": "0" * 64},
        "recipes": {},
        "notes": [],
        "python": "import trtkit as tk\n\nresult = tk.compare(\n    model='yolo11n.pt',\n    data='my.yaml',\n)\n",
        "command": "trtkit compare --model=yolo11n.pt --data=scenes/data.yaml",
    } | about
    provenance = Provenance(
        model_hash="a" * 64, data_hash="b" * 64, runner=name, settings={"batch": list(batches)}, seed=0
    )
    detections = pl.DataFrame({"precision": ["fp32"], "image": ["0.jpg"], "class": [1], "score": [0.9]})
    return Comparison(
        rows=rows,
        classes=classes,
        images=detections,
        detections=detections,
        labels=detections,
        samples=samples,
        stages=stages,
        runners=runners,
        about=whole,
        provenance=provenance,
        differences=pl.DataFrame(differences, schema={"precision": pl.String, **DIFFERENCE_COLUMNS})
        if differences
        else pl.DataFrame(),
    )

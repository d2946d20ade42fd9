"""Examples of each command, as `--help` shows them; tests parse them all."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["EXAMPLES", "OVERVIEW", "format_examples"]

EXAMPLES: Mapping[str, Mapping[str, str]] = {
    "export": {
        "trtkit export yolo11n.pt --half": "an FP16 engine beside the model",
        "trtkit export yolo11n.pt --int8 --data coco.yaml --batch 8": "an INT8 engine, calibrated on the train split",
        "trtkit export yolo11n.pt --format onnx --int8 --data my.yaml": "the same graph as ONNX, for other runtimes",
        "trtkit export --recipe runs/compare/recipe.json --int8": "the INT8 engine of a comparison again",
    },
    "calibrate": {
        "trtkit calibrate yolo11n.pt coco.yaml": "percentile 99.999 of 512 images, into runs/calibrate",
        "trtkit calibrate yolo11n.pt images/*.jpg --algorithm mse": "ranges of unlabeled images, by least squares",
    },
    "predict": {
        "trtkit predict yolo11n-int8.engine street.jpg": "predictions drawn into runs/predict",
        "trtkit predict yolo11n.onnx images/ --conf 0.5 --json": "all images of a folder, detections as JSON",
    },
    "evaluate": {
        "trtkit evaluate yolo11n-int8.engine coco.yaml": "mAP by Ultralytics and by pycocotools",
        "trtkit evaluate yolo11n.onnx coco.yaml --eval-images 500": "on 500 images of the split",
    },
    "evaluate-int8": {
        "trtkit evaluate-int8 yolo11n.pt coco.yaml --eval-images 500": "what INT8 would lose, without a GPU",
    },
    "load-test": {
        "trtkit load-test triton+http://localhost:8000/yolo11n --concurrency 1,8": "a model on Triton, 1 and 8 clients",
    },
    "verify": {
        "trtkit verify yolo11n-int8.engine": "the engine against ONNX Runtime, on embedded images",
        "trtkit verify yolo11n-int8.engine my.yaml --layers": "on your images, and where a difference begins",
    },
    "deploy": {
        "trtkit deploy triton yolo11n.engine yolo11n-int8.engine": "a model repository for Triton",
        "trtkit deploy python yolo11n-int8.engine --output service": "a Python script that needs no trtkit",
    },
    "benchmark": {
        "trtkit benchmark yolo11n.engine yolo11n-int8.engine --batch 1,8": "latency of two engines, side by side",
        "trtkit benchmark fp16=a.engine int8=b.engine --json": "with labels, as JSON",
    },
    "compare": {
        "trtkit compare yolo11n.pt coco.yaml --batch 1,8": "whether INT8 pays, in runs/compare/report.html",
        "trtkit compare yolo11n.pt coco.yaml --max-drop 0.005 --gate int8": (
            "in CI: exit status 0 ship, 1 don't ship, 3 can't tell"
        ),
        "trtkit compare yolo11n.pt coco.yaml --dry-run": "what that would do, after all checks and without doing it",
    },
    "zoo": {
        "trtkit zoo yolo11n.pt yolo26n.pt --data detect=coco.yaml --batch 1,8": (
            "both in three precisions, on all GPUs; run it again to go on where it stopped"
        ),
        "trtkit zoo models/ --data detect=my.yaml --data pose=poses.yaml": "every model of a folder",
        "trtkit zoo models/ --data detect=my.yaml --scheduler tls://host:8786": "the same on Dask workers",
        "trtkit zoo --data detect=coco.yaml --data segment=coco.yaml --download": (
            "the tables of Ultralytics' guide: YOLOv8n of each task"
        ),
    },
    "why-slow": {
        "trtkit why-slow yolo11n-int8.engine yolo11n-fp16.engine": "what INT8 spends its time on, and which nodes",
    },
    "report": {
        "trtkit report runs/compare --output report.html": "the report of a saved comparison again",
    },
    "examine": {
        "trtkit examine coco.yaml --calibration-images 512": "whether the calibration images are like the others",
    },
    "sweep": {
        "trtkit sweep yolo11n.pt coco.yaml --algorithms percentile,mse": "INT8 accuracy by algorithm and images",
    },
    "sensitivity": {
        "trtkit sensitivity yolo11n.pt coco.yaml --worst 5": "the five layers that INT8 harms most",
    },
    "search": {
        "trtkit search yolo11n.pt coco.yaml --max-drop 0.005": "which layers to keep in FP16, as --keep patterns",
    },
    "engine": {
        "trtkit engine show yolo11n.engine --layers": "metadata and layers of an engine file",
        "trtkit engine check yolo11n.engine --gpu L4": "whether it runs on an L4",
        "trtkit engine strip yolo11n.engine yolo11n.plan": "the bare plan, for trtexec and Triton",
        "trtkit engine wrap model.plan model.engine --like yolo11n.pt": "a plan of trtexec, for trtkit and Ultralytics",
        "trtkit engine refit small.engine yolo11n.onnx full.engine": "weights into a stripped engine",
    },
    "selftest": {"trtkit selftest": "every backend of this machine, in trtkit-selftest.json"},
    "doctor": {
        "trtkit doctor": "what works on this machine, and what to install for the rest",
        "trtkit doctor --json": "the same for a program",
    },
    "demo": {"trtkit demo": "compare precisions of the embedded model, with embedded images"},
    "lab": {"trtkit lab --no-browser": "JupyterLab on the notebooks, its address printed"},
    "completion": {
        'eval "$(trtkit completion bash)"': "in ~/.bashrc; zsh likewise in ~/.zshrc",
        "trtkit completion fish > ~/.config/fish/completions/trtkit.fish": "for fish",
    },
}
"""By command: command lines and what they do."""

OVERVIEW = ("demo", "doctor", "export", "compare", "predict", "evaluate", "search", "deploy", "why-slow", "engine")
"""Commands whose examples `trtkit --help` shows: of export and compare all, of the others the first."""


def format_examples(names: tuple[str, ...], *, first: bool = False, begin: str = "") -> str:
    """The examples of commands, as text of two lines each.

    Args:
        names: The commands.
        first: Only the first example of each command that is neither export nor compare.
        begin: Only examples that hold this.
    """
    lines = ["examples:"]
    for name in names:
        shown = list(EXAMPLES[name].items())
        for line, text in shown[:1] if first and name not in ("export", "compare") else shown:
            lines += [f"  {line}", f"      {text}"] if begin in line else []
    return "\n".join(lines)

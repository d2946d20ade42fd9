"""DeepStream: the configuration of Gst-nvinfer, labels and a parser of the model's outputs in C++."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from trtkit.deployment.bundle import FILES, Bundle, Source, write_json
from trtkit.deployment.target import Target, register_target
from trtkit.errors import RecipeError
from trtkit.models.model import ModelInfo, Preprocess

__all__ = ["write_deepstream"]

NETWORK_MODES = {"fp32": 0, "int8": 1, "fp16": 2}

MASK_TOLERANCE, MAX_MASK_TOLERANCE = 0.05, 0.3
"""How far the IoU of a mask may lie below 1, at least and at most: see `find_mask_tolerance`."""

SHOWS = {
    "detect": "DeepStream draws the boxes and hands them to trackers and messages.",
    "segment": "DeepStream draws boxes and masks (`[osd] display-mask=1` in deepstream-app). A mask covers its box "
    "with a cell for each pixel of the input, at most as many as there are prototype pixels.",
    "pose": "DeepStream has no place for keypoints: the parser puts them where a mask would be, and DeepStream "
    "draws the "
    "boxes alone. Leave `display-mask` off. A probe reads `obj_meta->mask_params`: `height` keypoints of `width` "
    "values "
    "(x, y and, with three, visibility) in pixels of the network's input; subtract the padding and divide by the "
    "ratio "
    "of letterboxing to get pixels of the frame.",
    "obb": "Since DeepStream 9.0 objects have a rotation angle (radians, clockwise in the image) and the box before "
    "rotation; earlier releases get the upright box around the oriented one. Only upright boxes can be tracked.",
    "classify": "DeepStream reads the class probabilities by itself; the parser is not used. Gst-nvinfer scales "
    "the whole "
    "frame or object to the input where this model was evaluated on the center of the image: accuracy may differ.",
}


def check_deepstream(source: Source) -> None:
    """Check that Gst-nvinfer loads the engine and can preprocess images as the model needs them.

    Raises:
        RecipeError: It can't.
    """
    source.refuse_rtx("deepstream")
    to_nvinfer(source.info.preprocess)


def write_deepstream(bundle: Bundle, folder: Path) -> Sequence[str]:
    """Write a configuration of Gst-nvinfer, labels, a parser in C++ and the outputs that its check takes."""
    config = render_config(bundle)
    (folder / "config_infer_primary.txt").write_text(config, encoding="utf-8")
    (folder / "labels.txt").write_text(render_labels(bundle.info), encoding="utf-8")
    for name in ("parser.cpp", "replay.cpp", "Makefile", "infer.py"):
        shutil.copyfile(FILES / "deepstream" / name, folder / name)
    for name in ("yolo.hpp", "report.hpp"):
        shutil.copyfile(FILES / "cpp" / name, folder / name)
    shutil.copytree(FILES / "deepstream" / "stub", folder / "stub")
    bundle.write_tensors(folder / "samples" / "tensors")
    if bundle.format == "engine":
        from trtkit.backends.engine_file import strip_engine

        strip_engine(bundle.path, folder / "model.plan")
    expected = json.loads((folder / "samples" / "expected.json").read_text(encoding="utf-8"))
    expected["tolerance"]["mask"] = find_mask_tolerance(bundle)
    write_json(folder / "samples" / "expected.json", expected)
    return _render_notes(bundle)


def find_mask_tolerance(bundle: Bundle) -> float:
    """How far the IoU of the samples' masks may lie below 1: by half a cell at their edges.

    The cells of DeepStream's masks divide the box, not the image, and are larger than pixels of an image that was made
    smaller: of a small object's mask the edge is a large part.

    Args:
        bundle: The model file and what is known of it.
    """
    height, width = bundle.imgsz
    rows, columns = next((array.shape[2:] for array in bundle.sample_outputs.values() if array.ndim == 4), bundle.imgsz)
    tolerance = MASK_TOLERANCE
    for image, prediction in zip(bundle.images, bundle.expected, strict=True):
        masks: Any = getattr(prediction, "masks", None)
        boxes: Any = getattr(prediction, "boxes", []) if masks is not None else []
        pixel = max(image.shape[0] / height, image.shape[1] / width)
        for index, box in enumerate(boxes):
            mask = masks.full_resolution(index).astype(np.uint8)
            cell = max(pixel, (box[3] - box[1]) / rows, (box[2] - box[0]) / columns)
            side = 2 * max(1, round(cell / 2)) + 1
            inner = cv2.erode(mask, np.ones((side, side), np.uint8)).sum() / max(1, mask.sum())
            # Cells stand over the edge outside as often as inside.
            tolerance = max(tolerance, (1 - float(inner)) / 2)
    return min(tolerance, MAX_MASK_TOLERANCE)


def render_config(bundle: Bundle) -> str:
    """Render `config_infer_primary.txt`."""
    preprocess, task = bundle.info.preprocess, bundle.info.task
    scale, offsets = to_nvinfer(preprocess)
    height, width = bundle.imgsz
    color = 2 if preprocess.channels == 1 else int(preprocess.color == "bgr")
    by_mask = task in ("segment", "pose")
    network_type = 1 if task == "classify" else 3 if by_mask else 0
    # Gst-nvinfer builds an INT8 engine with a calibration file alone, never from Q/DQ.
    is_built_before = bundle.format == "engine" or bundle.precision == "int8"
    lines = [
        "# Gst-nvinfer, primary mode. Paths are relative to this file.",
        "[property]",
        "gpu-id=0",
        "gie-unique-id=1",
        "process-mode=1",
        "model-engine-file=model.plan" if is_built_before else f"onnx-file={bundle.file_name}",
        f"batch-size={bundle.batch or 1}",
        f"network-mode={NETWORK_MODES[bundle.precision]}",
        f"network-type={network_type}",
        f"infer-dims={preprocess.channels};{height};{width}",
        f"model-color-format={color}",
        f"net-scale-factor={scale:.17g}",
        *([f"offsets={';'.join(f'{value:.9g}' for value in offsets)}"] if offsets else []),
        f"maintain-aspect-ratio={int(preprocess.kind == 'letterbox')}",
        f"symmetric-padding={int(preprocess.kind == 'letterbox')}",
        "labelfile-path=labels.txt",
    ]
    conf = bundle.thresholds["conf"]
    if task == "classify":
        lines += [f"classifier-threshold={conf:g}", f"output-blob-names={bundle.outputs[0].name}"]
        return "\n".join(lines) + "\n"
    function = "bbox-instance-mask" if by_mask else "bbox"
    lines += [
        f"num-detected-classes={len(bundle.info.names)}",
        # The parser does NMS where the model needs it.
        "cluster-mode=4",
        "custom-lib-path=libnvdsinfer_yolo.so",
        f"parse-{function}-func-name=NvDsInferParseYolo{'Mask' if by_mask else ''}",
        *(["output-instance-mask=1", "segmentation-threshold=0.5"] if by_mask else []),
        "",
        "[class-attrs-all]",
        f"pre-cluster-threshold={conf:g}",
        f"topk={int(bundle.thresholds['max_det'])}",
    ]
    return "\n".join(lines) + "\n"


def render_labels(info: ModelInfo) -> str:
    """Render `labels.txt`: a detector's names line by line, a classifier's in one line between semicolons."""
    names = [" ".join(info.names[number].split()) for number in sorted(info.names)]
    if info.task == "classify":
        return ";".join(name.replace(";", ",") for name in names) + "\n"
    return "\n".join(names) + "\n"


def to_nvinfer(preprocess: Preprocess) -> tuple[float, tuple[float, ...]]:
    """Gst-nvinfer's `net-scale-factor` and `offsets`, which compute `factor * (pixel - offset)`.

    Raises:
        RecipeError: It has one factor for all channels and takes images of 1 or 3 channels.
    """
    if preprocess.channels not in (1, 3):
        raise RecipeError(
            f"deploy a model of {preprocess.channels} channels to deepstream",
            "Gst-nvinfer takes images of 1 or 3 channels",
            "use the python, cpp or triton target",
            code="deploy-preprocess-unsupported",
            value=preprocess.channels,
        )
    if len(set(preprocess.std)) > 1:
        raise RecipeError(
            "deploy to deepstream",
            f"the model divides its channels by {', '.join(f'{value:g}' for value in preprocess.std)} and "
            f"Gst-nvinfer has "
            "one factor for all",
            "put the normalization into the model, or use the python, cpp or triton target",
            code="deploy-preprocess-unsupported",
            value=preprocess.std,
        )
    std = preprocess.std[0] if preprocess.std else 1.0
    return preprocess.scale / std, tuple(value / preprocess.scale for value in preprocess.mean)


def _render_notes(bundle: Bundle) -> tuple[str, ...]:
    task = bundle.info.task
    build: list[str] = []
    if bundle.format == "onnx" and bundle.precision == "int8":
        shapes = ""
        if bundle.dynamic:
            height, width = bundle.imgsz
            size = f"{bundle.info.channels}x{height}x{width}"
            name = bundle.inputs[0].name
            sizes = {"min": 1, "opt": 1, "max": bundle.batch or 1}
            shapes = "".join(f" --{kind}Shapes={name}:{batch}x{size}" for kind, batch in sizes.items())
        build = [
            "Gst-nvinfer does not build INT8 engines from Q/DQ (without a calibration file it builds FP16), so "
            "first build "
            "the plan, with the TensorRT that DeepStream uses (TensorRT 11 takes neither `--fp16` nor `--int8`):",
            "",
            f"    trtexec --onnx=model.onnx --fp16 --int8 --saveEngine=model.plan{shapes}",
            "",
        ]
    make = [] if task == "classify" else ["    make", ""]
    return (
        *build,
        "Build the parser and name `config_infer_primary.txt` in your application (`config-file` of deepstream-app's "
        "`[primary-gie]`):",
        "",
        *make,
        SHOWS[task],
        "",
        "Gst-nvinfer pads with black where this model was evaluated with gray (114) and scales on the GPU or "
        "VIC, so scores "
        "near the border and near the threshold differ slightly.",
        "",
        "`check.py` compiles the parser without DeepStream (`stub/` holds the structures it uses) and hands it "
        "the outputs "
        "in `samples/tensors`; neither the engine nor DeepStream runs there. This folder was not run in "
        "DeepStream where "
        "it was written.",
    )


register_target(
    Target(
        name="deepstream",
        formats=("onnx", "engine"),
        write=write_deepstream,
        check=check_deepstream,
        file_notes={
            "model.plan": "the engine without its header, for Gst-nvinfer",
            "config_infer_primary.txt": "the configuration of Gst-nvinfer",
            "labels.txt": "class names",
            "parser.cpp": "the parser; `yolo.hpp` holds its arithmetic",
            "Makefile": "builds the parser",
            "infer.py": "hands the stored outputs of the samples to the parser",
        },
    )
)

"""trtexec: a build script that prints the right command for each TensorRT, the model, and reference tensors."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx

from trtkit.backends.trt.network import find_kept_fp32
from trtkit.deployment.bundle import FILES, Bundle
from trtkit.deployment.target import Target, register_target
from trtkit.graph.fp16 import has_fp16
from trtkit.graph.onnx_file import write_onnx
from trtkit.graph.qdq import expand_int8_weights

__all__ = ["FILE_NOTES", "format_settings", "keep_fp32_options", "write_trtexec"]

OLD_MODEL = "model-trt8.onnx"

FILE_NOTES = {
    "model.onnx": "the model",
    OLD_MODEL: "the model for TensorRT 8: weights in float behind Q/DQ",
    "build.sh": "builds the plan with trtexec: `./build.sh`; `./build.sh --print 8.6` prints the command alone",
    "settings.sh": "what `build.sh` must know of the model",
    "infer.py": "builds the plan and runs it with trtexec: `python infer.py IMAGE ...`",
    "samples/tensors/": "reference input and outputs of the sample images, float32",
}

MAX_BATCH = 8
"""The largest batch of a plan of a model that takes any."""


def write_trtexec(bundle: Bundle, folder: Path) -> Sequence[str]:
    """Write `build.sh` with what the model needs, the model for TensorRT 8 and reference tensors."""
    for name in ("build.sh", "infer.py"):
        shutil.copyfile(FILES / "trtexec" / name, folder / name)
    shutil.copyfile(FILES / "stored.py", folder / "stored.py")
    (folder / "build.sh").chmod(0o755)
    proto = onnx.load(folder / bundle.file_name)
    expanded = expand_int8_weights(proto)
    has_int8_weights = expanded != proto
    if has_int8_weights:
        write_onnx(expanded, folder / OLD_MODEL)
    values = {
        "PRECISION": bundle.precision,
        "TYPED": "yes" if has_fp16(proto) else "no",
        "OLD_MODEL": OLD_MODEL if has_int8_weights else bundle.file_name,
        "SHAPES": _shape_options(bundle),
        # TensorRT names layers as the graph names nodes.
        "KEEP_FP32": keep_fp32_options(find_kept_fp32(expanded)),
    }
    (folder / "settings.sh").write_text(format_settings(values), encoding="utf-8")
    bundle.write_tensors(folder / "samples" / "tensors", with_input=True)
    return (
        "`./build.sh` finds trtexec, asks it for its TensorRT (8.4 to 11) and builds `model.plan` with the "
        "options of that "
        "release: TensorRT 8 needs `--fp16` and `--int8`, TensorRT 10 builds typed graphs with "
        "`--stronglyTyped`, and "
        "TensorRT 11 has lost all of them. `./build.sh --print` prints the command and runs nothing.",
        "",
        "`samples/tensors` holds the input of the sample images and the outputs on it: `trtexec --loadInputs` "
        "reads the "
        "input (of as many images as the batch), `check.py` compares the detections. Where trtexec is not "
        "installed the "
        "check takes the stored outputs, so that preprocessing and postprocessing are checked and the plan is not.",
        "",
        "The options of 8.6, 10 and 11 were read from trtexec's source; this folder's commands were not run "
        "where it was "
        "written.",
    )


def format_settings(values: Mapping[str, str | Sequence[str]]) -> str:
    """Variables and arrays for bash.

    Args:
        values: Strings, and sequences for arrays, by name.
    """
    lines = []
    for name, value in values.items():
        text = shlex.quote(value) if isinstance(value, str) else f"({' '.join(map(shlex.quote, value))})"
        lines.append(f"{name}={text}")
    return "\n".join(lines) + "\n"


def keep_fp32_options(nodes: Iterable[str]) -> tuple[str, ...]:
    """trtexec's options that keep nodes in FP32 where flags set the precision; none without nodes.

    Args:
        nodes: Names; trtexec can't name those with a comma, a colon or a star, which are left out.
    """
    names = sorted(name for name in nodes if name and not re.search(r"[,:*]", name))
    if not names:
        return ()
    precisions = ",".join(f"{name}:fp32" for name in names)
    return ("--precisionConstraints=prefer", f"--layerPrecisions={precisions}", f"--layerOutputTypes={precisions}")


def _shape_options(bundle: Bundle) -> tuple[str, ...]:
    """The optimization profile of a model with open sizes."""
    if not bundle.dynamic:
        return ()
    height, width = bundle.imgsz
    most = bundle.batch or MAX_BATCH
    sizes = {"min": 1, "opt": most, "max": most}
    name, channels = bundle.inputs[0].name, bundle.info.channels
    return tuple(f"--{kind}Shapes={name}:{count}x{channels}x{height}x{width}" for kind, count in sizes.items())


register_target(Target(name="trtexec", formats=("onnx",), write=write_trtexec, file_notes=FILE_NOTES))

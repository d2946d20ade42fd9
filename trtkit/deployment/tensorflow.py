"""TensorFlow: a SavedModel by onnx2tf. Without TensorRT: TensorFlow dropped TF-TRT in 2.18."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx

from trtkit.deployment.bundle import FILES, Bundle, Source, write_json
from trtkit.deployment.target import Target, register_target
from trtkit.errors import RecipeError
from trtkit.graph.dla import fix_shape
from trtkit.graph.fp16 import convert_to_fp32, has_fp16
from trtkit.graph.onnx_file import write_onnx
from trtkit.graph.prequantized import is_quantized

__all__ = ["write_tensorflow"]

SOURCE = "model-tf.onnx"


def check_tensorflow(source: Source) -> None:
    """Check that the model is not quantized.

    Raises:
        RecipeError: It holds Q/DQ.
    """
    if is_quantized(onnx.load(source.path, load_external_data=False)):
        raise RecipeError(
            f"deploy {source.path.name} to tensorflow",
            "it is INT8 by Q/DQ, which TensorRT alone makes fast, and TensorFlow dropped TF-TRT in 2.18",
            "use the target triton or python for INT8, or deploy the FP32 file",
            code="deploy-tensorflow-int8",
            path=str(source.path),
        )


def write_tensorflow(bundle: Bundle, folder: Path) -> Sequence[str]:
    """Write the conversion to a SavedModel, a program that runs it, and the outputs that its check takes elsewhere."""
    for name in ("convert.py", "infer.py"):
        shutil.copyfile(FILES / "tensorflow" / name, folder / name)
    shutil.copyfile(FILES / "stored.py", folder / "stored.py")
    bundle.write_tensors(folder / "samples" / "tensors", with_input=True)
    proto = onnx.load(folder / bundle.file_name)
    height, width = bundle.imgsz
    batch, source = bundle.batch or 1, bundle.file_name
    if bundle.dynamic or has_fp16(proto):
        source = SOURCE
        # The conversion was tried with FP32 graphs of fixed sizes.
        write_onnx(fix_shape(convert_to_fp32(proto), (batch, bundle.info.channels, height, width)), folder / SOURCE)
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    write_json(folder / "model.json", {**model, "tensorflow": {"source": source, "batch": batch}})
    return (
        "TensorFlow dropped TF-TRT in 2.18: the SavedModel runs on TensorFlow's own kernels in FP32, without "
        "TensorRT. "
        "For TensorRT's speed behind a server use the target `triton`.",
        "",
        "`python convert.py` writes `saved_model/` with onnx2tf; it pins many versions, so give it an "
        "environment of its "
        "own: `pip install onnx2tf==1.29.24` (Python 3.10 to 3.12, TensorFlow 2.19). `python infer.py IMAGE ...` and "
        "`check.py` need TensorFlow, NumPy and OpenCV or Pillow.",
        "",
        f"The SavedModel takes {batch} x {height} x {width} x {bundle.info.channels}, channels last.",
        "",
        "Where TensorFlow is not installed or `convert.py` did not run, the check takes the outputs in "
        "`samples/tensors`, "
        "so that preprocessing and postprocessing are checked and the SavedModel is not.",
    )


register_target(
    Target(
        name="tensorflow",
        formats=("onnx",),
        write=write_tensorflow,
        check=check_tensorflow,
        file_notes={
            SOURCE: "the model with fixed sizes in FP32, which is converted",
            "convert.py": "writes `saved_model/`",
            "infer.py": "runs the SavedModel: `python infer.py IMAGE ...`",
            "samples/tensors/": "input and outputs of the sample images, float32",
        },
    )
)

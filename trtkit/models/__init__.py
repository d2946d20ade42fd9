"""Where models come from: Ultralytics checkpoints, ONNX files and torch modules, all as `Model`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtkit.errors import ModelError
from trtkit.models.model import TASKS, Model, ModelInfo, OutputFormat, Preprocess

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["TASKS", "Model", "ModelInfo", "OutputFormat", "Preprocess", "load"]


def load(
    source: str | Path | Model | torch.nn.Module | onnx.ModelProto,
    *,
    task: str | None = None,
    names: Mapping[int, str] | Sequence[str] | None = None,
    imgsz: int | tuple[int, int] | None = None,
    example: torch.Tensor | None = None,
) -> Model:
    """Read a model.

    Args:
        source: A YOLOv8 or YOLO11 `.pt` file, an `.onnx` file, a torch module, or an ONNX graph in memory. A `Model` is
            handed back as it is.
        task: One of `TASKS`, for a source that does not say; it must agree with one that does.
        names: Class names, for a source that does not say, or to replace the ones it has.
        imgsz: Height and width in pixels, or one number for both, where the source does not say or to replace it.
        example: An input the module accepts, (B, C, H, W) float32; needed for a torch module that is not Ultralytics'.

    Raises:
        CheckpointError: A `.pt` file is missing, damaged, foreign or unsafe.
        OnnxError: An ONNX file is missing, damaged or of no known task.
        ModelError: The source is none of these, or an argument contradicts it.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, (str, Path)):
        path = Path(source)
        suffix = path.suffix.lower()
        if suffix in (".pt", ".pth"):
            from trtkit.models.checkpoint import read_checkpoint
            from trtkit.models.torch_model import from_checkpoint

            return from_checkpoint(read_checkpoint(path), path, task=task, names=names, imgsz=imgsz)
        if suffix == ".onnx":
            from trtkit.models.onnx_model import read_onnx

            return read_onnx(path, task=task, names=names, imgsz=imgsz)
        raise ModelError(
            f"load {path}", f"a file {suffix or 'without a suffix'} is no model", "name a .pt or .onnx file"
        )
    # A caller who holds a module or a graph has imported its library; one who does not need not pay for it here.
    if "torch" in sys.modules and isinstance(source, sys.modules["torch"].nn.Module):
        from trtkit.models.torch_model import from_module

        return from_module(source, task=task, names=names, imgsz=imgsz, example=example)
    if "onnx" in sys.modules and isinstance(source, sys.modules["onnx"].ModelProto):
        from trtkit.models.onnx_model import from_proto

        return from_proto(source, task=task, names=names, imgsz=imgsz)
    raise ModelError(
        "load a model", f"a {type(source).__name__} is no model", "pass a .pt or .onnx file or a torch module"
    )

"""Models: Ultralytics checkpoints, ONNX files and torch modules, all read as `Model`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtkit.downloads import locate
from trtkit.errors import ModelError
from trtkit.models.model import TASKS, Model, ModelInfo, OutputFormat, Preprocess
from trtkit.models.model_arguments import parse_class_names, resolve_task

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
    preprocess: Preprocess | None = None,
    output_format: OutputFormat | None = None,
    end2end: bool = False,
    download: bool | None = None,
) -> Model:
    """Read a model.

    Args:
        source: A YOLO `.pt` file, an `.onnx` file, a torch module, or an ONNX graph in memory. A `Model` is returned as
            it is, or with its one-to-one head; it takes no other argument.
        task: One of `TASKS`, if the source has no metadata; otherwise it must agree with the metadata.
        names: Class names, if the source has none, or to replace its own.
        imgsz: Height and width in pixels, or one number for both, if the source has none, or to replace its own.
        example: An input that a torch module accepts, (B, C, H, W) float32; not needed for Ultralytics' modules.
        preprocess: How an image becomes the input; None takes the source's, or the task's default.
        output_format: What an ONNX graph or a torch module returns; None takes the source's, or the task's default.
        end2end: Take the one-to-one head of a checkpoint (YOLO26, YOLOv10), whose rows need no NMS, instead of its
            one-to-many head. A file that holds only one of the heads is read with that one; an ONNX file with
            end-to-end rows keeps them.
        download: Fetch weights that Ultralytics publishes, such as "yolo11n.pt", if they are neither on disk nor in the
            cache folder; None asks `TRTKIT_DOWNLOAD`, else the user at a terminal.

    Raises:
        CheckpointError: A `.pt` file is missing, damaged, foreign or unsafe.
        DownloadError: The download failed, or the file has another SHA-256 than at the first download.
        OnnxError: An ONNX file is missing, damaged or of unknown task.
        ModelError: The source is none of these, or an argument contradicts it.
    """
    try:
        located = locate(Path(source), download) if isinstance(source, (str, Path)) else source
    except (OSError, ValueError) as error:  # such as a name of 300 letters, or one that holds a zero byte
        raise ModelError(
            f"load {source!r}", str(error), "check the path", code="model-path-invalid", path=Path(str(source))
        ) from error
    try:
        if names is not None:
            asked = f"load {source}" if isinstance(source, (str, Path)) else f"load a {type(source).__name__}"
            names = parse_class_names(names, asked, ModelError)
        model = _load_source(located, task, names, imgsz, example, preprocess, output_format)
        if isinstance(source, (str, Path)):
            # A downloaded model keeps its name, so that exports go to the working directory, not to the cache folder.
            model = dataclasses.replace(model, source=Path(source))
        return model.with_end2end() if end2end and not model.end2end else model
    except ModelError as error:
        if isinstance(source, (str, Path)):
            error.fields.setdefault("path", Path(source))
        raise
    except OSError as error:
        raise ModelError(
            f"load {source}",
            error.strerror or str(error),
            "check the file and its permissions",
            code="model-file-unreadable",
            path=Path(str(source)),
        ) from error


def _load_source(
    source: str | Path | Model | torch.nn.Module | onnx.ModelProto,
    task: str | None,
    names: Mapping[int, str] | Sequence[str] | None,
    imgsz: int | tuple[int, int] | None,
    example: torch.Tensor | None,
    preprocess: Preprocess | None,
    output_format: OutputFormat | None,
) -> Model:
    if isinstance(source, Model):
        resolve_task(task, source.task, f"load {source.stem}", ModelError)
        given = {
            "names": names,
            "imgsz": imgsz,
            "example": example,
            "preprocess": preprocess,
            "output_format": output_format,
        }
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise ModelError(
                f"load {source.stem} with {', '.join(unused)}",
                "it is loaded already, so they would change nothing",
                "pass them with the file or module it was loaded from",
                code="model-arguments-unused",
                names=unused,
            )
        return source
    if isinstance(source, (str, Path)):
        return _load_file(Path(source), task, names, imgsz, preprocess, output_format)
    # Neither torch nor onnx is imported for the check: a module or a graph can't exist without its library.
    if "torch" in sys.modules and isinstance(source, sys.modules["torch"].nn.Module):
        from trtkit.models.torch_model import from_module

        return from_module(
            source,
            task=task,
            names=names,
            imgsz=imgsz,
            example=example,
            preprocess=preprocess,
            output_format=output_format,
        )
    if "onnx" in sys.modules and isinstance(source, sys.modules["onnx"].ModelProto):
        from trtkit.models.onnx_model import from_proto

        return from_proto(
            source, task=task, names=names, imgsz=imgsz, preprocess=preprocess, output_format=output_format
        )
    raise ModelError(
        "load a model",
        f"a {type(source).__name__} is no model",
        "pass a .pt or .onnx file or a torch module",
        code="model-type-unknown",
        type=type(source).__name__,
    )


def _load_file(
    path: Path,
    task: str | None,
    names: Mapping[int, str] | Sequence[str] | None,
    imgsz: int | tuple[int, int] | None,
    preprocess: Preprocess | None,
    output_format: OutputFormat | None,
) -> Model:
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth"):
        from trtkit.models.checkpoint import read_checkpoint
        from trtkit.models.torch_model import from_checkpoint

        if output_format is not None:
            raise ModelError(
                f"load {path}",
                "output_format= was passed, but a checkpoint's output follows from its layers",
                "leave output_format= out",
                code="model-output-format-fixed",
            )
        checkpoint = read_checkpoint(path)
        return from_checkpoint(checkpoint, path, task=task, names=names, imgsz=imgsz, preprocess=preprocess)
    if suffix == ".onnx":
        from trtkit.models.onnx_model import read_onnx

        return read_onnx(path, task=task, names=names, imgsz=imgsz, preprocess=preprocess, output_format=output_format)
    found, do = f"a file {suffix or 'without a suffix'} is no model", "name a .pt or .onnx file"
    if path.is_dir():
        found = "it is a folder"
    elif suffix == ".engine":
        found, do = "it is an engine, built already", "open it with trtkit.open, or name the file it was built from"
    raise ModelError(f"load {path}", found, do, code="model-suffix-unknown", suffix=suffix)

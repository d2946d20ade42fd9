"""Checkpoints and torch modules as `Model`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trtkit.errors import CheckpointError, ModelError, UnknownLayerError
from trtkit.files import hash_parts
from trtkit.models import heads
from trtkit.models.checkpoint import Checkpoint
from trtkit.models.layers import describe_activation
from trtkit.models.model import DETR_ROWS, Model, OutputFormat, Preprocess, default_output_format, default_preprocess
from trtkit.models.model_arguments import parse_imgsz, resolve_class_names, resolve_task, with_channels
from trtkit.models.output_shapes import check_outputs, infer_classes, infer_output_format
from trtkit.models.rtdetr import RTDETRDecoder
from trtkit.models.yolo import Yolo, build_model, has_depthwise_scores, load_weights

__all__ = ["from_checkpoint", "from_module", "hash_weights"]

Names = Mapping[int, str] | Sequence[str] | None


def from_checkpoint(
    checkpoint: Checkpoint,
    source: Path | None,
    *,
    task: str | None = None,
    names: Names = None,
    imgsz: int | tuple[int, int] | None = None,
    preprocess: Preprocess | None = None,
) -> Model:
    """Build a checkpoint's model from trtkit's own layers, with its one-to-many head if it has one.

    Args:
        checkpoint: From `read_checkpoint`.
        source: The file it was read from, or None.
        task: As in `trtkit.load`, like the arguments below.
        names: Class names.
        imgsz: Height and width, pixels.
        preprocess: How an image becomes the input.

    Raises:
        CheckpointError: Its architecture or weights can't be used.
        ModelError: An argument contradicts it.
    """
    asked = f"load {source}" if source is not None else "load an Ultralytics module"
    yaml = checkpoint.yaml
    module = build_model(yaml, depthwise_scores=has_depthwise_scores(checkpoint.weights), asked=asked)
    _check_layers(yaml, checkpoint, module, asked)
    load_weights(module, checkpoint.weights, checkpoint.activations, checkpoint.epsilons, asked=asked)
    head = module.model[-1]
    classes = head.linear.out_features if isinstance(head, heads.Classify) else int(head.nc)  # type: ignore[arg-type]
    size = imgsz if imgsz is not None else checkpoint.args.get("imgsz", 640)
    task = resolve_task(task, module.task, asked, ModelError)
    hashed = hash_weights(
        _canonical_text({**yaml, "yaml_file": None, "activations": checkpoint.activations}), checkpoint.weights
    )
    hashes = {False: hashed, True: hash_parts(hashed, "end2end")}
    end2end = isinstance(head, heads.Detect) and head.end2end
    output_format = DETR_ROWS
    if not isinstance(head, RTDETRDecoder):
        output_format = default_output_format(task, end2end=end2end)
    return Model(
        task=task,
        names=_merge_names(names, checkpoint.names, classes, asked),
        stride=max(module.strides),
        imgsz=parse_imgsz(size, asked, ModelError),
        kpt_shape=(head.points, head.values) if isinstance(head, heads.Pose) else None,
        architecture=_architecture_name(yaml),
        preprocess=preprocess or _read_preprocess(checkpoint, task, output_format, asked),
        output_format=output_format,
        row_settings={"max_det": heads.MAX_DET} if end2end else {},
        notes=dict(checkpoint.notes),
        hash=hashes[end2end],
        source=source,
        module=module,
        parameters=module.count_parameters(),
        head_hashes=hashes,
    )


def from_module(
    module: nn.Module,
    *,
    task: str | None = None,
    names: Names = None,
    imgsz: int | tuple[int, int] | None = None,
    example: Tensor | None = None,
    preprocess: Preprocess | None = None,
    output_format: OutputFormat | None = None,
) -> Model:
    """A torch module as a model.

    An Ultralytics model (the module itself, the `YOLO` object around it, or one that `DataParallel` or `torch.compile`
    wrapped) is rebuilt from trtkit's own layers. Any other module is copied, so that the caller's is not modified, and
    run once on `example`.

    Args:
        module: The module.
        task: As in `trtkit.load`, like the arguments below.
        names: Class names.
        imgsz: Height and width, pixels.
        example: An input that the module accepts, (B, C, H, W) float32.
        preprocess: How an image becomes the input.
        output_format: What the module returns.

    Raises:
        ModelError: The example is missing or fails, or the outputs do not fit the task.
        CheckpointError: An Ultralytics model has layers that trtkit does not build.
    """
    inner: Any = module
    # Within each other: the YOLO object, torch.compile's module, a parallel one.
    for _ in range(4):
        if type(inner).__module__.startswith("ultralytics.") and isinstance(getattr(inner, "yaml", None), dict):
            checkpoint = _checkpoint_from_module(inner)
            return from_checkpoint(checkpoint, None, task=task, names=names, imgsz=imgsz, preprocess=preprocess)
        names_inside = ("_orig_mod",) if hasattr(inner, "_orig_mod") else ("module", "model")
        inner = next((part for name in names_inside if (part := getattr(inner, name, None)) is not None), None)
    asked = f"load a {type(module).__name__}"
    task = resolve_task(task, None, asked, ModelError)
    if not isinstance(example, Tensor) or example.dim() != 4:
        raise ModelError(
            asked,
            "there is no example input of shape (B, C, H, W)",
            "pass example= a float32 tensor",
            code="model-example-missing",
        )
    example = example.detach().cpu().float()
    # Copying and running a module is its own code, which may raise anything.
    try:
        copied = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    except Exception as error:
        raise ModelError(
            asked,
            f"it can't be copied ({error})",
            "remove attributes that are no weights, such as locks and tensors computed from weights",
            code="model-copy-fails",
            cause=str(error),
        ) from error
    try:
        with torch.no_grad():
            outputs = copied(example)
    except Exception as error:
        raise ModelError(
            asked,
            f"it fails on the example ({type(error).__name__}: {error})",
            "pass an example it accepts",
            code="model-example-fails",
            cause=str(error),
        ) from error
    outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    if not all(isinstance(output, Tensor) for output in outputs):
        raise ModelError(
            asked,
            "its outputs are not tensors",
            "wrap it so that it returns one tensor or a tuple of them",
            code="model-outputs-not-tensors",
        )
    shapes = [tuple(output.shape) for output in outputs]
    count = None if names is None else len(names)
    output_format = output_format or infer_output_format(task, shapes, classes=count)
    classes, kpt_shape = infer_classes(task, output_format, shapes, count, asked, ModelError)
    preprocess = preprocess or default_preprocess(task, output_format=output_format)
    model = Model(
        task=task,
        names=resolve_class_names(names, classes, asked, ModelError),
        stride=1 if task == "classify" else 32,
        imgsz=parse_imgsz(imgsz, asked, ModelError) if imgsz is not None else (example.shape[2], example.shape[3]),
        kpt_shape=kpt_shape,
        architecture=type(module).__name__,
        preprocess=with_channels(preprocess, example.shape[1], asked, ModelError),
        output_format=output_format,
        hash=hash_weights(f"{type(module).__module__}.{type(module).__qualname__}\n{module!r}", copied.state_dict()),
        module=copied,
        example=example,
        parameters=sum(parameter.numel() for parameter in copied.parameters()),
    )
    check_outputs(model, shapes, asked, ModelError)
    return model


def _checkpoint_from_module(module: nn.Module) -> Checkpoint:
    """The checkpoint as which Ultralytics would save a module."""
    children = dict(module.named_modules())
    settings = getattr(module, "args", None)  # a dictionary or a namespace
    stride = getattr(module, "stride", None)
    steps = getattr(getattr(module, "transforms", None), "transforms", ())
    normalize = next((step for step in steps if type(step).__name__ == "Normalize"), None)
    return Checkpoint(
        yaml=copy.deepcopy(module.yaml),  # type: ignore[arg-type]
        weights=module.state_dict(),
        layers=tuple(type(layer).__name__ for layer in module.model),  # type: ignore[union-attr]
        activations={
            name: describe_activation(type(child).__name__, vars(child))
            for name, child in children.items()
            if name.endswith(".act")
        },
        epsilons={
            name: child.eps for name, child in children.items() if isinstance(child, (nn.BatchNorm2d, nn.LayerNorm))
        },
        names=getattr(module, "names", None),
        stride=tuple(stride.reshape(-1).tolist()) if isinstance(stride, Tensor) else (),
        args=dict(settings) if isinstance(settings, Mapping) else dict(getattr(settings, "__dict__", {})),
        transforms=None if normalize is None else {key: _to_list(getattr(normalize, key)) for key in ("mean", "std")},
    )


def _to_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else list(value) if isinstance(value, tuple) else value


def _check_layers(yaml: Mapping[str, Any], checkpoint: Checkpoint, module: Yolo, asked: str) -> None:
    """Raise an error if the architecture contradicts the modules that were saved with it."""
    rows = [*yaml["backbone"], *yaml["head"]]
    for row, kind in zip(rows, checkpoint.layers, strict=False):
        if kind not in (str(row[2]).removeprefix("nn."), "Sequential"):
            raise UnknownLayerError(
                asked,
                f"a layer is a {kind}, but its architecture has {row[2]}",
                "use a checkpoint as Ultralytics wrote it",
                code="checkpoint-layer-mismatch",
                layer=kind,
                expected=str(row[2]),
            )
    # For an RT-DETR Ultralytics writes 32, whatever its layers have.
    strides = () if isinstance(module.head, RTDETRDecoder) else tuple(float(stride) for stride in module.strides)
    if checkpoint.stride and strides and checkpoint.stride != strides:
        raise CheckpointError(
            asked,
            f"its strides are {checkpoint.stride}, but its layers have {module.strides}",
            "use a checkpoint as Ultralytics wrote it",
            code="checkpoint-stride-mismatch",
            value=checkpoint.stride,
            expected=module.strides,
        )


def _read_preprocess(checkpoint: Checkpoint, task: str, output_format: OutputFormat, asked: str) -> Preprocess:
    """The usual preprocessing, with the mean and standard deviation in a classifier's transforms."""
    channels = int(checkpoint.yaml.get("channels") or checkpoint.yaml.get("ch") or 3)
    preprocess = default_preprocess(task, channels=channels, output_format=output_format)
    if checkpoint.transforms in (None, {"mean": [0.0] * channels, "std": [1.0] * channels}):
        return preprocess
    try:
        mean, std = (tuple(float(value) for value in checkpoint.transforms[key]) for key in ("mean", "std"))
        return dataclasses.replace(preprocess, mean=mean, std=std)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            asked,
            f"its normalization makes no sense ({error})",
            "use a checkpoint as Ultralytics wrote it",
            code="checkpoint-normalization",
        ) from error


def _merge_names(names: Names, stored: Any, classes: int, asked: str) -> dict[int, str]:
    """The caller's names, or the file's, with indices for those it lacks."""
    if names is not None:
        return resolve_class_names(names, classes, asked, ModelError)
    known: Mapping[Any, Any] = {}
    if isinstance(stored, (list, tuple)):
        known = dict(enumerate(stored))
    elif isinstance(stored, Mapping):
        known = stored
    return {index: str(known.get(index, index)) for index in range(classes)}


def _architecture_name(yaml: Mapping[str, Any]) -> str:
    """Such as "yolo11n-seg", from the name of the architecture's file."""
    stem = Path(str(yaml.get("yaml_file") or "")).stem
    scale = str(yaml.get("scale") or "")
    family, dash, task = stem.partition("-")
    return stem if not stem or family.endswith(scale) else f"{family}{scale}{dash}{task}"


def _canonical_text(value: Any) -> str:
    """An architecture as text, independent of the order of its keys."""
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{key!r}:{_canonical_text(item)}" for key, item in value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_canonical_text(item) for item in value) + "]"
    return repr(value)


def hash_weights(architecture: str, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over an architecture and weights by name, without counters of training steps.

    Args:
        architecture: Any text that stands for the layers.
        weights: Parameters and buffers by name.
    """
    parts: list[bytes | str] = [architecture]
    for name in sorted(weights):
        value = weights[name].detach().cpu()
        if not name.endswith("num_batches_tracked"):
            value = value.float() if value.dtype == torch.bfloat16 else value
            parts += [name, f"{value.dtype}{tuple(value.shape)}", value.contiguous().numpy().tobytes()]
    return hash_parts(*parts)

"""YOLO models and RT-DETR as torch modules, built from the architecture in a checkpoint."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trtkit.errors import CheckpointError, UnknownLayerError
from trtkit.models import blocks, heads, layers, rtdetr

__all__ = ["TASK_OF_HEAD", "Yolo", "build_model", "has_depthwise_scores", "load_weights"]

LAYER_LIMIT = 1000
"""Most layers of a model, repetitions included."""

SIZE_LIMIT = 1 << 16
"""Largest number in a layer's arguments."""

TASK_OF_HEAD = {
    **dict.fromkeys(("Detect", "v10Detect"), "detect"),
    **dict.fromkeys(("Segment", "Segment26"), "segment"),
    **dict.fromkeys(("Pose", "Pose26"), "pose"),
    **dict.fromkeys(("OBB", "OBB26"), "obb"),
    "Classify": "classify",
    "RTDETRDecoder": "detect",
}
SINGLE_LAYERS: dict[str, type[nn.Module]] = {
    "Conv": layers.Conv,
    "DWConv": layers.DWConv,
    "PSA": layers.PSA,
    "SCDown": layers.SCDown,
    "SPPF": layers.SPPF,
    "Bottleneck": layers.Bottleneck,
}
REPEATED_LAYERS: dict[str, type[nn.Module]] = {
    "C2f": layers.C2f,
    "C2fCIB": layers.C2fCIB,
    "C3": layers.C3,
    "C3k2": layers.C3k2,
    "C2PSA": layers.C2PSA,
}
SINGLE_BLOCKS: dict[str, type[nn.Module]] = {
    name: getattr(blocks, name)
    for name in ("SPP", "GhostConv", "GhostBottleneck", "RepConv", "RepNCSPELAN4", "ELAN1", "AConv", "ADown", "SPPELAN")
}
REPEATED_BLOCKS: dict[str, type[nn.Module]] = {
    name: getattr(blocks, name) for name in ("C2", "C3Ghost", "RepC3", "A2C2f")
}
STRIDE_ARGUMENT = dict.fromkeys(("Conv", "DWConv", "SCDown", "GhostConv", "GhostBottleneck", "RepConv"), 1)
"""Where a layer's arguments behind its channels hold the stride."""

FUSED_LAYERS = (layers.Conv, layers.RepVGGDW, blocks.RepConv, rtdetr.ProjectionConv)
"""Modules that fold a BatchNorm or merge convolutions."""

LITERALS = {"None": None, "True": True, "False": False}


class Yolo(nn.Module):
    """Layers in order, each reading the outputs of one or several earlier layers.

    Args:
        modules: The layers; the last is the head.
        sources: The layers that each layer reads: -1 for the previous one, else a layer's index.
        task: The head's task.

    Attributes:
        model: The layers.
        sources: As passed.
        task: As passed.
        strides: Strides of the feature maps that the head reads, pixels.
    """

    def __init__(self, modules: Sequence[nn.Module], sources: Sequence[tuple[int, ...]], task: str) -> None:
        super().__init__()
        self.model = nn.Sequential(*modules)
        self.sources = tuple(sources)
        self.task = task
        self.strides: tuple[int, ...] = getattr(modules[-1], "strides", (1,))
        self.saved_layers = frozenset(index for source in sources for index in source if index >= 0)

    def forward(self, x: Tensor) -> Any:
        """The head's output for images (B, channels, H, W), RGB between 0 and 1."""
        outputs: dict[int, Tensor] = {}
        for index, (layer, source) in enumerate(zip(self.model, self.sources, strict=True)):
            inputs = [x if number == -1 else outputs[number] for number in source]
            reads_list = isinstance(layer, (layers.Concat, blocks.CBFuse, heads.Detect, rtdetr.RTDETRDecoder))
            x = layer(inputs if reads_list else inputs[0])
            if index in self.saved_layers:
                outputs[index] = x
        return x

    def fuse(self) -> Yolo:
        """Fold every BatchNorm into its layers and merge reparameterized convolutions."""
        for module in list(self.modules()):
            if isinstance(module, FUSED_LAYERS):
                module.fuse()
        return self

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.model[-1]

    def with_head(self, **attributes: Any) -> Yolo:
        """A model that shares all weights with this one and has other attributes of the head, such as `end2end`."""
        head = copy.copy(self.head)
        vars(head).update(attributes)
        model = copy.copy(self)
        # A shallow copy shares the dictionary of its modules.
        model._modules = {**self._modules, "model": nn.Sequential(*list(self.model)[:-1], head)}
        return model

    def count_parameters(self) -> int:
        """Number of weights, without those of head branches that do not run."""
        idle: set[int] = set()
        if isinstance(self.head, heads.Detect):
            idle = {id(parameter) for parameter in self.head.idle_parameters()}
        return sum(parameter.numel() for parameter in self.parameters() if id(parameter) not in idle)


def build_model(yaml: Mapping[str, Any], *, depthwise_scores: bool | None = None, asked: str = "build a model") -> Yolo:
    """Build the module of an architecture, without weights (on torch's meta device).

    Args:
        yaml: `nc`, `backbone` and `head` as in Ultralytics' model files, with `scales` and `scale`, or
            `depth_multiple` and `width_multiple`; `kpt_shape` for pose; optionally `activation`, `channels`, `reg_max`.
        depthwise_scores: Whether the class branch is the depthwise one that YOLO11 introduced (`has_depthwise_scores`);
            None decides by the layers.
        asked: What was asked for, for errors.

    Raises:
        UnknownLayerError: It names a layer that trtkit does not build.
        CheckpointError: It is malformed.
    """
    try:
        with torch.device("meta"):
            return _ModelBuilder(yaml, depthwise_scores, asked).build()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            asked,
            f"its architecture is invalid ({error})",
            "use a checkpoint as Ultralytics wrote it",
            code="checkpoint-architecture-invalid",
            cause=str(error),
        ) from error


class _ModelBuilder:
    """Builds the layers of an architecture in order and tracks their channels and strides."""

    def __init__(self, yaml: Mapping[str, Any], depthwise_scores: bool | None, asked: str) -> None:
        self.yaml, self.asked = yaml, asked
        self.rows = [*yaml["backbone"], *yaml["head"]]
        self.depth, self.width, self.limit = _read_scale(yaml)
        self.is_large = str(yaml.get("scale", "")) in ("m", "l", "x")
        self.values = {**LITERALS, "nc": yaml.get("nc"), "kpt_shape": yaml.get("kpt_shape")}
        self.bins = int(yaml.get("reg_max") or 16)
        self.channels = [int(yaml.get("channels") or yaml.get("ch") or 3)]
        self.strides = [1.0]
        self.count = 0
        self.depthwise_scores = depthwise_scores
        if depthwise_scores is None:
            self.depthwise_scores = any(row[2] in ("C3k2", "A2C2f", "C2fCIB") for row in self.rows)
        if not self.rows:
            raise ValueError("no layers")

    def build(self) -> Yolo:
        """Build the module."""
        modules, sources = [], []
        for index, (source, repeats, name, arguments) in enumerate(self.rows):
            # The first layer reads the image; afterwards entry i of the lists belongs to layer i.
            inputs = tuple(number if number == -1 else range(index)[number] for number in _read_sources(source))
            c1 = [self.channels[number] for number in inputs]
            strides = [self.strides[number] for number in inputs]
            values = [self.resolve_value(value) for value in arguments]
            layer, c2, factor = self.build_layer(str(name), int(repeats), c1, strides, values)
            modules.append(layer)
            sources.append(inputs)
            if index == 0:
                self.channels, self.strides = [], []
            self.channels.append(c2)
            self.strides.append(strides[0] * factor)
        head = str(self.rows[-1][2])
        if head not in TASK_OF_HEAD:
            raise _unknown_layer(self.asked, f"the head {head}")
        model = Yolo(modules, sources, TASK_OF_HEAD[head])
        activation = self.resolve_activation()
        # Ultralytics sets 1e-3 after building a model, except for classifiers.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-5 if head == "Classify" else 1e-3
            if isinstance(module, (layers.Conv, blocks.RepConv)) and isinstance(module.act, nn.SiLU):
                module.act = copy.deepcopy(activation)
        return model

    def resolve_activation(self) -> nn.Module:
        """The activation in place of SiLU, from a text such as "nn.ReLU()"."""
        text = str(self.yaml.get("activation") or "nn.SiLU()")
        activation = layers.parse_activation(text)
        if activation is None:
            raise _unknown_layer(self.asked, f"an activation {text}")
        return activation

    def resolve_value(self, value: Any) -> Any:
        """An argument; `nc`, `kpt_shape`, None, True and False as text become their values."""
        value = self.values.get(value, value) if isinstance(value, str) else value
        for number in value if isinstance(value, (list, tuple)) else [value]:
            # -1 stands for no areas of attention (YOLO12).
            if isinstance(number, (int, float)) and not -1 <= number <= SIZE_LIMIT:
                raise ValueError(f"{number} as a size")
        return value

    def scale_channels(self, c2: Any) -> int:
        """Channels at this model's width, a multiple of 8."""
        return math.ceil(float(min(c2, self.limit)) * self.width / 8) * 8

    def build_layer(
        self, name: str, repeats: int, c1: list[int], strides: list[float], values: list[Any]
    ) -> tuple[nn.Module, int, float]:
        """A layer, its output channels, and its stride relative to its input."""
        if repeats > 1:
            repeats = max(round(repeats * self.depth), 1)
        self.count += max(repeats, 1)
        if self.count > LAYER_LIMIT:
            raise ValueError(f"more than {LAYER_LIMIT} layers")
        if name == "Concat" and values == [1]:
            return layers.Concat(*values), sum(c1), 1
        if name in ("nn.Upsample", "Upsample") and values[0] is None and values[2:] in ([], ["nearest"]):
            return nn.Upsample(*values), c1[0], 1 / values[1]
        built = self.build_other_layer(name, repeats, c1, strides, values)
        if built is not None:
            return built
        if name == "Classify":
            return heads.Classify(c1[0], *values), values[0], 1
        if name in TASK_OF_HEAD:
            return self.build_head(name, c1, strides, values), 0, 1
        repeated = REPEATED_LAYERS.get(name) or REPEATED_BLOCKS.get(name)
        if repeated is not None:
            c2, rest = self.scale_channels(values[0]), values[1:]
            if name == "C3k2" and self.is_large:
                rest[:1] = [True]
            if name == "A2C2f" and self.yaml.get("scale") in ("l", "x"):
                rest += [True, 1.2]
            return repeated(c1[0], c2, repeats, *rest), c2, 1
        single = SINGLE_LAYERS.get(name) or SINGLE_BLOCKS.get(name)
        if single is not None:
            c2, rest = self.scale_channels(values[0]), values[1:]
            modules = [single(c2 if number else c1[0], c2, *rest) for number in range(repeats)]
            slot = STRIDE_ARGUMENT.get(name, len(rest))
            factor = 2 if name in ("AConv", "ADown") else rest[slot] if slot < len(rest) else 1
            return (modules[0] if repeats == 1 else nn.Sequential(*modules)), c2, factor**repeats
        raise _unknown_layer(self.asked, f"a layer {name}({', '.join(map(str, values))})")

    def build_other_layer(
        self, name: str, repeats: int, c1: list[int], strides: list[float], values: list[Any]
    ) -> tuple[nn.Module, int, float] | None:
        """As `build_layer`, for layers whose arguments do not begin with their output channels; else None."""
        if name == "nn.Identity" and not values:
            return nn.Identity(), c1[0], 1
        if name == "nn.MaxPool2d" and len(values) == 3:
            return nn.MaxPool2d(*values), c1[0], values[1]
        if name == "nn.ZeroPad2d" and len(values) == 1:
            return nn.ZeroPad2d(tuple(values[0])), c1[0], 1
        if name == "nn.ConvTranspose2d" and repeats == 1 and len(values) == 4:
            c2 = self.scale_channels(values[0])
            return nn.ConvTranspose2d(c1[0], c2, *values[1:]), c2, 1 / values[2]
        if name == "CBLinear":
            # Only a CBFuse reads its feature maps, whose channels are those of the map they are added to.
            return blocks.CBLinear(c1[0], *values), 0, 1
        if name == "CBFuse":
            factors = [int(stride / strides[-1]) for stride in strides[:-1]]
            return blocks.CBFuse(values[0], factors), c1[-1], strides[-1] / strides[0]
        if name == "ResNetLayer":
            c2 = values[1] if values[3] else 4 * values[1]
            return blocks.ResNetLayer(*values), c2, 4 if values[3] else values[2]
        if name == "HGStem":
            return rtdetr.HGStem(c1[0], *values), values[1], 4
        if name == "HGBlock":
            hidden, c2, k, *rest = values
            return rtdetr.HGBlock(c1[0], hidden, c2, k, repeats, *rest), c2, 1
        if name == "AIFI":
            return rtdetr.AIFI(c1[0], *values), c1[0], 1
        if name == "RTDETRDecoder":
            head_strides = [int(stride) for stride in strides]
            return rtdetr.RTDETRDecoder(values[0], c1, head_strides, *values[1:]), 0, 1
        return None

    def build_head(self, name: str, c1: list[int], strides: list[float], values: list[Any]) -> nn.Module:
        """A head that reads several feature maps."""
        head_strides = [int(stride) for stride in strides]
        if name in ("Segment", "Segment26"):
            values[2] = self.scale_channels(values[2])
        kind: Any = getattr(heads, name)
        one_to_one = bool(self.yaml.get("end2end"))
        head: nn.Module = kind(*values, c1, head_strides, self.bins, self.depthwise_scores, one_to_one)
        return head


def _read_sources(source: Any) -> list[int]:
    return [int(source)] if isinstance(source, int) else [int(number) for number in source]


def _read_scale(yaml: Mapping[str, Any]) -> tuple[float, float, float]:
    """Depth multiple, width multiple and the largest number of channels before the width multiple."""
    scales = yaml.get("scales")
    if not scales:
        return float(yaml.get("depth_multiple", 1)), float(yaml.get("width_multiple", 1)), math.inf
    depth, width, limit = scales[yaml.get("scale") or next(iter(scales))]
    return float(depth), float(width), float(limit)


def load_weights(
    model: Yolo,
    weights: Mapping[str, Tensor],
    activations: Mapping[str, str] | None = None,
    epsilons: Mapping[str, float] | None = None,
    *,
    asked: str = "load weights",
) -> Yolo:
    """Load weights into a module from `build_model` as FP32, and fold every BatchNorm.

    Args:
        model: A module from `build_model`.
        weights: Tensors by name, which are copied; names must be exactly those of the module.
        activations: Texts of the activations by module name (`layers.parse_activation`); they take precedence over the
            architecture.
        epsilons: Epsilon of each BatchNorm by module name; likewise.
        asked: What was asked for, for errors.

    Raises:
        UnknownLayerError: trtkit has no such activation.
        CheckpointError: The weights do not fit the architecture.
    """
    weights = _select_head_weights(model, weights)
    modules = dict(model.named_modules())
    for name, module in modules.items():
        text = (activations or {}).get(f"{name}.act")
        if text is not None and isinstance(getattr(module, "act", None), nn.Module):
            activation = layers.parse_activation(text)
            if activation is None:
                raise _unknown_layer(asked, f"an activation {text}")
            module.act = activation
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.eps = (epsilons or {}).get(name, module.eps)
    if not any(name.endswith(".bn.weight") for name in weights):
        for module in modules.values():
            if isinstance(module, (layers.Conv, layers.RepVGGDW, blocks.RepConv)):
                module.remove_bn()
    expected = model.state_dict()
    for name in {**expected, **weights}:
        shapes = [tuple(side[name].shape) if name in side else None for side in (expected, weights)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                asked,
                f"its weights do not fit its architecture ({name} is {shapes[1]} instead of {shapes[0]})",
                "use a checkpoint as Ultralytics wrote it",
                code="checkpoint-weights-mismatch",
                weight=name,
                shape=shapes[1],
                expected=shapes[0],
            )
    values = {
        name: value.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
        if value.is_floating_point()
        else value
        for name, value in weights.items()
    }
    model.load_state_dict(values, strict=True, assign=True)
    return model.eval().requires_grad_(False).fuse()


def _select_head_weights(model: Yolo, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without those that only training needs; the head loses branches that the weights lack.

    Ultralytics' `fuse()` removes the branches that do not run.
    """
    if not isinstance(model.head, heads.Detect):
        return dict(weights)
    prefix = f"model.{len(model.model) - 1}."
    training_only = tuple(f"{prefix}{name}." for name in model.head.TRAINING_ONLY)
    has = {
        end2end: any(name.startswith(f"{prefix}{'one2one_' if end2end else ''}cv2.") for name in weights)
        for end2end in (False, True)
    }
    if any(has.values()):
        for end2end in (False, True):
            if model.head.has_branches(end2end=end2end) and not has[end2end]:
                model.head.remove_branches(end2end=end2end)
    return {name: value for name, value in weights.items() if not name.startswith(training_only)}


def has_depthwise_scores(weights: Iterable[str]) -> bool | None:
    """Whether a checkpoint's class branch is the depthwise one, which Ultralytics 8.3.0 to 8.3.10 gave YOLOv8, too.

    Args:
        weights: Names of the weights.

    Returns:
        None if the last layer has no class branch.
    """
    pattern = re.compile(r"model\.(\d+)\.(?:one2one_)?cv3\.0\.0\.(\d\.)?conv\.weight")
    found = {int(match[1]): bool(match[2]) for name in weights if (match := pattern.fullmatch(name))}
    return found[max(found)] if found else None


def _unknown_layer(asked: str, what: str) -> UnknownLayerError:
    return UnknownLayerError(
        asked,
        f"it has {what}, which trtkit does not build",
        "run `yolo export model=X.pt format=onnx` where Ultralytics is installed, and load that ONNX file",
        code="checkpoint-layer-unknown",
        layer=what,
    )

"""YOLOv8 and YOLO11 as our own torch modules, built from the architecture a checkpoint keeps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trtkit.errors import CheckpointError, UnknownLayerError
from trtkit.models import heads
from trtkit.models import layers as blocks
from trtkit.models import layers as convolution

__all__ = ["TASK_OF_HEAD", "Yolo", "build_model", "load_weights"]

TASK_OF_HEAD = {"Detect": "detect", "Segment": "segment", "Classify": "classify", "Pose": "pose", "OBB": "obb"}
SINGLE_LAYERS: dict[str, type[nn.Module]] = {
    "Conv": convolution.Conv,
    "DWConv": convolution.DWConv,
    "SPPF": blocks.SPPF,
}
REPEATED_LAYERS: dict[str, type[nn.Module]] = {
    "C2f": blocks.C2f,
    "C3": blocks.C3,
    "C3k2": blocks.C3k2,
    "C2PSA": blocks.C2PSA,
}
LITERALS = {"None": None, "True": True, "False": False}
LAYER_LIMIT = 1000
SIZE_LIMIT = 1 << 16


class Yolo(nn.Module):
    """Layers that read from one or several earlier ones.

    Attributes:
        model: The layers; the last is the head.
        sources: Where each layer reads from: -1 for the layer before, else a layer's index.
        task: What the head does.
        strides: Strides of the feature maps the head reads, pixels.
    """

    def __init__(self, layers: Sequence[nn.Module], sources: Sequence[tuple[int, ...]], task: str) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)
        self.sources = tuple(sources)
        self.task = task
        self.strides: tuple[int, ...] = getattr(layers[-1], "strides", (1,))
        self.kept = frozenset(index for source in sources for index in source if index >= 0)

    def forward(self, x: Tensor) -> Any:
        """The head's output for images (B, channels, H, W), RGB between 0 and 1."""
        outputs: dict[int, Tensor] = {}
        for index, (layer, source) in enumerate(zip(self.model, self.sources, strict=True)):
            inputs = [x if number == -1 else outputs[number] for number in source]
            several = isinstance(layer, (convolution.Concat, heads.Detect))
            x = layer(inputs if several else inputs[0])
            if index in self.kept:
                outputs[index] = x
        return x

    def fuse(self) -> Yolo:
        """Fold every BatchNorm into its convolution."""
        for module in self.modules():
            if isinstance(module, convolution.Conv):
                module.fuse()
        return self


def build_model(yaml: Mapping[str, Any], *, asked: str = "build a model") -> Yolo:
    """The module that an architecture describes, without weights (on torch's meta device).

    Args:
        yaml: `nc`, `backbone` and `head` as in Ultralytics' model files, with `scales` and `scale`, or
            `depth_multiple` and `width_multiple`; `kpt_shape` for pose; optionally `activation`, `channels`, `reg_max`.
        asked: How an error names the work.

    Raises:
        UnknownLayerError: It names a layer that is not built here.
        CheckpointError: It is malformed.
    """
    try:
        with torch.device("meta"):
            return _ModelBuilder(yaml, asked).build()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            asked, f"its architecture makes no sense ({error})", "use a checkpoint as Ultralytics wrote it"
        ) from error


class _ModelBuilder:
    """Goes through the layers of an architecture and keeps count of channels and strides."""

    def __init__(self, yaml: Mapping[str, Any], asked: str) -> None:
        self.yaml, self.asked = yaml, asked
        self.rows = [*yaml["backbone"], *yaml["head"]]
        self.depth, self.width, self.limit = _read_scale(yaml)
        self.large = str(yaml.get("scale", "")) in ("m", "l", "x")
        self.known = {**LITERALS, "nc": yaml.get("nc"), "kpt_shape": yaml.get("kpt_shape")}
        self.bins = int(yaml.get("reg_max") or 16)
        self.channels = [int(yaml.get("channels") or yaml.get("ch") or 3)]
        self.strides = [1.0]
        self.count = 0
        self.light = any(row[2] == "C3k2" for row in self.rows)
        if yaml.get("end2end"):
            raise _unknown_layer(self.asked, "an end-to-end head")
        if not self.rows:
            raise ValueError("no layers")

    def build(self) -> Yolo:
        """The whole module."""
        layers, sources = [], []
        for index, (source, repeats, name, arguments) in enumerate(self.rows):
            # The first layer reads the image; from then on, entry i of the lists belongs to layer i.
            found = tuple(number if number == -1 else range(index)[number] for number in _read_sources(source))
            c1 = [self.channels[number] for number in found]
            strides = [self.strides[number] for number in found]
            values = [self.value(value) for value in arguments]
            layer, c2, factor = self.layer(str(name), int(repeats), c1, strides, values)
            layers.append(layer)
            sources.append(found)
            if index == 0:
                self.channels, self.strides = [], []
            self.channels.append(c2)
            self.strides.append(strides[0] * factor)
        head = str(self.rows[-1][2])
        if head not in TASK_OF_HEAD:
            raise _unknown_layer(self.asked, f"the head {head}")
        model = Yolo(layers, sources, TASK_OF_HEAD[head])
        activation = self.activation()
        # Ultralytics sets 1e-3 after building a model, but forgets to for classifiers.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-5 if head == "Classify" else 1e-3
            if isinstance(module, convolution.Conv) and isinstance(module.act, nn.SiLU):
                module.act = activation()
        return model

    def activation(self) -> type[nn.Module]:
        """The activation that stands in for SiLU, from a text such as "nn.ReLU()"."""
        text = str(self.yaml.get("activation") or "nn.SiLU()")
        found = re.fullmatch(r"(?:torch\.)?nn\.(\w+)\((?:inplace=\w+)?\)", text)
        if found is None or found[1] not in convolution.ACTIVATIONS:
            raise _unknown_layer(self.asked, f"an activation {text}")
        return convolution.ACTIVATIONS[found[1]]

    def value(self, value: Any) -> Any:
        """An argument, with names and the words None, True and False looked up."""
        value = self.known.get(value, value) if isinstance(value, str) else value
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, (int, float)) and not 0 <= number <= SIZE_LIMIT:
                raise ValueError(f"{number} as a size")
        return value

    def scaled(self, c2: Any) -> int:
        """Channels at this model's width, a multiple of 8."""
        return math.ceil(float(min(c2, self.limit)) * self.width / 8) * 8

    def layer(
        self, name: str, repeats: int, c1: list[int], strides: list[float], values: list[Any]
    ) -> tuple[nn.Module, int, float]:
        """A layer, its channels, and how much coarser than its input it is."""
        if repeats > 1:
            repeats = max(round(repeats * self.depth), 1)
        self.count += max(repeats, 1)
        if self.count > LAYER_LIMIT:
            raise ValueError(f"more than {LAYER_LIMIT} layers")
        if name == "Concat" and values == [1]:
            return convolution.Concat(*values), sum(c1), 1
        if name in ("nn.Upsample", "Upsample") and values[0] is None and values[2:] in ([], ["nearest"]):
            return nn.Upsample(*values), c1[0], 1 / values[1]
        if name == "Classify":
            return heads.Classify(c1[0], *values), values[0], 1
        if name in TASK_OF_HEAD:
            return self.head(name, c1, strides, values), 0, 1
        if name in REPEATED_LAYERS:
            c2, rest = self.scaled(values[0]), values[1:]
            if name == "C3k2" and self.large:
                rest[:1] = [True]
            return REPEATED_LAYERS[name](c1[0], c2, repeats, *rest), c2, 1
        if name in SINGLE_LAYERS:
            c2, rest = self.scaled(values[0]), values[1:]
            made = [SINGLE_LAYERS[name](c2 if number else c1[0], c2, *rest) for number in range(repeats)]
            factor = rest[1] if name != "SPPF" and len(rest) > 1 else 1
            return (made[0] if repeats == 1 else nn.Sequential(*made)), c2, factor**repeats
        raise _unknown_layer(self.asked, f"a layer {name}({', '.join(map(str, values))})")

    def head(self, name: str, c1: list[int], strides: list[float], values: list[Any]) -> nn.Module:
        """A head that reads several feature maps."""
        steps = [int(stride) for stride in strides]
        if name == "Segment":
            values[2] = self.scaled(values[2])
        kind: Any = getattr(heads, name)
        made: nn.Module = kind(*values, c1, steps, self.bins, self.light)
        return made


def _read_sources(source: Any) -> list[int]:
    return [int(source)] if isinstance(source, int) else [int(number) for number in source]


def _read_scale(yaml: Mapping[str, Any]) -> tuple[float, float, float]:
    """Depth multiple, width multiple and the most channels before the width multiple."""
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
    """Put weights into a module from `build_model`, as FP32, and fold every BatchNorm.

    Args:
        model: A module from `build_model`.
        weights: Tensors by name; every name must match, both ways. They are copied.
        activations: Class names of the activations by module name; they win over what the architecture implies.
        epsilons: What each BatchNorm adds to the variance, by module name; likewise.
        asked: How an error names the work.

    Raises:
        UnknownLayerError: An activation is not built here.
        CheckpointError: The weights do not fit the architecture.
    """
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, convolution.Conv)}
    for name, module in convolutions.items():
        kind = (activations or {}).get(f"{name}.act", type(module.act).__name__)
        if kind not in convolution.ACTIVATIONS:
            raise _unknown_layer(asked, f"an activation {kind}")
        if type(module.act) is not convolution.ACTIVATIONS[kind]:
            module.act = convolution.ACTIVATIONS[kind]()
        if module.bn is not None:
            module.bn.eps = (epsilons or {}).get(f"{name}.bn", module.bn.eps)
    if not any(name.endswith(".bn.weight") for name in weights):
        for module in convolutions.values():
            module.strip()
    expected = model.state_dict()
    for name in {**expected, **weights}:
        shapes = [tuple(side[name].shape) if name in side else None for side in (expected, weights)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                asked,
                f"its weights do not fit its architecture ({name} is {shapes[1]} instead of {shapes[0]})",
                "use a checkpoint as Ultralytics wrote it",
            )
    plain = torch.contiguous_format
    values = {
        name: value.detach().to("cpu", torch.float32, copy=True, memory_format=plain)
        if value.is_floating_point()
        else value
        for name, value in weights.items()
    }
    model.load_state_dict(values, strict=True, assign=True)
    return model.eval().requires_grad_(False).fuse()


def _unknown_layer(asked: str, what: str) -> UnknownLayerError:
    return UnknownLayerError(
        asked, f"it has {what}, which trtkit does not build", "export it to ONNX elsewhere and load that file"
    )

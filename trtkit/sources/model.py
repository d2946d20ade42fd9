"""A model, whatever it was read from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.sources.card import Card

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["Model"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model(Card):
    """A card with the weights: either a torch module or an ONNX graph.

    Attributes:
        hash: SHA-256 of architecture and weights, 64 hex digits.
        source: The file it was read from, or None for a module handed over.
        module: The torch module in evaluation mode and FP32, BatchNorm fused, or None.
        proto: The ONNX graph, or None.
        example: An example input, needed to trace a module that is not ours; NCHW float32, or None.
        parameters: Number of weights.
    """

    hash: str
    source: Path | None = None
    module: torch.nn.Module | None = None
    proto: onnx.ModelProto | None = None
    example: Any = None
    parameters: int = 0

    @property
    def card(self) -> Card:
        """The description without the weights."""
        return Card(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Card)})

    @property
    def stem(self) -> str:
        """The name that exports start with: the source's stem, or the architecture."""
        return self.source.stem if self.source is not None else (self.architecture or "model")

    def __repr__(self) -> str:
        kind = "torch" if self.module is not None else "ONNX"
        return (
            f"Model({self.stem}: {self.task}, {len(self.names)} classes, imgsz {self.imgsz[0]}x{self.imgsz[1]}, "
            f"{self.parameters:,} parameters, {kind}, {self.hash[:12]})"
        )

"""The variants that `levers.py` builds: a graph, what is rewritten in it, and what TensorRT is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import onnx
from lever_passes import expand_sums, read_int8, read_uint8
from space_to_depth import make_blocks

from trtkit.graph.analysis import GraphIndex, block_of
from trtkit.graph.concatenations import upsample_after_conv
from trtkit.graph.passes import fold_sums
from trtkit.graph.qdq import expand_int8_weights
from trtkit.graph.space_to_depth import convert_input, read_blocks

__all__ = ["BASES", "INPUTS", "KEPT", "NOISY", "PRECISIONS", "REWRITINGS", "VARIANTS", "Variant"]

PRECISIONS = ("fp16", "int8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """An engine to build.

    Attributes:
        base: The graph that `prepare` writes: one of `BASES`.
        input: Rewriting of the input, one of `INPUTS`; "" for FP32 NCHW.
        formats: Types and formats that TensorRT is given for inputs and outputs: "half-in", "eight-in", "linear-in",
            "vector-in", "vector32-in", "half-out", "any-out".
        precisions: Which precisions have it.
        space_to_depth: Whether it reads pixels in blocks, as `export(space_to_depth=True)` builds it.
        by_convolution: Whether pixels are repeated by a transposed convolution (`upsample_by_convolution`).
        whole: Whether convolutions read splits in whole (`read_splits_whole`).
        by_flags: Whether an FP16 graph is given in FP32, with TensorRT's FP16 flag (`use_flags`).
        streams: Auxiliary streams that TensorRT may run branches on; None leaves it to TensorRT.
        fold: Height and width of the blocks that narrow maps are computed in (`move_space_to_depth`); None leaves them.
        level: Optimization level; None takes that of the command. Timings of kernels are then shared with no other
            variant: a level decides which kernels are timed.
    """

    base: str = "today"
    input: str = ""
    formats: tuple[str, ...] = ()
    precisions: tuple[str, ...] = PRECISIONS
    space_to_depth: bool = False
    by_convolution: bool = False
    whole: bool = False
    by_flags: bool = False
    streams: int | None = None
    fold: tuple[int, int] | None = None
    level: int | None = None

    @property
    def runs_predict(self) -> bool:
        """Whether trtkit's runner reads its inputs and outputs."""
        return not (self.input or self.formats)


BASES: Mapping[str, dict[str, Any]] = {
    "plain": {"simplify": False},
    "today": {},
    "raw": {"decode": False},
    "nms": {"nms": True},
    "end2end": {"end2end": True},
    "end2end-raw": {"end2end": True, "decode": False},
    "joined": {},
    "joined-raw": {"decode": False},
    "unsummed": {},
    "unsummed-raw": {"decode": False},
    "upsampled": {},
    "upsampled-raw": {"decode": False},
    "expanded-raw": {"decode": False},
    "behind-raw": {"decode": False},
    "shifted": {},
    "raw-depthwise-float": {"decode": False},
    "raw-first-float": {"decode": False},
    "unsummed-raw-boxes-float": {"decode": False},
    "unsummed-raw-head-float": {"decode": False},
    "unsummed-raw-noisy-float": {"decode": False},
}
"""Arguments of `export` for each graph, all without `fold_sums`, which `REWRITINGS` names where it is applied. Of
"joined" convolutions that read the same tensor are joined first; in "shifted" the middle of a range is subtracted
before Q/DQ where only 1x1 convolutions read."""

REWRITINGS: Mapping[str, tuple[Callable[[onnx.ModelProto], onnx.ModelProto], ...]] = {
    "unsummed": (fold_sums,),
    "expanded": (fold_sums, expand_sums),
    "upsampled": (fold_sums, upsample_after_conv),
    "behind": (fold_sums, expand_sums, upsample_after_conv),
}
"""What is done to the FP32 graph of a base, by what its name begins with."""

KEPT: Mapping[str, Callable[[GraphIndex, onnx.NodeProto], bool]] = {
    "raw-depthwise-float": lambda index, node: node.op_type == "Conv" and index.group(node) > 1,
    "raw-first-float": lambda index, node: node.input[0] == index.graph.input[0].name,
    "unsummed-raw-boxes-float": lambda index, node: "/cv2." in block_of(node.name),
    "unsummed-raw-head-float": lambda index, node: "/cv" in block_of(node.name),
}
"""Layers that stay out of INT8, of the graphs that have such."""

NOISY: Mapping[str, int] = {"unsummed-raw-noisy-float": 6}
"""Of graphs whose head stays out of INT8, the number of maps before it whose readers do too, the noisiest first."""

VARIANTS: Mapping[str, Variant] = {
    "plain": Variant(base="plain", precisions=("fp16",)),
    "today": Variant(),
    "raw": Variant(base="raw"),
    "nms": Variant(base="nms"),
    "end2end": Variant(base="end2end"),
    "end2end-raw": Variant(base="end2end-raw"),
    "joined": Variant(base="joined"),
    "uint8-nhwc": Variant(input="uint8-nhwc"),
    "uint8-nchw": Variant(input="uint8-nchw"),
    "int8-input": Variant(input="int8", precisions=("int8",)),
    "half-in": Variant(formats=("half-in",)),
    "quantized-in": Variant(input="quantized", precisions=("int8",)),
    "vector-in": Variant(input="quantized", formats=("vector-in",), precisions=("int8",)),
    "streams": Variant(streams=4),
    "raw-streams": Variant(base="raw", streams=4),
    "one-stream": Variant(streams=0),
    "two-streams": Variant(streams=2),
    "eight-streams": Variant(streams=8),
    "raw-eight-streams": Variant(base="raw", streams=8),
    "streams-level-3": Variant(streams=4, level=3),
    "streams-level-5": Variant(streams=4, level=5),
    "raw-streams-level-3": Variant(base="raw", streams=4, level=3),
    "raw-streams-level-5": Variant(base="raw", streams=4, level=5),
    "shifted": Variant(base="shifted", precisions=("int8",)),
    "all-in-one": Variant(base="raw", formats=("half-in", "any-out"), streams=4),
    "raw-vector-in": Variant(base="raw", input="quantized", formats=("vector-in",), precisions=("int8",)),
    "raw-vector-in-streams": Variant(
        base="raw", input="quantized", formats=("vector-in", "any-out"), precisions=("int8",), streams=4
    ),
    "raw-any-out": Variant(base="raw", formats=("any-out",)),
    "raw-depthwise-float": Variant(base="raw-depthwise-float", precisions=("int8",)),
    "raw-first-float": Variant(base="raw-first-float", precisions=("int8",)),
    "raw-first-float-uint8": Variant(base="raw-first-float", input="uint8-nhwc", precisions=("int8",)),
    "raw-uint8-nhwc": Variant(base="raw", input="uint8-nhwc"),
    "raw-int8-input": Variant(base="raw", input="int8", precisions=("int8",)),
    "folded": Variant(fold=(2, 2)),
    "folded-streams": Variant(fold=(2, 2), streams=4),
    "raw-folded-streams": Variant(base="raw", fold=(2, 2), streams=4),
    "raw-half-streams": Variant(base="raw", formats=("half-in",), streams=4),
    "raw-folded-half-streams": Variant(base="raw", fold=(2, 2), formats=("half-in",), streams=4, precisions=("fp16",)),
    "raw-folded-columns-streams": Variant(base="raw", fold=(1, 2), streams=4),
    "raw-folded-blocks-streams": Variant(
        base="raw", input="quantized-blocks", fold=(2, 2), formats=("vector32-in",), streams=4, precisions=("int8",)
    ),
    "raw-folded-graph-blocks-streams": Variant(base="raw", input="graph-blocks", fold=(2, 2), streams=4),
    "raw-blocks-streams": Variant(base="raw", input="blocks", streams=4),
    "raw-half-blocks-streams": Variant(
        base="raw", input="blocks", formats=("half-in", "eight-in"), streams=4, precisions=("fp16",)
    ),
    "raw-linear-blocks-streams": Variant(base="raw", input="quantized-blocks", streams=4, precisions=("int8",)),
    "raw-vector-blocks-streams": Variant(
        base="raw", input="quantized-blocks", formats=("vector32-in",), streams=4, precisions=("int8",)
    ),
    "raw-vector-small-blocks-streams": Variant(
        base="raw", input="quantized-small-blocks", formats=("vector32-in",), streams=4, precisions=("int8",)
    ),
    "vector-blocks-streams": Variant(
        input="quantized-blocks", formats=("vector32-in",), streams=4, precisions=("int8",)
    ),
    "blocks": Variant(space_to_depth=True),
    "blocks-raw": Variant(base="raw", space_to_depth=True),
    "blocks-streams": Variant(space_to_depth=True, streams=4),
    "blocks-raw-streams": Variant(base="raw", space_to_depth=True, streams=4),
    "blocks-raw-folded-streams": Variant(base="raw", space_to_depth=True, fold=(2, 2), precisions=("int8",), streams=4),
    "blocks-raw-convolution-streams": Variant(
        base="raw", space_to_depth=True, by_convolution=True, precisions=("int8",), streams=4
    ),
    "raw-convolution-streams": Variant(base="raw", by_convolution=True, precisions=("int8",), streams=4),
    "unsummed": Variant(base="unsummed"),
    "unsummed-raw-streams": Variant(base="unsummed-raw", streams=4),
    "blocks-unsummed-raw-streams": Variant(base="unsummed-raw", space_to_depth=True, streams=4),
    "whole": Variant(base="unsummed", whole=True),
    "upsampled": Variant(base="upsampled"),
    "upsampled-raw-streams": Variant(base="upsampled-raw", streams=4),
    "upsampled-whole-raw-streams": Variant(base="upsampled-raw", whole=True, streams=4),
    "blocks-upsampled-raw-streams": Variant(base="upsampled-raw", space_to_depth=True, streams=4),
    "blocks-upsampled-whole-raw-streams": Variant(base="upsampled-raw", space_to_depth=True, whole=True, streams=4),
    "whole-raw-streams": Variant(base="unsummed-raw", whole=True, streams=4),
    "blocks-whole-raw-streams": Variant(base="unsummed-raw", space_to_depth=True, whole=True, streams=4),
    "blocks-whole-raw-boxes-float-streams": Variant(
        base="unsummed-raw-boxes-float", space_to_depth=True, whole=True, precisions=("int8",), streams=4
    ),
    "blocks-whole-raw-head-float-streams": Variant(
        base="unsummed-raw-head-float", space_to_depth=True, whole=True, precisions=("int8",), streams=4
    ),
    "blocks-whole-raw-noisy-float-streams": Variant(
        base="unsummed-raw-noisy-float", space_to_depth=True, whole=True, precisions=("int8",), streams=4
    ),
    "blocks-whole-raw-streams-level-3": Variant(
        base="unsummed-raw", space_to_depth=True, whole=True, streams=4, level=3
    ),
    "blocks-whole-raw-streams-level-5": Variant(
        base="unsummed-raw", space_to_depth=True, whole=True, streams=4, level=5
    ),
    "blocks-expanded-raw-streams": Variant(base="expanded-raw", space_to_depth=True, streams=4),
    "blocks-expanded-whole-raw-streams": Variant(base="expanded-raw", space_to_depth=True, whole=True, streams=4),
    "expanded-whole-raw-streams": Variant(base="expanded-raw", whole=True, streams=4),
    "expanded-whole-raw-half-streams": Variant(
        base="expanded-raw", whole=True, formats=("half-in",), precisions=("fp16",), streams=4
    ),
    "expanded-whole-raw-eight-streams": Variant(
        base="expanded-raw", whole=True, formats=("half-in", "eight-in"), precisions=("fp16",), streams=4
    ),
    "blocks-behind-whole-raw-streams": Variant(base="behind-raw", space_to_depth=True, whole=True, streams=4),
    "blocks-raw-linear-streams": Variant(
        base="raw", space_to_depth=True, formats=("linear-in",), precisions=("int8",), streams=4
    ),
    "flags": Variant(by_flags=True, precisions=("fp16",)),
    "plain-flags": Variant(base="plain", by_flags=True, precisions=("fp16",)),
    "nms-flags": Variant(base="nms", by_flags=True, precisions=("fp16",)),
    "raw-flags-streams": Variant(base="raw", by_flags=True, formats=("half-out",), precisions=("fp16",), streams=4),
    "blocks-raw-flags-streams": Variant(
        base="raw", by_flags=True, space_to_depth=True, formats=("half-in", "half-out"), precisions=("fp16",), streams=4
    ),
    "together": Variant(base="raw", input="uint8-nhwc", formats=("any-out",)),
    "together-joined": Variant(base="joined-raw", input="uint8-nhwc", formats=("any-out",)),
}


INPUTS: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "": lambda proto: proto,
    "uint8-nhwc": lambda proto: read_uint8(proto, nhwc=True),
    "uint8-nchw": lambda proto: read_uint8(proto, nhwc=False),
    "int8": lambda proto: read_int8(expand_int8_weights(proto)),
    "quantized": convert_input,
    "blocks": lambda proto: read_blocks(proto, 4),
    "graph-blocks": lambda proto: make_blocks(proto, 4),
    "quantized-blocks": lambda proto: convert_input(read_blocks(proto, 4)),
    "quantized-small-blocks": lambda proto: convert_input(read_blocks(proto, 2)),
}

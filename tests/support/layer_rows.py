"""Layer frames written by hand."""

from __future__ import annotations

import polars as pl

TEXT = dict.fromkeys(("precision", "input_precision", "output_precision"), pl.String)
LISTS = dict.fromkeys(("inputs", "outputs", "onnx_nodes"), pl.List(pl.String))


def layer_rows(*rows: tuple[str, str, str, str | None, float | None], reformats: tuple[str, ...] = ()) -> pl.DataFrame:
    """A frame of (name, type, ONNX nodes joined by commas, precision, ms)."""
    return pl.DataFrame(
        [
            {
                "name": name,
                "type": kind,
                "onnx_nodes": [node for node in nodes.split(",") if node],
                **dict.fromkeys(TEXT, precision),
                "tactic": "",
                "inputs": [],
                "outputs": [],
                "shape": "1x8",
                "reformat": name in reformats,
                "ms": ms,
            }
            for name, kind, nodes, precision, ms in rows
        ],
        schema_overrides={**TEXT, **LISTS, "ms": pl.Float64},
    )


FP16_LAYERS = layer_rows(
    ("conv0", "conv", "/a/Conv,/a/Mul", "fp16", 0.4),
    ("conv1", "conv", "/b/Conv", "fp16", 0.3),
    ("out", "conv", "/c/Conv", "fp16", 0.1),
)
"""Three layers, 0.8 ms."""

INT8_LAYERS = layer_rows(
    ("q", "kgen", "/a/Conv_QuantizeLinear", "int8", 0.02),
    ("conv0", "conv", "/a/Conv", "int8", 0.1),
    ("mul", "kgen", "/a/Conv,/a/Mul", "int8", 0.1),
    ("conv1", "conv", "/b/Conv", "int8", 0.2),
    ("copy", "reformat", "", "fp16", 0.08),
    ("out", "conv", "/c/Conv", "fp16", 0.1),
    reformats=("copy",),
)
"""The same model in INT8: more layers, a reformat, one layer in FP16; 0.6 ms."""

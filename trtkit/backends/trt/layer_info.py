"""The layer table of an engine: layers, precisions, tactics and the ONNX nodes fused into each.

It comes from the engine inspector's JSON, which has two forms (`Bindings` up to TensorRT 8.6, `I/O Tensors` after it),
or from the text that a builder with detailed profiling verbosity logs, which needs no GPU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trtkit.errors import EngineError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["add_times", "layer_frame", "parse_build_log", "parse_inspector_json"]

# TensorRT's spellings of data types ("Row major linear FP32 format (kLINEAR)", "Int8", "Half") and our names.
DATATYPE_PATTERNS = (
    (r"\bint8\b", "int8"),
    (r"\bfp8\b", "fp8"),
    (r"\b(fp16|half)\b", "fp16"),
    (r"\b(bf16|bfloat16)\b", "bf16"),
    (r"\b(fp32|float)\b", "fp32"),
    (r"\bint64\b", "int64"),
    (r"\bint32\b", "int32"),
    (r"\buint8\b", "uint8"),
    (r"\bbool\b", "bool"),
)
# Layers that compute in the type of their input, whatever their output: an INT8 convolution often writes FP16.
COMPUTE_LAYERS = re.compile(r"conv|corr|gemm|matmul|matrixmultiply|mha|fusion", re.IGNORECASE)
REFORMAT_NAMES = re.compile(r"^Reformatting CopyNode|\breformat\b|^__myl_(Move|Cast|Tran|Copy)+_", re.IGNORECASE)
# Layers that only synchronize streams.
SYNC_LAYERS = ("signal", "wait")


def parse_inspector_json(text: str) -> tuple[dict[str, Any], ...]:
    """Parse the output of `EngineInspector.get_engine_information(LayerInformationFormat.JSON)`.

    Args:
        text: JSON in either form.

    Returns:
        One row per layer, as `layer_frame` takes them.

    Raises:
        EngineError: The text is not such JSON.
    """
    try:
        # TensorRT does not escape kernel names; some contain control characters.
        layers = json.loads(text, strict=False)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            "read the layer table",
            "TensorRT's engine inspector returned no layers",
            "report this engine",
            code="layer-table-invalid",
        ) from error
    return tuple(_parse_layer(layer if isinstance(layer, Mapping) else {"Name": str(layer)}) for layer in layers)


def parse_build_log(text: str) -> tuple[dict[str, Any], ...]:
    """Parse the layer table that the builder logs ("Layers:" and one line per layer).

    Args:
        text: The log message, or "".

    Returns:
        One row per layer, without stream signals and waits; empty where there is no table.
    """
    rows = []
    for line in text.splitlines():
        if not line.startswith("Name: ") or ", LayerType: " not in line:
            continue
        layer = _parse_log_line(line)
        if layer["LayerType"] not in SYNC_LAYERS:
            rows.append(_parse_layer(layer))
    return tuple(rows)


def layer_frame(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Build the layer table's frame.

    Args:
        rows: From `parse_inspector_json`, `parse_build_log` or a passport.

    Returns:
        One row per layer: index; name; type; onnx_nodes; precision (of its arithmetic: the input's for convolutions
        and matrix products, the output's for others); input_precision; output_precision; tactic; inputs; outputs;
        shape (of the first output); reformat (it only changes layout or type); ms (null without timings).

    Raises:
        EngineError: A value has another type than its column.
    """
    import polars as pl

    schema: dict[str, Any] = {
        "name": pl.String,
        "type": pl.String,
        "onnx_nodes": pl.List(pl.String),
        "precision": pl.String,
        "input_precision": pl.String,
        "output_precision": pl.String,
        "tactic": pl.String,
        "inputs": pl.List(pl.String),
        "outputs": pl.List(pl.String),
        "shape": pl.String,
        "reformat": pl.Boolean,
        "ms": pl.Float64,
    }
    columns = {name: [row.get(name) for row in rows] for name in schema}
    try:
        return pl.DataFrame(columns, schema=schema).with_row_index("index")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ArithmeticError, TypeError, ValueError) as error:
        raise EngineError(
            "read the layer table",
            f"a value in it has another type than its column ({str(error)[:120]!r})",
            "copy the engine again, or export the model again",
            code="layer-table-invalid",
        ) from error


def add_times(rows: Sequence[Mapping[str, Any]], times: Mapping[str, float]) -> tuple[dict[str, Any], ...]:
    """Add measured times to layer rows.

    Args:
        rows: One per layer.
        times: Mean time of one run by layer name, ms, from a profiler.
    """
    return tuple({**row, "ms": times.get(str(row["name"]))} for row in rows)


def _parse_layer(layer: Mapping[str, Any]) -> dict[str, Any]:
    name = str(layer.get("Name", ""))
    kind = str(layer.get("LayerType", ""))
    inputs, outputs = (_tensors(layer.get(key)) for key in ("Inputs", "Outputs"))
    input_precision, output_precision = (_parse_precision(tensors) for tensors in (inputs, outputs))
    nodes = _parse_onnx_nodes(layer, name)
    reformat = kind.lower() in ("reformat", "nocopy") or bool(REFORMAT_NAMES.search(name))
    computes_in_input_type = COMPUTE_LAYERS.search(kind) is not None and not reformat
    shape = outputs[0].get("Dimensions") if outputs else None
    return {
        "name": name,
        "type": kind,
        "onnx_nodes": nodes,
        "precision": (input_precision if computes_in_input_type else None) or output_precision or input_precision,
        "input_precision": input_precision,
        "output_precision": output_precision,
        "tactic": str(layer.get("TacticName") or layer.get("TacticValue") or ""),
        "inputs": [str(tensor.get("Name", "")) for tensor in inputs],
        "outputs": [str(tensor.get("Name", "")) for tensor in outputs],
        "shape": "x".join(str(side) for side in shape) if shape else "",
        "reformat": reformat,
        "ms": None,
    }


def _tensors(value: Any) -> list[Mapping[str, Any]]:
    return [tensor for tensor in value or () if isinstance(tensor, Mapping)]


def _parse_precision(tensors: Sequence[Mapping[str, Any]]) -> str | None:
    for tensor in tensors[:1]:
        for key in ("Datatype", "Format/Datatype", "Format"):
            text = str(tensor.get(key, ""))
            for pattern, name in DATATYPE_PATTERNS:
                if re.search(pattern, text, re.IGNORECASE):
                    return name
    return None


def _parse_onnx_nodes(layer: Mapping[str, Any], name: str) -> list[str]:
    """The fused ONNX nodes, from the metadata; from the layer's name where there is none (TensorRT 8.6)."""
    nodes = re.findall(r"\[ONNX Layer: (.*?)\](?=\[|\x1e|,|\s|$)", str(layer.get("Metadata") or ""))
    if nodes:
        return list(dict.fromkeys(nodes))
    if REFORMAT_NAMES.search(name) or name.startswith("__my"):
        return []
    inner = re.sub(r"\{ForeignNode\[(.*?)\]\}", r"\1", name)
    inner = re.sub(r"\bPWN\(|[()]", " , ", inner).replace("...", " , ").replace("||", " , ").replace(" + ", " , ")
    parts = [part.strip() for part in inner.split(",")]
    return list(dict.fromkeys(part for part in parts if part and not part.startswith("(Unnamed")))


def _parse_log_line(line: str) -> dict[str, Any]:
    """One line of the builder's table, with the keys of the inspector's JSON."""
    layer: dict[str, Any] = {}
    name, rest = line[len("Name: ") :].split(", LayerType: ", 1)
    layer["Name"] = name
    layer["LayerType"] = rest.split(",", 1)[0]
    for key, after in (("Inputs", ", Constants: ["), ("Outputs", ", TacticName:")):
        match = re.search(rf"\b{key}: \[(.*?)\]{re.escape(after)}", rest)
        layer[key] = [_parse_log_tensor(text) for text in re.findall(r"\{ (Name: .*?) ?\}", match[1])] if match else []
    tactic = re.search(r"TacticName: (.*?)(?:, StreamId|, Metadata|$)", rest)
    metadata = re.search(r"Metadata: (.*)$", rest)
    layer["TacticName"] = tactic[1].strip() if tactic else ""
    layer["Metadata"] = metadata[1].strip() if metadata else ""
    return layer


def _parse_log_tensor(text: str) -> dict[str, Any]:
    sides = re.search(r"Dimensions: \[([-\d,]*)\]", text)
    kind = re.search(r"Datatype: (\w+)", text)
    return {
        "Name": text[len("Name: ") :].split(", Dimensions:", 1)[0],
        "Dimensions": [int(side) for side in sides[1].split(",") if side] if sides else [],
        "Datatype": kind[1] if kind else "",
    }

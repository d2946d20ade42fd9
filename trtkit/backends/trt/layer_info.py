"""What TensorRT made of a graph: the engine's layers as one table.

The engine inspector's JSON comes in two forms (`Bindings` up to TensorRT 8.6, `I/O Tensors` after it), and a builder
that keeps detailed information prints the same table as text while it builds: that is how an engine built with no GPU
is read.
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

# Datatypes as TensorRT spells them ("Row major linear FP32 format (kLINEAR)", "Int8", "Half") and ours.
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
# Layers that compute in the type of their input, whatever they write: an INT8 convolution often writes FP16.
COMPUTE_LAYERS = re.compile(r"conv|corr|gemm|matmul|matrixmultiply|mha|fusion", re.IGNORECASE)
REFORMAT_NAMES = re.compile(r"^Reformatting CopyNode|\breformat\b|^__myl_(Move|Cast|Tran|Copy)+_", re.IGNORECASE)
# Steps that only order streams; they move and compute nothing.
SYNC_LAYERS = ("signal", "wait")


def parse_inspector_json(text: str) -> tuple[dict[str, Any], ...]:
    """Read `EngineInspector.get_engine_information(LayerInformationFormat.JSON)`.

    Args:
        text: JSON in either form.

    Returns:
        One row a layer, as `layer_frame` takes them.

    Raises:
        EngineError: It is no such JSON.
    """
    try:
        # TensorRT prints kernels' names as they are; some hold control characters.
        layers = json.loads(text, strict=False)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            "read the layer table", "TensorRT's engine inspector gave no layers", "report this engine"
        ) from error
    return tuple(_parse_layer(layer if isinstance(layer, Mapping) else {"Name": str(layer)}) for layer in layers)


def parse_build_log(text: str) -> tuple[dict[str, Any], ...]:
    """Read the layer table that the builder prints ("Layers:" and one line a layer), with no GPU needed.

    Args:
        text: The message, or "".

    Returns:
        One row a layer; streams' signals and waits are left out. Empty where there is no table.
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
    """The table.

    Args:
        rows: From `parse_inspector_json`, `parse_build_log` or a passport.

    Returns:
        One row a layer: index; name; type; onnx_nodes; precision (of its arithmetic: the input's for weighted layers,
        the output's for others); input_precision; output_precision; tactic; inputs; outputs; shape (of the first
        output); reformat (it only changes layout or type); ms (null where nothing was timed).
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
    return pl.DataFrame(columns, schema=schema).with_row_index("index")


def add_times(rows: Sequence[Mapping[str, Any]], times: Mapping[str, float]) -> tuple[dict[str, Any], ...]:
    """Add measured times.

    Args:
        rows: One a layer.
        times: Milliseconds of one run by layer name, from a profiler.
    """
    return tuple({**row, "ms": times.get(str(row["name"]))} for row in rows)


def _parse_layer(layer: Mapping[str, Any]) -> dict[str, Any]:
    name = str(layer.get("Name", ""))
    kind = str(layer.get("LayerType", ""))
    inputs, outputs = (_tensors(layer.get(key)) for key in ("Inputs", "Outputs"))
    entering, leaving = (_parse_precision(tensors) for tensors in (inputs, outputs))
    nodes = _parse_onnx_nodes(layer, name)
    reformat = kind.lower() in ("reformat", "nocopy") or bool(REFORMAT_NAMES.search(name))
    weighted = COMPUTE_LAYERS.search(kind) is not None and not reformat
    shape = outputs[0].get("Dimensions") if outputs else None
    return {
        "name": name,
        "type": kind,
        "onnx_nodes": nodes,
        "precision": (entering if weighted else leaving) or leaving or entering,
        "input_precision": entering,
        "output_precision": leaving,
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
    """ONNX nodes by the metadata; by the fused layer's name where there is none (TensorRT 8.6)."""
    told = re.findall(r"\[ONNX Layer: (.*?)\](?=\[|\x1e|,|\s|$)", str(layer.get("Metadata") or ""))
    if told:
        return list(dict.fromkeys(told))
    if REFORMAT_NAMES.search(name) or name.startswith("__my"):
        return []
    inner = re.sub(r"\{ForeignNode\[(.*?)\]\}", r"\1", name)
    inner = re.sub(r"\bPWN\(|[()]", " , ", inner).replace("...", " , ").replace("||", " , ").replace(" + ", " , ")
    parts = [part.strip() for part in inner.split(",")]
    return list(dict.fromkeys(part for part in parts if part and not part.startswith("(Unnamed")))


def _parse_log_line(line: str) -> dict[str, Any]:
    """One line of the builder's table; its keys are those of the inspector's JSON."""
    found: dict[str, Any] = {}
    name, rest = line[len("Name: ") :].split(", LayerType: ", 1)
    found["Name"] = name
    found["LayerType"] = rest.split(",", 1)[0]
    for key, after in (("Inputs", ", Constants: ["), ("Outputs", ", TacticName:")):
        match = re.search(rf"\b{key}: \[(.*?)\]{re.escape(after)}", rest)
        found[key] = [_parse_log_tensor(text) for text in re.findall(r"\{ (Name: .*?) ?\}", match[1])] if match else []
    tactic = re.search(r"TacticName: (.*?)(?:, StreamId|, Metadata|$)", rest)
    metadata = re.search(r"Metadata: (.*)$", rest)
    found["TacticName"] = tactic[1].strip() if tactic else ""
    found["Metadata"] = metadata[1].strip() if metadata else ""
    return found


def _parse_log_tensor(text: str) -> dict[str, Any]:
    sides = re.search(r"Dimensions: \[([-\d,]*)\]", text)
    kind = re.search(r"Datatype: (\w+)", text)
    return {
        "Name": text[len("Name: ") :].split(", Dimensions:", 1)[0],
        "Dimensions": [int(side) for side in sides[1].split(",") if side] if sides else [],
        "Datatype": kind[1] if kind else "",
    }

"""ONNX files: their metadata, and writing them once the ONNX checker and ONNX Runtime have accepted them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from trtkit.errors import OnnxError
from trtkit.files import escape_surrogates, hash_parts
from trtkit.models.model import parse_trtkit_entry
from trtkit.writing import atomic_folder, atomic_write, check_output

__all__ = ["add_metadata", "check_onnx", "read_trtkit_metadata", "update_metadata", "write_onnx"]

MAX_PROTOBUF = 2**31 - 1
"""Bytes of the largest protobuf message; the weights of larger graphs lie in a file beside."""

STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operator sets that ONNX Runtime has; it can't open a graph with an operator of another one."""


def update_metadata(proto: onnx.ModelProto, metadata: Mapping[str, Any], trtkit: Mapping[str, Any]) -> onnx.ModelProto:
    """Merge keys into a graph's `metadata_props`; the graph is modified and returned.

    Args:
        proto: The graph.
        metadata: Ultralytics' keys, written as text; trtkit's own under "trtkit" (`ModelInfo.to_metadata`).
        trtkit: Further keys of trtkit's own, which are one JSON object.
    """
    texts = {entry.key: entry.value for entry in proto.metadata_props}
    ours = {**parse_trtkit_entry(texts.get("trtkit")), **metadata.get("trtkit", {}), **trtkit}
    texts.update({key: str(value) for key, value in metadata.items()}, trtkit=json.dumps(ours, sort_keys=True))
    del proto.metadata_props[:]
    for key, value in texts.items():
        proto.metadata_props.add(key=key, value=escape_surrogates(value))
    return proto


def read_trtkit_metadata(proto: onnx.ModelProto) -> dict[str, Any]:
    """trtkit's own metadata of a graph (precision, model_hash, ...); {} for other exporters' graphs.

    Args:
        proto: The graph.
    """
    for entry in proto.metadata_props:
        if entry.key == "trtkit":
            return dict(parse_trtkit_entry(entry.value))
    return {}


def add_metadata(path: Path, trtkit: Mapping[str, Any]) -> None:
    """Add keys to trtkit's own metadata of an ONNX file, which is replaced; its graph and weights stay as they are.

    Args:
        path: The file, from `write_onnx`.
        trtkit: Keys and JSON-ready values.

    Raises:
        OutputError: As `atomic_write` raises it.
    """
    proto = update_metadata(onnx.load(path, load_external_data=False), {}, trtkit)
    with atomic_write(path, overwrite=True) as temporary:
        onnx.save(proto, str(temporary))


def write_onnx(proto: onnx.ModelProto, path: str | Path, *, overwrite: bool = True) -> Path:
    """Write a graph atomically, after `check_onnx`; nothing is left if the check fails.

    Args:
        proto: The graph. Weights beyond 2 GB go into a file `<name>-<hash>.data` beside it.
        path: The file.
        overwrite: Replace an existing file.

    Returns:
        The file.

    Raises:
        OnnxError: The ONNX checker or ONNX Runtime rejects the graph.
        OutputError: As `atomic_write` raises it.
    """
    path = Path(path)
    if _count_bytes(proto) < MAX_PROTOBUF:
        with atomic_write(path, overwrite=overwrite) as temporary:
            onnx.save(proto, str(temporary))
            check_onnx(temporary, asked=f"write {path}")
    else:
        _write_external(proto, path, overwrite=overwrite)
    return path


def check_onnx(path: Path, *, asked: str) -> None:
    """Run the ONNX checker with shape inference on a file, and open it in ONNX Runtime without optimizing it.

    Graphs with operators of other domains (plug-ins) are not opened.

    Args:
        path: The file.
        asked: What was asked for, for the error.

    Raises:
        OnnxError: One of them rejects it.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _invalid(asked, "the ONNX checker", path, error) from error
    graph = onnx.load(path, load_external_data=False).graph
    if any(node.domain not in STANDARD_DOMAINS for node in graph.node):
        return
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime raises its own family of exceptions, unrelated to one another.
        raise _invalid(asked, f"ONNX Runtime {ort.__version__}", path, error) from error


def _invalid(asked: str, checker: str, path: Path, error: Exception) -> OnnxError:
    cause = next((line.strip() for line in str(error).replace(str(path), "it").splitlines() if line.strip()), "")
    return OnnxError(
        asked,
        f"{checker} rejects the graph ({cause or type(error).__name__})",
        "check the source with onnx.checker; if it is valid, report this with the file",
        code="onnx-invalid",
        checker=checker,
        cause=cause,
    )


def _count_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of the weights with a margin for the rest of the message, whose own size can't be asked beyond 2 GB."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer) + (1 << 26)


def _write_external(proto: onnx.ModelProto, path: Path, *, overwrite: bool) -> None:
    """Write a graph and, in a second file, its weights; both appear together, and earlier weights of the graph go."""
    check_output(path, overwrite=overwrite)
    weights = (tensor.raw_data for tensor in proto.graph.initializer)
    name = f"{path.stem}-{hash_parts(*weights)[:12]}.data"
    pattern = re.compile(rf"{re.escape(path.stem)}-[0-9a-f]{{12}}\.data")
    earlier = [entry.name for entry in path.parent.glob("*.data") if pattern.fullmatch(entry.name)]
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    with atomic_folder(path.parent, remove=earlier) as staging:
        onnx.save(copied, str(staging / path.name), save_as_external_data=True, location=name, size_threshold=1024)
        check_onnx(staging / path.name, asked=f"write {path}")

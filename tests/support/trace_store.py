"""Traces of one test session on disk, so that workers and files share them: a trace takes seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from trtkit.files import hash_parts
from trtkit.graph import torch_export
from trtkit.models import Model
from trtkit.models.torch_model import hash_weights

trace_anew = torch_export._trace
"""The function that traces and simplifies a graph, without the store."""


def stored_trace(folder: Path) -> Callable[..., onnx.ModelProto]:
    """`trace_anew` that looks first among the graphs in a folder, and writes there.

    A graph belongs to its model's layers and weights, or to its ONNX graph. A module that a test made up may run other
    code with the same layers and weights and is traced anew, except the models of `task_models`.

    Args:
        folder: An existing folder of this session.
    """

    def trace(model: Model, *settings: Any) -> onnx.ModelProto:
        key = find_key(model)
        if key is None or (model.proto is not None and not settings[-1]):
            return trace_anew(model, *settings)
        path = folder / f"{hash_parts(key, repr(settings))}.onnx"
        if path.is_file():
            return onnx.ModelProto.FromString(path.read_bytes())
        proto = trace_anew(model, *settings)
        # Another worker may trace the same model at the same time: the file appears whole, whoever is last.
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(proto.SerializeToString())
        part.replace(path)
        return proto

    return trace


def find_key(model: Model) -> str | None:
    """What a model's trace depends on besides the settings; None if that is not known."""
    if model.proto is not None:
        return hash_parts(model.proto.SerializeToString())
    module = model.module
    if module is None or not (model.example is None or type(module).__module__ == "task_models"):
        return None
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    weights = hash_weights(repr(module), module.state_dict())
    return hash_parts(name, weights, str(model.channels), repr(model.output_format), repr(model.row_settings))

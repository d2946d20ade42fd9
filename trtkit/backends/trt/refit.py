"""Put weights into a refittable or weight-stripped engine, without building it again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtkit.backends.capabilities import Capabilities, import_bindings, require_torch_cuda
from trtkit.backends.compatibility import check_compatibility, check_contents, trust_plan
from trtkit.backends.devices import parse_device
from trtkit.backends.engine_file import EngineFile, Passport, read_engine, write_engine
from trtkit.backends.requirements import require_run
from trtkit.backends.trt.builder import read_graph
from trtkit.backends.trt.callbacks import capture_messages, get_logger
from trtkit.backends.trt.execution import load_plan
from trtkit.backends.trt.network import fit_graph
from trtkit.errors import EngineError
from trtkit.files import hash_parts
from trtkit.graph.onnx_file import read_trtkit_metadata
from trtkit.graph.qdq import expand_int8_weights
from trtkit.models.onnx_model import from_proto, load_external_weights
from trtkit.writing import check_output

__all__ = ["refit_engine"]


def refit_engine(
    engine: str | Path,
    graph: str | Path | onnx.ModelProto,
    output: str | Path,
    *,
    device: str | int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an engine with the weights of an ONNX graph; needs a GPU that runs the engine.

    Args:
        engine: From `export(weights="refittable")` or `export(weights="stripped")`.
        graph: The ONNX file of the same export (`format="onnx"`, otherwise the same arguments): for a stripped engine
            of the same model, for a refittable one of any model with the same layers.
        output: The engine to write. One that was stripped is whole then.
        device: The GPU.
        overwrite: Replace the output if it exists.

    Returns:
        The engine's path.

    Raises:
        EngineError: The engine can't be refitted, or the graph's weights are not the engine's.
        OnnxError: The graph does not read.
        CapabilityError: The backend or the GPU is missing.
        OutputError: The output can't be written, or exists.
    """
    path = check_output(output, overwrite=overwrite)
    file = read_engine(engine)
    asked = f"refit {file.path}"
    passport = file.passport
    if passport is None or passport.weights is None:
        raise EngineError(
            asked,
            "its weights are fixed",
            "export it with weights='refittable' or 'stripped' (--weights)",
            code="refit-weights-fixed",
            path=file.path,
        )
    capabilities = require_run(file.backend, device=device)
    mismatch = check_compatibility(passport, capabilities, parse_device(device))
    if mismatch is not None:
        raise mismatch.error(asked, file.path)
    check_contents(file, asked, needs_weights=False)
    proto, graph_hash = _prepare(graph, passport, capabilities)
    if passport.weights == "stripped" and graph_hash != passport.graph_hash:
        raise EngineError(
            asked,
            "the graph is not the one that the engine was built from",
            "pass the ONNX file of the same export: format='onnx', otherwise the same arguments",
            code="refit-graph-differs",
            path=file.path,
        )
    plan = _refit(file, passport, proto, capabilities, parse_device(device).gpu)
    if passport.compatibility == "version":
        trust_plan(plan)
    # A stripped engine keeps the kernels that fit its own weights alone: it can't take others afterwards.
    weights = None if passport.weights == "stripped" else passport.weights
    passport = dataclasses.replace(
        passport,
        weights=weights,
        model_hash=str(read_trtkit_metadata(proto).get("model_hash") or passport.model_hash),
        graph_hash=graph_hash,
        plan_hash=hash_parts(plan),
        plan_size=len(plan),
    )
    return write_engine(path, plan, {**file.metadata, **_read_names(proto)}, passport, overwrite=overwrite)


def _read_names(proto: onnx.ModelProto) -> dict[str, Any]:
    """The class names of the model whose weights the engine has now, as metadata; {} where the graph has none."""
    if not {"task", "names"} <= {entry.key for entry in proto.metadata_props}:
        return {}
    return {"names": dict(from_proto(proto).names)}


def _prepare(
    graph: str | Path | onnx.ModelProto, passport: Passport, capabilities: Capabilities
) -> tuple[onnx.ModelProto, str]:
    """The graph as it was built, and its hash in the passport's sense."""
    _, proto, path = read_graph(graph)
    if path:
        load_external_weights(proto, path, f"read {path}")
    proto = fit_graph(
        proto, capabilities, precision=passport.precision, space_to_depth=passport.pixel_input is not None
    )
    graph_hash = hash_parts(proto.SerializeToString(deterministic=True))
    return (proto if capabilities.has_int8_weights else expand_int8_weights(proto)), graph_hash


def _refit(file: EngineFile, passport: Passport, proto: onnx.ModelProto, capabilities: Capabilities, gpu: int) -> bytes:
    """Put the weights in, and serialize the engine with them."""
    trt: Any = import_bindings(capabilities.backend)
    logger = get_logger(capabilities.backend)
    asked = f"refit {file.path}"
    torch: Any = require_torch_cuda(asked)
    host_code = passport.compatibility == "version"
    with torch.cuda.device(gpu), capture_messages() as messages:
        # The runtime is held as long as the engine needs it.
        _runtime, engine = load_plan(file.plan, file.backend, asked=asked, host_code=host_code)
        refitter = trt.Refitter(engine, logger)
        if hasattr(trt, "OnnxParserRefitter"):
            given = trt.OnnxParserRefitter(refitter, logger).refit_from_bytes(proto.SerializeToString())
        else:
            given = _set_weights(trt, refitter, proto)
        missing = sorted(refitter.get_missing_weights())
        if not given or missing or not refitter.refit_cuda_engine():
            reason = messages.summary("TensorRT refuses them")
            if missing:
                reason = f"it gives none for {', '.join(missing[:3])}"
            raise EngineError(
                asked,
                f"the graph's weights are not the engine's: {reason}",
                "pass the ONNX file of the same export",
                code="refit-weights-missing",
                path=file.path,
                names=missing,
            )
        return bytes(_serialize(trt, engine, refittable=passport.weights == "refittable"))


def _set_weights(trt: Any, refitter: Any, proto: onnx.ModelProto) -> bool:
    """Set weights by the names of the graph's initializers, as TensorRT 8.6 needs it: it has no parser for that."""
    wanted = set(refitter.get_all_weights())
    stored = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name in wanted}
    return all(
        refitter.set_named_weights(name, trt.Weights(np.ascontiguousarray(onnx.numpy_helper.to_array(tensor).ravel())))
        for name, tensor in stored.items()
    )


def _serialize(trt: Any, engine: Any, *, refittable: bool) -> Any:
    if not hasattr(engine, "create_serialization_config"):
        return engine.serialize()
    config = engine.create_serialization_config()
    # A stripped engine is serialized without weights by default.
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if refittable and hasattr(trt.SerializationFlag, "INCLUDE_REFIT"):
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return engine.serialize_with_config(config)

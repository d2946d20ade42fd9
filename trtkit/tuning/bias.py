"""Bias correction: what rounding shifts on average, taken back in each layer's bias."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trtkit.calibration.parallel import over
from trtkit.graph.quantized import INT8_MAX, Placement, carries, weight_scales
from trtkit.graph.structure import View
from trtkit.progress import Work

__all__ = ["bias_corrections"]

CORRECTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": -1}
"""Operators with a bias, and where their weight has the output channels (for Gemm it depends on `transB`)."""


def bias_corrections(
    graph: onnx.ModelProto,
    placement: Placement,
    ranges: Mapping[str, tuple[float, float]],
    pictures: Iterable[NDArray[np.float32]],
    count: int,
    work: Work,
    *,
    threads: int | None = None,
) -> dict[str, tuple[float, ...]]:
    """What to add to the bias of each INT8 layer so that its mean output is that of FP32.

    Rounding is not even: most of what a SiLU gives lies between -0.28 and 0, where a scale made for its largest values
    has two or three steps, so that whole channels shift one way, and the weights behind them sum the shifts up. Each
    layer's mean error, channel by channel, is measured on FP32's own activations, so that it holds this layer's share
    and no other's (M. Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019,
    section 4.2, measured here on pictures as in its appendix).

    Args:
        graph: FP32 graph with unique node names.
        placement: Where INT8 goes.
        ranges: Lowest and highest value by tensor.
        pictures: Inputs (1, C, H, W).
        count: How many.
        work: Receives a step for each picture.
        threads: Pictures that run beside each other; None takes one for each core.

    Returns:
        By node name, one number for each output channel; layers without a bias are left out.

    Raises:
        CancelledError: The caller cancelled.
    """
    import onnxruntime as ort

    whole, targets = _beside(graph, placement, ranges)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    outputs = list(targets.values())
    stage = "correct biases"
    work.step(stage, 0, count)
    sums: list[Any] = [0.0] * len(outputs)
    done = 0
    for found in over(lambda picture: session.run(outputs, {source: picture}), pictures, threads):
        sums = [total + np.asarray(mean, np.float64) for total, mean in zip(sums, found, strict=True)]
        done += 1
        work.step(stage, done, count)
    if not done:
        return {}
    return {name: tuple((-total / done).tolist()) for name, total in zip(targets, sums, strict=True)}


def _beside(
    graph: onnx.ModelProto, placement: Placement, ranges: Mapping[str, tuple[float, float]]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The float graph with each INT8 layer computed once more beside itself, rounded, and their mean difference.

    Returns:
        The graph, and by layer the name of the output (channels,) that holds its mean error.
    """
    result = copy.deepcopy(graph)
    view = View(result)
    quantised, layers = set(placement.tensors), set(placement.layers)
    nodes: list[onnx.NodeProto] = []
    constants = [numpy_helper.from_array(np.zeros((), np.int8), "trtkit_zero")]
    targets: dict[str, str] = {}

    def rounded(name: str, source: str) -> None:
        largest = max(max(abs(value) for value in ranges[member]) for member in placement.scale_of[name])
        scale = np.array(largest / INT8_MAX if largest > 0 else 1.0, np.float32)
        constants.append(numpy_helper.from_array(scale, f"{name}/scale"))
        for operator, start, end in (
            ("QuantizeLinear", source, f"{name}/int8"),
            ("DequantizeLinear", f"{name}/int8", f"{name}/rounded"),
        ):
            nodes.append(
                helper.make_node(operator, [start, f"{name}/scale", "trtkit_zero"], [end], f"{end}/{operator}")
            )

    for value in result.graph.input:
        if value.name in quantised:
            rounded(value.name, value.name)
    for node in result.graph.node:
        nodes.append(node)
        mine = [name for name in node.output if name in quantised]
        sources = {name: name for name in node.output}
        if mine and (node.op_type == "Add" or carries(node)) and any(name in quantised for name in node.input):
            # Such a node reads INT8 where its output is INT8.
            twin = copy.deepcopy(node)
            twin.name = f"{node.name}/twin"
            twin.input[:] = [f"{name}/rounded" if name in quantised else name for name in node.input]
            twin.output[:] = [f"{name}/twin" for name in node.output]
            nodes.append(twin)
            sources = {name: f"{name}/twin" for name in node.output}
        for name in mine:
            rounded(name, sources[name])
        if node.name in layers and node.op_type in CORRECTED:
            twin, weight = _twin(node, view)
            constants.append(weight)
            target = f"{node.name}/shift"
            axes = [0] if node.op_type == "Gemm" else [0, 2, 3]
            nodes.append(twin)
            nodes.append(
                helper.make_node("Sub", [twin.output[0], node.output[0]], [f"{node.name}/error"], f"{node.name}/sub")
            )
            nodes.append(_mean(f"{node.name}/error", target, axes, constants, result))
            targets[node.name] = target
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(constants)
    result.graph.output.extend(
        helper.make_tensor_value_info(target, TensorProto.FLOAT, None) for target in targets.values()
    )
    return result, targets


def _twin(node: onnx.NodeProto, view: View) -> tuple[onnx.NodeProto, onnx.TensorProto]:
    """A copy of a layer that reads the rounded input, and its weight as INT8 holds it."""
    twin = copy.deepcopy(node)
    twin.name = f"{node.name}/twin"
    twin.input[0] = f"{node.input[0]}/rounded"
    twin.input[1] = f"{node.name}/weight"
    twin.output[0] = f"{node.output[0]}/twin"
    weight = view.array(node.input[1])
    axis = CORRECTED[node.op_type]
    if node.op_type == "Gemm":
        axis = 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    scale = weight_scales(weight, axis).reshape(shape)
    values = (np.clip(np.rint(weight / scale), -128, 127) * scale).astype(np.float32)
    return twin, numpy_helper.from_array(values, f"{node.name}/weight")


def _mean(
    source: str, target: str, axes: list[int], constants: list[onnx.TensorProto], proto: onnx.ModelProto
) -> onnx.NodeProto:
    version = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if version < 18:
        return helper.make_node("ReduceMean", [source], [target], target, axes=axes, keepdims=0)
    constants.append(numpy_helper.from_array(np.array(axes, np.int64), f"{target}/axes"))
    return helper.make_node("ReduceMean", [source, f"{target}/axes"], [target], target, keepdims=0)

"""Small ONNX graphs with a detector's input and output: (N, 3, H, W) -> output0 (N, 4 + 3, H/2 * W/2)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtkit.models.model import ModelInfo

NAMES = {0: "zero", 1: "one", 2: "two"}
ROWS = 4 + len(NAMES)


def info(size: tuple[int, int] = (32, 32), **changes: object) -> ModelInfo:
    return ModelInfo(task="detect", names=NAMES, imgsz=size, architecture="tiny", **changes)  # type: ignore[arg-type]


def detector(
    precision: str = "fp32",
    *,
    batch: int = 1,
    size: tuple[int, int] = (32, 32),
    dynamic: bool = False,
    seed: int = 0,
    describe: bool = True,
    width: int = 8,
) -> onnx.ModelProto:
    random = np.random.default_rng(seed)
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    number = np.float16 if precision == "fp16" else np.float32
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def node(operator: str, name: str, inputs: list[str], **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def quantized(source: str, scale: float) -> str:
        step, zero = (
            constant(f"{source}_scale", np.float32(scale)[None][0:1].reshape(())),
            constant(f"{source}_zero", np.int8(0).reshape(())),
        )
        return node(
            "DequantizeLinear",
            f"{source}_DQ",
            [node("QuantizeLinear", f"{source}_Q", [source, step, zero]), step, zero],
        )

    def convolution(name: str, source: str, shape: tuple[int, ...], **attributes: object) -> str:
        weights = (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        bias = constant(f"{name}.bias", (random.standard_normal(shape[0]) * 0.5).astype(number))
        if precision != "int8":
            return node("Conv", name, [source, constant(f"{name}.weight", weights.astype(number)), bias], **attributes)
        scales = (np.abs(weights).reshape(shape[0], -1).max(1) / 127).astype(np.float32)
        integers = np.round(weights / scales[:, None, None, None]).astype(np.int8)
        inputs = [
            constant(f"{name}.weight", integers),
            constant(f"{name}.scale", scales),
            constant(f"{name}.zero", np.zeros(shape[0], np.int8)),
        ]
        dequantized = node("DequantizeLinear", f"{name}.weight_DQ", inputs, axis=0)
        return node(
            "Conv",
            name,
            [quantized(source, 1 / 127 if source == "images" else 4 / 127), dequantized, bias],
            **attributes,
        )

    top = "images"
    if precision == "fp16":
        top = node("Cast", "to_half", [top], to=kind)
    top = convolution("stem", top, (width, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    top = node("Mul", "silu", [top, node("Sigmoid", "gate", [top])])
    top = convolution("head", top, (ROWS, width, 1, 1))
    top = node("Sigmoid", "squash", [top])
    top = node("Reshape", "flat", [top, constant("rows", np.array([0, ROWS, -1], np.int64))])
    if precision == "fp16":
        top = node("Cast", "to_float", [top], to=TensorProto.FLOAT)
    # Boxes up to 24 px wide anywhere in the image; scores unchanged.
    reach = np.array([size[1], size[0], 24, 24, *[1] * len(NAMES)], np.float32)[None, :, None]
    nodes.append(helper.make_node("Mul", [top, constant("reach", reach)], ["output0"], name="scale"))
    shape: list[object] = ["batch", 3, "height", "width"] if dynamic else [batch, 3, *size]
    anchors: object = "anchors" if dynamic else (size[0] // 2) * (size[1] // 2)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch" if dynamic else batch, ROWS, anchors])],
        constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if describe:
        metadata = info(size).to_metadata(batch=batch, imgsz=size)
        entry = {**metadata.pop("trtkit"), "precision": precision, "model_hash": "ab" * 32}
        for key, value in metadata.items():
            proto.metadata_props.add(key=key, value=str(value))
        proto.metadata_props.add(key="trtkit", value=json.dumps(entry))
    onnx.checker.check_model(proto)
    return proto


def unsupported_op() -> onnx.ModelProto:
    """A graph with an operator that no TensorRT supports."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["images"], ["a"], name="/plain/Relu"),
            helper.make_node("Sharpen", ["a"], ["output0"], name="/odd/Sharpen", domain="acme"),
        ],
        "strange",
        [value("images", TensorProto.FLOAT, [1, 3, 32, 32])],
        [value("output0", TensorProto.FLOAT, [1, 7, 256])],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)], ir_version=8
    )


def images(count: int, shapes: tuple[tuple[int, int], ...] = ((48, 64), (32, 32), (20, 50))) -> list[np.ndarray]:
    random = np.random.default_rng(7)
    return [random.integers(0, 256, (*shapes[index % len(shapes)], 3), dtype=np.uint8) for index in range(count)]


def write_images(folder: Path, count: int) -> Path:
    """`images` as files of a folder, which is made if need be."""
    import cv2

    folder.mkdir(exist_ok=True)
    for index, image in enumerate(images(count)):
        cv2.imwrite(str(folder / f"{index}.png"), image)
    return folder

"""A small detector graph with every structure that `trtkit.graph` handles specially, once."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 3


def detector(batch: int | str = "batch", side: int = 32) -> onnx.ModelProto:
    """Conv+SiLU stem, depthwise, residual Add, Split, MaxPool, nearest Resize, Concat, attention, head with DFL."""
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    def node(operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def conv(
        name: str, source: str, channels: tuple[int, int], kernel: int = 3, stride: int = 1, group: int = 1
    ) -> str:
        shape = (channels[1], channels[0] // group, kernel, kernel)
        weight = random.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        inputs = [source, constant(f"{name}.weight", weight), constant(f"{name}.bias", np.zeros(shape[0], np.float32))]
        pad = kernel // 2
        return node("Conv", inputs, name, kernel_shape=[kernel] * 2, pads=[pad] * 4, strides=[stride] * 2, group=group)

    def silu(source: str) -> str:
        return node("Mul", [source, node("Sigmoid", [source], f"{source}/sigmoid")], f"{source}/silu")

    stem = silu(conv("stem", "images", (3, 8), stride=2))
    middle = silu(conv("middle", stem, (8, 8)))
    residual = node("Add", [stem, middle], "residual")
    nodes.append(helper.make_node("Split", [residual], ["left", "right"], "split", axis=1))
    light = silu(conv("depthwise", "left", (4, 4), group=4))
    pooled = node("MaxPool", ["right"], "pooled", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    joined = node("Concat", ["right", pooled], "joined", axis=1)
    wide = silu(conv("wide", joined, (8, 8), kernel=1))
    # Attention: two activations multiplied, positions against positions.
    key = conv("key", wide, (8, 8), kernel=1)
    rows = node("Reshape", [key, constant("shape3", np.array([0, 8, -1], np.int64))], "rows")
    columns = node("Transpose", [rows], "columns", perm=[0, 2, 1])
    weightsum = node("Softmax", [node("MatMul", [columns, rows], "product")], "attention", axis=-1)
    mixed = node("MatMul", [rows, weightsum], "mixed")
    square = node("Reshape", [mixed, constant("shape4", np.array([0, 8, side // 2, side // 2], np.int64))], "square")
    after = silu(conv("proj", square, (8, 8), kernel=1))
    neck = silu(conv("neck", after, (8, 8)))
    scales = constant("scales", np.array([1, 1, 2, 2], np.float32))
    large = node(
        "Resize",
        [neck, "", scales],
        "large",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    both = node(
        "Concat",
        [
            large,
            node(
                "Resize",
                [light, "", scales],
                "light2",
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            ),
        ],
        "both",
        axis=1,
    )
    head = silu(conv("head", both, (12, 16), stride=2))
    sides = conv("sides", head, (16, 16), kernel=1)
    classes = conv("classes", head, (16, CLASSES), kernel=1)
    bins = node("Reshape", [sides, constant("bins4", np.array([0, 4, 4, -1], np.int64))], "bins")
    spread = node("Softmax", [node("Transpose", [bins], "spread_in", perm=[0, 2, 1, 3])], "spread", axis=1)
    weights.append(numpy_helper.from_array(np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1), "dfl.weight"))
    expectation = node("Conv", [spread, "dfl.weight"], "dfl", kernel_shape=[1, 1])
    boxes = node("Reshape", [expectation, constant("boxes3", np.array([0, 4, -1], np.int64))], "boxes")
    pixels = node("Mul", [boxes, constant("stride", np.array(8.0, np.float32))], "pixels")
    probabilities = node(
        "Sigmoid",
        [node("Reshape", [classes, constant("classes3", np.array([0, CLASSES, -1], np.int64))], "logits")],
        "probabilities",
    )
    node("Concat", [pixels, probabilities], "output0", axis=1)
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [batch, 4 + CLASSES, (side // 2) ** 2])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(
    proto: onnx.ModelProto, images: np.ndarray, *, exact: bool = True, outputs: list[str] | None = None
) -> list[np.ndarray]:
    """Run a graph in ONNX Runtime; `exact` disables its own fusions."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if exact:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(outputs, {"images": images}))

"""Heads and layers against numbers computed by hand, and their properties."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fake_checkpoints import TINY, state_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkit.models.heads import DFL, OBB, Detect, Pose, Segment
from trtkit.models.layers import Attention, Conv, DWConv, reshape, reshape_like
from trtkit.models.yolo import build_model, load_weights


def test_anchors_are_cell_centers() -> None:
    detect = Detect(2, (16, 16), (8, 16))
    centers, strides = detect.anchors([torch.zeros(1, 16, 2, 3), torch.zeros(1, 16, 1, 1)])
    assert centers[0].T.tolist() == [
        [0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5], [0.5, 0.5]
    ]  # fmt: skip
    assert strides[0, 0].tolist() == [8.0] * 6 + [16.0]


def test_dfl_is_the_mean_of_the_distribution() -> None:
    dfl = DFL(4)
    dfl.conv.weight.data = torch.arange(4.0).reshape(1, 4, 1, 1)
    # Left: all in bin 2. Top: half 0, half 3. Right: even. Bottom: 1 to 3 between bins 1 and 2.
    big, third = 60.0, math.log(3)
    logits = torch.tensor([0, 0, big, 0, big, 0, 0, big, 1, 1, 1, 1, -big, 0, third, -big]).reshape(1, 16, 1)
    assert torch.allclose(dfl(logits).flatten(), torch.tensor([2, 1.5, 1.5, 1.75]), atol=1e-5)


def test_boxes_from_distances() -> None:
    detect = Detect(1, (16,), (8,))
    centers, strides = torch.tensor([[[2.5], [1.5]]]), torch.tensor([[[8.0]]])
    boxes = detect.decode_boxes(torch.tensor([[[1.0], [0.5], [2.0], [1.0]]]), centers, strides)
    # From (1.5, 1.0) to (4.5, 2.5) cells.
    assert boxes.flatten().tolist() == [24.0, 14.0, 24.0, 12.0]


def test_oriented_boxes_move_along_their_own_axes() -> None:
    obb = OBB(1, 1, (16,), (8,))
    centers, strides = torch.tensor([[[2.0], [2.0]]]), torch.tensor([[[8.0]]])
    distances = torch.tensor([[[1.0], [1.0], [3.0], [1.0]]])
    quarter = torch.tensor([[[math.pi / 2]]])
    # One cell along the box's x axis, which points down after a quarter turn.
    boxes = obb.decode_oriented_boxes(distances, quarter, centers, strides)
    assert torch.allclose(boxes.flatten(), torch.tensor([16.0, 24.0, 32.0, 16.0]))
    boxes = obb.decode_oriented_boxes(distances, torch.zeros(1, 1, 1), centers, strides)
    assert boxes.flatten().tolist() == [24.0, 16.0, 32.0, 16.0]


@pytest.mark.parametrize("values", [2, 3])
def test_keypoints_in_pixels(values: int) -> None:
    pose = Pose(1, (2, values), (16,), (8,))
    raw = torch.tensor([[0.5, 1.0, 0.0][:values], [-0.25, 0.0, 2.0][:values]]).reshape(1, -1, 1)
    found = pose.decode_keypoints(raw, torch.tensor([[[3.5], [1.5]]]), torch.tensor([[[8.0]]])).reshape(2, values)
    # (2 * 0.5 + 3) * 8 and (2 * 1 + 1) * 8; (2 * -0.25 + 3) * 8 and (0 + 1) * 8.
    assert found[:, :2].tolist() == [[32.0, 24.0], [20.0, 8.0]]
    if values == 3:
        assert torch.allclose(found[:, 2], torch.tensor([0.5, 1 / (1 + math.exp(-2))]))


def test_angles_span_half_a_turn() -> None:
    obb = OBB(1, 1, (16,), (8,)).eval()
    for branch in obb.cv4:
        branch[-1].weight.data.zero_()
    found = []
    for bias in (-1e3, 0.0, 1e3):
        obb.cv4[0][-1].bias.data.fill_(bias)
        found.append(obb([torch.zeros(1, 16, 1, 1)])[0, -1, 0].item())
    assert found == pytest.approx([-math.pi / 4, math.pi / 4, 3 * math.pi / 4])


def test_segment_returns_coefficients_and_prototypes() -> None:
    segment = Segment(5, 8, 16, (16, 32), (8, 16)).eval()
    rows, prototypes = segment([torch.rand(2, 16, 4, 6), torch.rand(2, 32, 2, 3)])
    assert rows.shape == (2, 4 + 5 + 8, 30)
    assert prototypes.shape == (2, 8, 8, 12)


def test_attention_is_softmax_over_positions() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2).eval()
    x = torch.rand(1, 8, 2, 3)
    q, k, v = attention.qkv(x).reshape(1, 2, 8, 6).split([2, 2, 4], 2)
    mixed = torch.zeros(1, 2, 4, 6)
    for head in range(2):
        for position in range(6):
            logits = torch.stack([q[0, head, :, position] @ k[0, head, :, other] / math.sqrt(2) for other in range(6)])
            mixed[0, head, :, position] = (v[0, head] * logits.softmax(0)).sum(-1)
    expected = attention.proj(mixed.reshape(1, 8, 2, 3) + attention.pe(v.reshape(1, 8, 2, 3)))
    assert torch.allclose(attention(x), expected, atol=1e-6)


@given(
    c1=st.integers(1, 8),
    c2=st.integers(1, 8),
    k=st.sampled_from([1, 3, 5]),
    s=st.integers(1, 2),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=30)
def test_folding_a_batch_norm_keeps_the_outputs(c1: int, c2: int, k: int, s: int, seed: int) -> None:
    torch.manual_seed(seed)
    for conv in (Conv(c1, c2, k, s), DWConv(c1, c2, k, s)):
        conv.bn.running_mean.uniform_(-2, 2)
        conv.bn.running_var.uniform_(0.01, 3)
        conv.bn.weight.data.uniform_(-2, 2)
        conv.bn.bias.data.uniform_(-2, 2)
        conv.eval().requires_grad_(False)
        x = torch.rand(1, c1, 7, 9)
        before = conv(x)
        conv.fuse()
        assert conv.bn is None
        assert torch.allclose(conv(x), before, atol=1e-4)
        conv.fuse()
        assert torch.allclose(conv(x), before, atol=1e-4)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))
def test_reshape_keeps_sizes_at_zero(a: int, b: int, c: int) -> None:
    x = torch.arange(a * b * c).reshape(a, b, c)
    assert torch.equal(reshape(x, 0, -1), x.reshape(a, b * c))
    assert torch.equal(reshape(x, 0, 0, c, -1), x.reshape(a, b, c, 1))
    assert torch.equal(reshape_like(x, torch.zeros(a * b, c)), x.reshape(a * b, c))


YOLO11 = {
    **TINY,
    "nc": 4,
    "kpt_shape": [3, 3],
    "yaml_file": "yolo11n.yaml",
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 2, "C3k2", [16, True]], [-1, 1, "SPPF", [16, 5]],
        [-1, 1, "C2PSA", [16]],
    ],
}  # fmt: skip
HEADS = {
    "detect": [[-1, 1, "Conv", [16, 3, 2]], [[2, 5], 1, "Detect", ["nc"]]],
    "segment": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [-1, 1, "Conv", [16, 3, 2]],
        [[2, 6], 1, "Segment", ["nc", 4, 16]],
    ],
    "pose": [[-1, 1, "Conv", [16, 3, 2]], [[2, 5], 1, "Pose", ["nc", "kpt_shape"]]],
    "obb": [[-1, 1, "Conv", [16, 3, 2]], [[2, 5], 1, "OBB", ["nc", 1]]],
    "classify": [[-1, 1, "Classify", ["nc"]]],
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("task", sorted(HEADS))
def test_modules_trace_to_onnx(task: str, dynamic: bool) -> None:
    yaml = {**YOLO11, "head": HEADS[task]}
    module = load_weights(build_model(yaml), state_dict(yaml))
    assert module.task == task
    names = ["output0", "output1"] if task == "segment" else ["output0"]
    axes = {name: {0: "batch", 2: "a", 3: "b"} for name in ["images", *names]} if dynamic else None
    if axes and task == "classify":
        axes["output0"] = {0: "batch"}
    elif axes:
        axes["output0"] = {0: "batch", 2: "anchors"}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, torch.rand(1, 3, 64, 64), buffer, input_names=["images"], output_names=names, dynamic_axes=axes,
            opset_version=17, dynamo=False,
        )  # fmt: skip
    proto = onnx.load_from_string(buffer.getvalue())
    onnx.checker.check_model(proto)
    kinds = {node.op_type for node in proto.graph.node}
    assert not kinds & {
        "If",
        "Loop",
        "NonZero",
        "Where",
        "BatchNormalization",
        "Expand",
        "Gemm" if task != "classify" else "",
    }
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    for shape in [(1, 3, 64, 64), *([(3, 3, 96, 32)] if dynamic else [])]:
        image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        expected = module(image)
        found = session.run(None, {"images": image.numpy()})
        for a, b in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
            np.testing.assert_allclose(a, b.numpy(), atol=1e-4, rtol=1e-5)

"""Graphs that `benchmarks/refinement.py` evaluates: what is left out of INT8 is exact, the rest as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from task_models import untrained

from trtkit.graph.analysis import GraphIndex
from trtkit.graph.ort_session import open_session
from trtkit.graph.qdq import insert_qdq
from trtkit.graph.torch_export import trace

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
IMAGES = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64)).astype(np.float32) / 255


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import refinement_graphs

    return refinement_graphs


@pytest.fixture(scope="module")
def int8() -> onnx.ModelProto:
    graph = trace(untrained("detect"), imgsz=(64, 64), batch=1)
    return insert_qdq(graph, dict.fromkeys(GraphIndex(graph).producer, (-6.0, 6.0)) | {"images": (0.0, 1.0)})


def run_first(proto: onnx.ModelProto) -> np.ndarray:
    """What the first convolution gives."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    name = next(node.output[0] for node in proto.graph.node if node.op_type == "Conv")
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    (output,) = open_session(proto).run([name], {"images": IMAGES})
    return np.asarray(output)


def test_centered_images_are_exact_but_for_the_border(graphs: Any, int8: onnx.ModelProto) -> None:
    exact = run_first(graphs.leave_activations(int8, ["images"]))
    centered = run_first(graphs.center_images(int8))
    # Padding is above and to the left alone: the stride is 2.
    np.testing.assert_allclose(centered[..., 1:, 1:], exact[..., 1:, 1:], atol=1e-5)
    assert np.abs(centered - exact)[..., 0, :].max() > 0.01
    assert np.abs(run_first(int8) - exact)[..., 1:, 1:].max() > 1e-4


def test_only_named_activations_are_left_in_float(graphs: Any, int8: onnx.ModelProto) -> None:
    def list_quantized(proto: onnx.ModelProto) -> set[str]:
        return {node.input[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}

    name = sorted(list_quantized(int8) - {"images"})[0]
    assert list_quantized(graphs.leave_activations(int8, [name])) == list_quantized(int8) - {name}
    assert not list_quantized(graphs.leave_activations(int8))

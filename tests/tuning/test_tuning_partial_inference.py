"""Partial inference, layer noise and bias correction, against whole graphs run by ONNX Runtime."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx
import pytest
from detector_graph import CLASSES, detector, run
from onnx import TensorProto, helper, numpy_helper

from trtkit.calibration.collector import MinMaxCollector
from trtkit.graph.analysis import GraphIndex, block_of, escape_pattern, split_into_segments
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.progress import Reporter
from trtkit.tuning.corrections import compute_bias_corrections
from trtkit.tuning.noise import LayerNoise, compute_sqnr
from trtkit.tuning.partial_inference import NO_INT8, SegmentedGraph

IMAGES = np.random.default_rng(3).random((6, 3, 32, 32), np.float32)


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    return detector(batch=1)


@pytest.fixture(scope="module")
def ranges() -> dict[str, tuple[float, float]]:
    extremes = MinMaxCollector(detector(), device="cpu")
    extremes.add(IMAGES)
    return extremes.ranges()


def whole(proto: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    """The output of the uncut graph, with the options of the ONNX Runtime backend for Q/DQ graphs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": image})[0])


@pytest.mark.parametrize(
    "kept",
    [(), ("stem",), ("wide", "head"), ("stem", "middle", "wide", "neck"), ("middle", "wide", "neck", "head")],
)
def test_segments_equal_the_whole_graph(
    proto: onnx.ModelProto, ranges: dict[str, tuple[float, float]], kept: tuple[str, ...]
) -> None:
    corrections = {"stem": tuple(np.linspace(-0.1, 0.1, 8)), "head": tuple(np.linspace(0, 1, 16))}
    segments = SegmentedGraph(proto)
    placement = plan_qdq(proto, kept)
    plain = segments.prepare_variant(NO_INT8, ranges)
    variant = segments.prepare_variant(placement, ranges, corrections)
    float_, result = segments.run(IMAGES[:1], [plain, variant])
    np.testing.assert_allclose(float_["output0"], run(proto, IMAGES[:1])[0], rtol=1e-5, atol=1e-5)
    expected = whole(insert_qdq(proto, ranges, kept, corrections=corrections), IMAGES[:1])
    np.testing.assert_allclose(result["output0"], expected, rtol=1e-5, atol=1e-5)


def test_every_placement_of_one_layer(proto: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> None:
    layer_noise = LayerNoise(proto, CLASSES)
    for name in layer_noise.full_int8.layers:
        keep = [other for other in layer_noise.weighted if other != name]
        variant = layer_noise.prepare_variant(layer_noise.plan_only([name]), ranges)
        (result,) = layer_noise.segments.run(IMAGES[:1], [variant])
        np.testing.assert_allclose(
            result["output0"],
            whole(insert_qdq(proto, ranges, keep, protect=False), IMAGES[:1]),
            rtol=1e-5,
            atol=1e-5,
        )


def test_equal_segments_share_results(proto: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> None:
    layer_noise = LayerNoise(proto, CLASSES)
    late = layer_noise.prepare_variant(layer_noise.plan_only(["head"]), ranges)
    early = layer_noise.prepare_variant(layer_noise.plan_only(["stem"]), ranges)
    shared = sum(a == b for a, b in zip(late.result_ids, layer_noise.float_variant.result_ids, strict=True))
    assert shared > sum(a == b for a, b in zip(early.result_ids, layer_noise.float_variant.result_ids, strict=True))
    assert late.result_ids[0] == layer_noise.float_variant.result_ids[0] != early.result_ids[0]
    # Another range of a tensor that the segment reads changes its result; another tensor's range does not.
    assert (
        layer_noise.prepare_variant(layer_noise.plan_only(["head"]), {**ranges, "both": (0.0, 9.0)}).result_ids
        != late.result_ids
    )
    assert (
        layer_noise.prepare_variant(layer_noise.plan_only(["head"]), {**ranges, "images": (0.0, 9.0)}).result_ids
        == late.result_ids
    )


def test_a_shared_result_is_computed_once(proto: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> None:
    layer_noise = LayerNoise(proto, CLASSES)
    # Of two pairs of equal variants only the first of each runs what differs from FP32.
    variants = [
        layer_noise.float_variant,
        *(layer_noise.prepare_variant(layer_noise.plan_only([name]), ranges) for name in ("stem", "head") * 2),
    ]
    runs: list[object] = []

    class Counted:
        def __init__(self, session: Any) -> None:
            self.session = session

        def run(self, *arguments: Any) -> Any:
            runs.append(self.session)
            return self.session.run(*arguments)

    counted = [dataclasses.replace(one, sessions=tuple(map(Counted, one.sessions))) for one in variants]
    results = list(layer_noise.segments.run(IMAGES[:1], counted))
    assert len(runs) == len({result for one in variants for result in one.result_ids})
    for one, result in zip(variants, results, strict=True):
        (alone,) = layer_noise.segments.run(IMAGES[:1], [one])
        np.testing.assert_array_equal(result["output0"], alone["output0"])


def test_segments_have_every_node_once_and_in_order(proto: onnx.ModelProto) -> None:
    view = GraphIndex(proto)
    runs = split_into_segments(view)
    names = [node.name for run_ in runs for node in run_]
    assert sorted(names) == sorted(node.name for node in proto.graph.node)
    made = {"images", *view.constants}
    for run_ in runs:
        for node in run_:
            assert all(name in made for name in node.input if name)
            made.update(node.output)


def test_blocks_by_name() -> None:
    assert block_of("/model.4/m.0/cv1/conv/Conv") == "model.4"
    assert block_of("/model.23/cv2.0/cv2.0.1/conv/Conv") == "model.23/cv2.0"
    assert block_of("/model.23/cv3.1/cv3.1.0/cv3.1.0.0/conv/Conv") == "model.23/cv3.1"
    assert block_of("/model.23/Concat_3") == "model.23"
    assert block_of("/layer1/conv/Conv") == "layer1"
    assert block_of("Conv_17") == "Conv_17"


@pytest.mark.parametrize("name", ["/model.0/conv/Conv", "odd[1]*?]", "[!a]", "a*"])
def test_patterns_match_only_their_name(name: str) -> None:
    assert fnmatchcase(name, escape_pattern(name))
    assert not fnmatchcase("/model.0/conv/Conv_1", escape_pattern(name))
    assert not fnmatchcase("odd1xyz]", escape_pattern(name))


def test_noise_of_one_layer_by_hand(proto: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> None:
    layer_noise = LayerNoise(proto, CLASSES)
    assert set(layer_noise.head_tensors) == {"sides", "classes"}
    variant = layer_noise.prepare_variant(layer_noise.plan_only(["head"]), ranges)
    result = layer_noise.measure_sqnr(
        {"head": variant}, lambda: [IMAGES[:1], IMAGES[1:2]], 2, stage="", reporter=Reporter()
    )
    plain, int8 = (
        onnx.ModelProto.FromString(one.SerializeToString())
        for one in (proto, insert_qdq(proto, ranges, [name for name in layer_noise.weighted if name != "head"]))
    )
    shares = []
    values = []
    for graph in (plain, int8):
        graph.graph.output.extend(
            helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in layer_noise.head_tensors
        )
        values.append([run(graph, IMAGES[i : i + 1], outputs=list(layer_noise.head_tensors)) for i in range(2)])
    classes = layer_noise.head_tensors.index("classes")
    sure = [1 / (1 + np.exp(-pair[classes].max(axis=1, keepdims=True))) for pair in values[0]]
    for weight in (None, sure):
        for head in range(2):
            signal = noise = 0.0
            for index in range(2):
                exact, rounded = values[0][index][head], values[1][index][head]
                factor = 1.0 if weight is None else weight[index]
                signal += float((factor * exact**2).sum())
                noise += float((factor * (rounded - exact) ** 2).sum())
            shares.append(noise / signal)
    assert result["head"] == pytest.approx(-10 * np.log10(np.mean(shares)), abs=0.01)
    assert compute_sqnr(np.ones(2), np.array([0.01, 0.03])) == pytest.approx(10 * np.log10(50))
    assert compute_sqnr(np.ones(2), np.zeros(2)) == 200.0


def test_bias_correction_removes_the_mean_error(proto: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> None:
    placement = plan_qdq(proto)
    inputs = [IMAGES[index : index + 1] for index in range(6)]
    corrections = compute_bias_corrections(proto, placement, ranges, inputs, 6, Reporter())
    assert set(corrections) == set(placement.layers)
    assert len(corrections["head"]) == 16

    def means(graph: onnx.ModelProto, tensor: str) -> np.ndarray:
        watched = onnx.ModelProto.FromString(graph.SerializeToString())
        watched.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
        return np.mean([run(watched, one, outputs=[tensor])[0].mean(axis=(0, 2, 3)) for one in inputs], axis=0)

    weighted = [node.name for node in GraphIndex(proto).weighted]
    for name in placement.layers:
        keep = [other for other in weighted if other != name]
        exact = means(proto, name)
        before = means(insert_qdq(proto, ranges, keep, protect=False), name) - exact
        after = means(insert_qdq(proto, ranges, keep, protect=False, corrections=corrections), name) - exact
        assert np.abs(before).max() > 1e-5
        # Alone, a layer may share its scale with fewer tensors than in full INT8, so a part of the error remains.
        assert np.abs(after).sum() < 0.35 * np.abs(before).sum()
    bias = next(
        numpy_helper.to_array(tensor)
        for tensor in insert_qdq(proto, ranges, corrections=corrections).graph.initializer
        if tensor.name == "head_corrected_bias"
    )
    np.testing.assert_allclose(bias, np.array(corrections["head"], np.float32), rtol=1e-6)

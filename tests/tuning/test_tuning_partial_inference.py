from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import onnx
import pytest
from detector_graph import CLASSES, detector, run
from onnx import TensorProto, helper, numpy_helper

from trtkit.calibration.collector import Extremes
from trtkit.graph.analysis import View, block_of, pattern_of, segments_of
from trtkit.graph.qdq import place, quantize
from trtkit.progress import Work
from trtkit.tuning.corrections import bias_corrections
from trtkit.tuning.noise import Lab, decibels
from trtkit.tuning.partial_inference import FLOAT, Segments

PICTURES = np.random.default_rng(3).random((6, 3, 32, 32), np.float32)


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    return detector(batch=1)


@pytest.fixture(scope="module")
def ranges() -> dict[str, tuple[float, float]]:
    extremes = Extremes(detector(), device="cpu")
    extremes.add(PICTURES)
    return extremes.ranges()


def whole(proto: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    """What ONNX Runtime computes without cutting the graph, by the arithmetic of its backend for Q/DQ graphs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": picture})[0])


@pytest.mark.parametrize(
    "kept",
    [(), ("stem",), ("wide", "head"), ("stem", "middle", "wide", "neck"), ("middle", "wide", "neck", "head")],
)
def test_cut_up_graphs_compute_what_whole_ones_do(
    proto: onnx.ModelProto, ranges: dict[str, tuple[float, float]], kept: tuple[str, ...]
) -> None:
    corrections = {"stem": tuple(np.linspace(-0.1, 0.1, 8)), "head": tuple(np.linspace(0, 1, 16))}
    segments = Segments(proto)
    placement = place(proto, kept)
    plain = segments.variant(FLOAT, ranges)
    variant = segments.variant(placement, ranges, corrections)
    float_, found = segments.run(PICTURES[:1], [plain, variant])
    np.testing.assert_allclose(float_["output0"], run(proto, PICTURES[:1])[0], rtol=1e-5, atol=1e-5)
    expected = whole(quantize(proto, ranges, kept, corrections=corrections), PICTURES[:1])
    np.testing.assert_allclose(found["output0"], expected, rtol=1e-5, atol=1e-5)


def test_every_placement_of_one_layer(proto: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> None:
    lab = Lab(proto, CLASSES)
    for name in lab.whole.layers:
        keep = [other for other in lab.weighted if other != name]
        variant = lab.variant(lab.only([name]), ranges)
        (found,) = lab.segments.run(PICTURES[:1], [variant])
        np.testing.assert_allclose(
            found["output0"],
            whole(quantize(proto, ranges, keep, protect=False), PICTURES[:1]),
            rtol=1e-5,
            atol=1e-5,
        )


def test_what_is_the_same_is_computed_once(proto: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> None:
    lab = Lab(proto, CLASSES)
    late = lab.variant(lab.only(["head"]), ranges)
    early = lab.variant(lab.only(["stem"]), ranges)
    shared = sum(a == b for a, b in zip(late.results, lab.float.results, strict=True))
    assert shared > sum(a == b for a, b in zip(early.results, lab.float.results, strict=True))
    assert late.results[0] == lab.float.results[0] != early.results[0]
    # The same placement with another range is another computation; with another range elsewhere it is not.
    assert lab.variant(lab.only(["head"]), {**ranges, "both": (0.0, 9.0)}).results != late.results
    assert lab.variant(lab.only(["head"]), {**ranges, "images": (0.0, 9.0)}).results == late.results


def test_segments_hold_every_node_once_and_in_order(proto: onnx.ModelProto) -> None:
    view = View(proto)
    runs = segments_of(view)
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
def test_patterns_match_their_name_and_no_other(name: str) -> None:
    assert fnmatchcase(name, pattern_of(name))
    assert not fnmatchcase("/model.0/conv/Conv_1", pattern_of(name))
    assert not fnmatchcase("odd1xyz]", pattern_of(name))


def test_noise_of_one_layer_by_hand(proto: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> None:
    lab = Lab(proto, CLASSES)
    assert set(lab.heads) == {"sides", "classes"}
    variant = lab.variant(lab.only(["head"]), ranges)
    found = lab.noise({"head": variant}, lambda: [PICTURES[:1], PICTURES[1:2]], 2, stage="", work=Work())
    plain, int8 = (
        onnx.ModelProto.FromString(one.SerializeToString())
        for one in (proto, quantize(proto, ranges, [name for name in lab.weighted if name != "head"]))
    )
    shares = []
    values = []
    for graph in (plain, int8):
        graph.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in lab.heads)
        values.append([run(graph, PICTURES[i : i + 1], outputs=list(lab.heads)) for i in range(2)])
    classes = lab.heads.index("classes")
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
    assert found["head"] == pytest.approx(-10 * np.log10(np.mean(shares)), abs=0.01)
    assert decibels(np.ones(2), np.array([0.01, 0.03])) == pytest.approx(10 * np.log10(50))
    assert decibels(np.ones(2), np.zeros(2)) == 200.0


def test_corrected_biases_take_a_layers_mean_error_away(
    proto: onnx.ModelProto, ranges: dict[str, tuple[float, float]]
) -> None:
    placement = place(proto)
    inputs = [PICTURES[index : index + 1] for index in range(6)]
    corrections = bias_corrections(proto, placement, ranges, inputs, 6, Work())
    assert set(corrections) == set(placement.layers)
    assert len(corrections["head"]) == 16

    def means(graph: onnx.ModelProto, tensor: str) -> np.ndarray:
        watched = onnx.ModelProto.FromString(graph.SerializeToString())
        watched.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
        return np.mean([run(watched, one, outputs=[tensor])[0].mean(axis=(0, 2, 3)) for one in inputs], axis=0)

    weighted = [node.name for node in View(proto).weighted]
    for name in placement.layers:
        keep = [other for other in weighted if other != name]
        exact = means(proto, name)
        before = means(quantize(proto, ranges, keep, protect=False), name) - exact
        after = means(quantize(proto, ranges, keep, protect=False, corrections=corrections), name) - exact
        assert np.abs(before).max() > 1e-5
        # Alone a layer may share its scale with fewer tensors than in the whole; most of the error goes all the same.
        assert np.abs(after).sum() < 0.35 * np.abs(before).sum()
    bias = next(
        numpy_helper.to_array(tensor)
        for tensor in quantize(proto, ranges, corrections=corrections).graph.initializer
        if tensor.name == "head_corrected_bias"
    )
    np.testing.assert_allclose(bias, np.array(corrections["head"], np.float32), rtol=1e-6)

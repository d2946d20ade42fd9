from __future__ import annotations

import numpy as np
import onnx
import pytest
from detector_graph import detector, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from trtkit.calibration.collector import HistogramCollector, MinMaxCollector, get_fixed_batch, select_providers
from trtkit.errors import CalibrationError, CapabilityError
from trtkit.graph.qdq import quantizable_tensors


def images(count: int, seed: int = 0, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, side, side), np.float32)


def values_of(proto: onnx.ModelProto, fed: np.ndarray) -> dict[str, np.ndarray]:
    """Every candidate tensor, computed by a plain run of the graph with all of them as outputs."""
    names = [name for name in quantizable_tensors(proto) if name != "images"]
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    whole.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return {"images": fed, **dict(zip(names, run(whole, fed, exact=False, outputs=names), strict=True))}


@pytest.mark.parametrize("kind", [MinMaxCollector, HistogramCollector])
def test_minmax_is_exact_however_the_images_are_batched(kind: type[MinMaxCollector]) -> None:
    proto, fed = detector(), images(5)
    whole = values_of(proto, fed)
    for sizes in ((5,), (2, 3), (1, 1, 1, 1, 1)):
        extremes, start = kind(proto, device="cpu"), 0
        for size in sizes:
            extremes.add(fed[start : start + size])
            start += size
        assert extremes.image_count == 5
        found = extremes.ranges()
        assert list(found) == list(quantizable_tensors(proto))
        for name, seen in extremes.stats().items():
            # Another batch may take another kernel, whose sums differ in the last bits.
            np.testing.assert_allclose((seen.low, seen.high), (whole[name].min(), whole[name].max()), rtol=2e-5)
        for name, (low, high) in found.items():
            assert low <= whole[name].min() + 1e-5
            assert high >= whole[name].max() - 1e-5


def test_minmax_equals_the_same_run_bit_for_bit() -> None:
    proto, fed = detector(), images(3)
    histograms = HistogramCollector(proto, device="cpu")
    values = dict(
        zip(
            histograms.measured,
            histograms.session.run(histograms.measured, {"images": fed}),
            strict=True,
        )
    )
    histograms.add(fed)
    for name, seen in histograms.stats().items():
        assert (seen.low, seen.high) == (float(values[name].min()), float(values[name].max()))
        assert seen.histogram is not None
        assert seen.histogram.total == values[name].size
        # An independent count of what lies above a quarter of the range.
        edge = seen.histogram.width * 1024
        assert int(seen.histogram.counts[1024:].sum()) == int((np.abs(values[name]) >= edge).sum())


def test_images_beside_each_other_are_counted_as_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    proto, fed = detector(), images(7)
    together = HistogramCollector(proto, device="cpu")
    for start in (0, 4):
        together.add(fed[start : start + 4])
    monkeypatch.setattr("trtkit.calibration.collector.WORKERS", 1)
    alone = HistogramCollector(proto, device="cpu")
    assert len(alone.counters) == 1
    for one in fed:
        alone.add(one[None])
    for name, seen in together.stats().items():
        expected = alone.stats()[name]
        assert seen.histogram is not None
        assert expected.histogram is not None
        np.testing.assert_array_equal(seen.histogram.counts, expected.histogram.counts)
        assert (seen.low, seen.high, seen.average_low) == (expected.low, expected.high, expected.average_low)


def test_carriers_are_not_measured_but_ranged() -> None:
    proto = detector()
    extremes = MinMaxCollector(proto, device="cpu")
    extremes.add(images(2))
    assert {"joined", "pooled", "both", "large", "left", "right"} <= set(extremes.sources)
    assert not set(extremes.measured) & set(extremes.sources)
    ranges = extremes.ranges()
    assert ranges["left"] == ranges["right"] == ranges["residual"]
    assert ranges["both"][1] == max(ranges["large"][1], ranges["light2"][1])


def test_the_moving_average_by_hand() -> None:
    proto, fed = detector(), images(150, side=32) * np.linspace(0.2, 1, 150, dtype=np.float32)[:, None, None, None]
    extremes = MinMaxCollector(proto, device="cpu")
    for start in range(0, 150, 7):
        extremes.add(fed[start : start + 7])
    highs = fed.reshape(150, -1).max(axis=1).astype(np.float64)
    expected = highs[:100].mean()
    for high in highs[100:]:
        expected = 0.99 * expected + 0.01 * high
    assert extremes.stats()["images"].average_high == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def fragile() -> tuple[onnx.ModelProto, MinMaxCollector, HistogramCollector]:
    """A graph that hides what its input holds: what is clipped in between is finite whatever comes."""
    weights = [
        numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one.weight"),
        numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "two.weight"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array(6, np.float32), "six"),
    ]
    nodes = [
        helper.make_node("Conv", ["images", "one.weight"], ["one"], "one"),
        helper.make_node("Clip", ["one", "zero", "six"], ["clipped"], "clipped"),
        helper.make_node("Conv", ["clipped", "two.weight"], ["output0"], "two"),
    ]
    graph = helper.make_graph(
        nodes,
        "fragile",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return proto, MinMaxCollector(proto, device="cpu"), HistogramCollector(proto, device="cpu")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n * 16 - 1))),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.booleans(),
)
def test_nan_and_infinities_are_refused_by_name(
    fragile: tuple[onnx.ModelProto, MinMaxCollector, HistogramCollector],
    place: tuple[int, int],
    value: float,
    counting: bool,
) -> None:
    _, extremes, histograms = fragile
    fed = np.ones((place[0], 1, 4, 4), np.float32)
    fed.reshape(-1)[place[1]] = value
    collector = histograms if counting else extremes
    before = collector.image_count
    with pytest.raises(CalibrationError, match="tensor 'images' holds NaN or infinity"):
        collector.add(fed)
    assert collector.image_count == before


@pytest.mark.parametrize("kind", [MinMaxCollector, HistogramCollector])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_weight_is_found_at_its_layer(kind: type[MinMaxCollector], value: float) -> None:
    proto = detector()
    for tensor in proto.graph.initializer:
        if tensor.name == "wide.bias":
            bias = numpy_helper.to_array(tensor).copy()
            bias[3] = value
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    with pytest.raises(CalibrationError, match="tensor 'wide' holds"):
        kind(proto, device="cpu").add(images(2))


def test_a_fixed_batch_is_filled_up_and_not_counted() -> None:
    fixed, free, fed = detector(batch=4), detector(), images(6)
    assert (get_fixed_batch(fixed), get_fixed_batch(free)) == (4, None)
    one, other = HistogramCollector(fixed, device="cpu"), HistogramCollector(free, device="cpu")
    for start in (0, 4):
        one.add(fed[start : start + 4])
    other.add(fed)
    assert one.image_count == other.image_count == 6
    for name, seen in one.stats().items():
        expected = other.stats()[name]
        assert seen.histogram is not None
        assert expected.histogram is not None
        assert seen.histogram.total == expected.histogram.total
        assert seen.high == pytest.approx(expected.high, rel=2e-5)


def test_newer_operator_sets_are_measured_alike() -> None:
    proto, fed = detector(), images(2)
    newer = onnx.version_converter.convert_version(proto, 18)
    one, other = MinMaxCollector(proto, device="cpu"), MinMaxCollector(newer, device="cpu")
    one.add(fed)
    other.add(fed)
    assert one.ranges().keys() == other.ranges().keys()
    np.testing.assert_allclose(list(one.ranges().values()), list(other.ranges().values()), rtol=2e-5)


def test_devices() -> None:
    assert select_providers("cpu") == ["CPUExecutionProvider"]
    assert select_providers(None)[-1] == "CPUExecutionProvider"
    assert MinMaxCollector(detector(), device="cpu").runner.endswith(" CPU")
    if len(select_providers(None)) == 1:
        with pytest.raises(CapabilityError, match="processor only"):
            select_providers("cuda:1")
    else:
        assert select_providers("cuda:1")[0] == ("CUDAExecutionProvider", {"device_id": "1"})


def test_a_tensor_whose_shape_depends_on_the_image() -> None:
    nodes = [
        helper.make_node("Greater", ["images", "half"], ["bright"], "bright"),
        helper.make_node("NonZero", ["bright"], ["places"], "places"),
        helper.make_node("Cast", ["places"], ["numbers"], "numbers", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["numbers", "axes"], ["map"], "map"),
        helper.make_node("Conv", ["map", "weight"], ["output0"], "conv"),
    ]
    constants = [
        numpy_helper.from_array(np.array(0.5, np.float32), "half"),
        numpy_helper.from_array(np.array([0, 1], np.int64), "axes"),
        numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 1, 4, 4])
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "places", [images], [output], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    fed = np.zeros((3, 1, 4, 4), np.float32)
    for index, count in enumerate((2, 9, 5)):
        fed[index].reshape(-1)[:count] = 1
    histograms = HistogramCollector(proto, device="cpu", tensors=["map"])
    for one in fed:
        histograms.add(one[None])
    seen = histograms.stats()["map"]
    assert seen.histogram is not None
    # Four coordinates of each bright place; the ninth place is in row 2.
    assert seen.histogram.total == 4 * (2 + 9 + 5)
    assert (seen.low, seen.high) == (0.0, 3.0)

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


def random_images(count: int, seed: int = 0, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, side, side), np.float32)


def compute_values(proto: onnx.ModelProto, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Every quantizable tensor, from a plain run of the graph with all of them as outputs."""
    names = [name for name in quantizable_tensors(proto) if name != "images"]
    with_outputs = onnx.ModelProto()
    with_outputs.CopyFrom(proto)
    with_outputs.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return {"images": inputs, **dict(zip(names, run(with_outputs, inputs, exact=False, outputs=names), strict=True))}


@pytest.mark.parametrize("kind", [MinMaxCollector, HistogramCollector])
def test_minmax_is_exact_for_every_batching(kind: type[MinMaxCollector]) -> None:
    proto, inputs = detector(), random_images(5)
    values = compute_values(proto, inputs)
    for sizes in ((5,), (2, 3), (1, 1, 1, 1, 1)):
        collector, start = kind(proto, device="cpu"), 0
        for size in sizes:
            collector.add(inputs[start : start + size])
            start += size
        assert collector.image_count == 5
        ranges = collector.ranges()
        assert list(ranges) == list(quantizable_tensors(proto))
        for name, stats in collector.stats().items():
            # Kernels for other batches may round differently.
            np.testing.assert_allclose((stats.low, stats.high), (values[name].min(), values[name].max()), rtol=2e-5)
        for name, (low, high) in ranges.items():
            assert low <= values[name].min() + 1e-5
            assert high >= values[name].max() - 1e-5


def test_minmax_equals_the_same_run_bit_for_bit() -> None:
    proto, inputs = detector(), random_images(3)
    histograms = HistogramCollector(proto, device="cpu")
    values = dict(
        zip(
            histograms.measured,
            histograms.session.run(histograms.measured, {"images": inputs}),
            strict=True,
        )
    )
    histograms.add(inputs)
    for name, stats in histograms.stats().items():
        assert (stats.low, stats.high) == (float(values[name].min()), float(values[name].max()))
        assert stats.histogram is not None
        assert stats.histogram.total == values[name].size
        # An independent count of the values above a quarter of the range.
        edge = stats.histogram.width * 1024
        assert int(stats.histogram.counts[1024:].sum()) == int((np.abs(values[name]) >= edge).sum())


def test_parallel_images_are_counted_like_sequential_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    proto, inputs = detector(), random_images(7)
    parallel = HistogramCollector(proto, device="cpu")
    for start in (0, 4):
        parallel.add(inputs[start : start + 4])
    monkeypatch.setattr("trtkit.calibration.collector.WORKERS", 1)
    sequential = HistogramCollector(proto, device="cpu")
    assert len(sequential.counters) == 1
    for one in inputs:
        sequential.add(one[None])
    for name, stats in parallel.stats().items():
        expected = sequential.stats()[name]
        assert stats.histogram is not None
        assert expected.histogram is not None
        np.testing.assert_array_equal(stats.histogram.counts, expected.histogram.counts)
        assert (stats.low, stats.high, stats.average_low) == (expected.low, expected.high, expected.average_low)


def test_pass_through_tensors_take_the_ranges_of_their_sources() -> None:
    proto = detector()
    collector = MinMaxCollector(proto, device="cpu")
    collector.add(random_images(2))
    assert {"joined", "pooled", "both", "large", "left", "right"} <= set(collector.sources)
    assert not set(collector.measured) & set(collector.sources)
    ranges = collector.ranges()
    assert ranges["left"] == ranges["right"] == ranges["residual"]
    assert ranges["both"][1] == max(ranges["large"][1], ranges["light2"][1])


def test_moving_average_matches_a_loop() -> None:
    proto, inputs = (
        detector(),
        random_images(150, side=32) * np.linspace(0.2, 1, 150, dtype=np.float32)[:, None, None, None],
    )
    collector = MinMaxCollector(proto, device="cpu")
    for start in range(0, 150, 7):
        collector.add(inputs[start : start + 7])
    highs = inputs.reshape(150, -1).max(axis=1).astype(np.float64)
    expected = highs[:100].mean()
    for high in highs[100:]:
        expected = 0.99 * expected + 0.01 * high
    assert collector.stats()["images"].average_high == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def clipping() -> tuple[onnx.ModelProto, MinMaxCollector, HistogramCollector]:
    """A graph that clips its input, so that NaN and infinity do not reach its output."""
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
        "clipping",
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
def test_nan_and_infinity_name_the_tensor(
    clipping: tuple[onnx.ModelProto, MinMaxCollector, HistogramCollector],
    place: tuple[int, int],
    value: float,
    counting: bool,
) -> None:
    _, minmax, histograms = clipping
    inputs = np.ones((place[0], 1, 4, 4), np.float32)
    inputs.reshape(-1)[place[1]] = value
    collector = histograms if counting else minmax
    before = collector.image_count
    with pytest.raises(CalibrationError) as error:
        collector.add(inputs)
    assert error.value.code == "calibration-not-finite"
    assert error.value.fields["tensor"] == "images"
    assert collector.image_count == before


@pytest.mark.parametrize("kind", [MinMaxCollector, HistogramCollector])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_weight_names_its_layer(kind: type[MinMaxCollector], value: float) -> None:
    proto = detector()
    for tensor in proto.graph.initializer:
        if tensor.name == "wide.bias":
            bias = numpy_helper.to_array(tensor).copy()
            bias[3] = value
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    with pytest.raises(CalibrationError) as error:
        kind(proto, device="cpu").add(random_images(2))
    assert error.value.code == "calibration-not-finite"
    assert error.value.fields["tensor"] == "wide"


def test_padding_of_a_fixed_batch_is_not_counted() -> None:
    fixed, free, inputs = detector(batch=4), detector(), random_images(6)
    assert (get_fixed_batch(fixed), get_fixed_batch(free)) == (4, None)
    one, other = HistogramCollector(fixed, device="cpu"), HistogramCollector(free, device="cpu")
    for start in (0, 4):
        one.add(inputs[start : start + 4])
    other.add(inputs)
    assert one.image_count == other.image_count == 6
    for name, stats in one.stats().items():
        expected = other.stats()[name]
        assert stats.histogram is not None
        assert expected.histogram is not None
        assert stats.histogram.total == expected.histogram.total
        assert stats.high == pytest.approx(expected.high, rel=2e-5)


def small_graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], batch: int | str) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 1, 4, 4])
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "small", [image], [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_padding_is_not_counted_where_the_batch_is_folded_into_an_axis() -> None:
    nodes = [
        helper.make_node("Conv", ["images", "one"], ["two_channels"], "conv"),
        helper.make_node("Sigmoid", ["two_channels"], ["gate"], "gate"),
        helper.make_node("Reshape", ["gate", "flat"], ["rows"], "rows"),
        helper.make_node("Sigmoid", ["rows"], ["folded"], "folded"),
        helper.make_node("MatMul", ["folded", "weight"], ["output0"], "layer"),
    ]
    constants = {
        "one": np.ones((2, 1, 1, 1), np.float32),
        "flat": np.array([-1, 16], np.int64),
        "weight": np.ones((16, 3), np.float32),
    }
    inputs = np.random.default_rng(0).random((3, 1, 4, 4), np.float32)
    totals = []
    for batch in (4, "batch"):
        collector = HistogramCollector(small_graph(nodes, constants, batch), device="cpu")
        collector.add(inputs)
        histogram = collector.stats()["folded"].histogram
        assert histogram is not None
        totals.append(histogram.total)
    assert totals == [3 * 2 * 16] * 2


@pytest.mark.parametrize("place", [0, 5, 15])
def test_nan_that_a_comparison_hides_is_found(place: int) -> None:
    nodes = [
        helper.make_node("Conv", ["images", "one"], ["first"], "first"),
        helper.make_node("Greater", ["first", "zero"], ["is_positive"], "compare"),
        helper.make_node("Cast", ["is_positive"], ["mask"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["mask", "one"], ["output0"], "second"),
    ]
    constants = {"one": np.ones((1, 1, 1, 1), np.float32), "zero": np.array(0, np.float32)}
    inputs = np.ones((1, 1, 4, 4), np.float32)
    inputs.reshape(-1)[place] = np.nan
    with pytest.raises(CalibrationError) as error:
        MinMaxCollector(small_graph(nodes, constants, "batch"), device="cpu").add(inputs)
    assert error.value.fields["tensor"] == "images"


def test_newer_opsets_give_the_same_ranges() -> None:
    proto, inputs = detector(), random_images(2)
    newer = onnx.version_converter.convert_version(proto, 18)
    one, other = MinMaxCollector(proto, device="cpu"), MinMaxCollector(newer, device="cpu")
    one.add(inputs)
    other.add(inputs)
    assert one.ranges().keys() == other.ranges().keys()
    np.testing.assert_allclose(list(one.ranges().values()), list(other.ranges().values()), rtol=2e-5)


def test_execution_providers_by_device() -> None:
    assert select_providers("cpu") == ["CPUExecutionProvider"]
    assert select_providers(None)[-1] == "CPUExecutionProvider"
    assert MinMaxCollector(detector(), device="cpu").runner.endswith(" CPU")
    if len(select_providers(None)) == 1:
        with pytest.raises(CapabilityError) as error:
            select_providers("cuda:1")
        assert error.value.code == "calibration-device-missing"
    else:
        assert select_providers("cuda:1")[0] == ("CUDAExecutionProvider", {"device_id": "1"})


@pytest.mark.parametrize("device", ["CPU", " cpu "])
def test_names_of_the_cpu(device: str) -> None:
    assert select_providers(device) == ["CPUExecutionProvider"]


@pytest.mark.parametrize("device", ["sm89", "dla:0"])
def test_devices_that_onnx_runtime_does_not_run_on(device: str) -> None:
    with pytest.raises(CapabilityError) as error:
        select_providers(device)
    assert (error.value.code, error.value.fields["value"]) == ("calibration-device-unsupported", device)


@pytest.mark.parametrize("kind", [MinMaxCollector, HistogramCollector])
def test_a_concatenated_constant_counts(kind: type[MinMaxCollector]) -> None:
    """Such as a grid of coordinates that a layer reads beside the features."""
    grid = np.full((1, 1, 4, 4), 50, np.float32)
    weights = {
        "grid": grid,
        "one.weight": np.ones((2, 1, 1, 1), np.float32),
        "two.weight": np.ones((1, 3, 1, 1), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["images", "one.weight"], ["one"], "one"),
        helper.make_node("Concat", ["one", "grid"], ["joined"], "joined", axis=1),
        helper.make_node("Conv", ["joined", "two.weight"], ["output0"], "two"),
    ]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in ("images", "output0")]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "grid", shapes[:1], shapes[1:], constants)
    collector = kind(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), device="cpu")
    collector.add(np.full((1, 1, 4, 4), -2, np.float32))
    assert collector.ranges() == {"images": (-2, -2), "one": (-2, -2), "joined": (-2, 50)}


def test_a_tensor_with_a_shape_that_depends_on_the_image() -> None:
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
    inputs = np.zeros((3, 1, 4, 4), np.float32)
    for index, count in enumerate((2, 9, 5)):
        inputs[index].reshape(-1)[:count] = 1
    histograms = HistogramCollector(proto, device="cpu", tensors=["map"])
    for one in inputs:
        histograms.add(one[None])
    stats = histograms.stats()["map"]
    assert stats.histogram is not None
    # Four coordinates of each bright pixel; the ninth pixel is in row 2.
    assert stats.histogram.total == 4 * (2 + 9 + 5)
    assert (stats.low, stats.high) == (0.0, 3.0)

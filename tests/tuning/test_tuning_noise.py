"""Measuring noise on no more images than it needs, against all of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from detector_graph import CLASSES, detector

from trtkit.calibration.collector import MinMaxCollector
from trtkit.calibration.sampling import ImageInputs, make_input_source
from trtkit.models.model import Preprocess
from trtkit.progress import Event, Reporter
from trtkit.tuning.noise import FIRST_IMAGES, NOISE_ERROR, LayerNoise, MeasuredNoise
from trtkit.tuning.partial_inference import Variant

IMAGES = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ImageInputs:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(5)
    paths = [folder / f"{number:02}.png" for number in range(IMAGES)]
    for path in paths:
        # Contrast differs from image to image, as that of photographs does.
        values = 128 + rng.uniform(-1, 1, (32, 32, 3)) * rng.uniform(4, 127)
        cv2.imwrite(str(path), values.astype(np.uint8))
    return make_input_source(paths, preprocess=Preprocess(), imgsz=(32, 32))


@pytest.fixture(scope="module")
def layer_noise() -> LayerNoise:
    return LayerNoise(detector(batch=1), CLASSES)


@pytest.fixture(scope="module")
def variants(layer_noise: LayerNoise, inputs: ImageInputs) -> dict[str, Variant]:
    extremes = MinMaxCollector(detector(), device="cpu")
    for image in inputs():
        extremes.add(image)
    ranges = extremes.ranges()
    placements = {"int8": layer_noise.full_int8}
    for name in layer_noise.full_int8.layers:
        placements[f"only {name}"] = layer_noise.plan_only([name])
        placements[f"without {name}"] = layer_noise.plan_without([name])
    return {label: layer_noise.prepare_variant(one, ranges) for label, one in placements.items()}


@pytest.fixture(scope="module")
def all_images(layer_noise: LayerNoise, variants: dict[str, Variant], inputs: ImageInputs) -> dict[str, float]:
    return layer_noise.measure_sqnr(variants, inputs, IMAGES, stage="", reporter=Reporter())


def measure(layer_noise: LayerNoise, variants: dict[str, Variant], inputs: ImageInputs) -> MeasuredNoise:
    return layer_noise.measure_until_known(variants, inputs, reference="int8", stage="", reporter=Reporter())


def test_noise_is_known_to_the_stated_error(
    layer_noise: LayerNoise, variants: dict[str, Variant], inputs: ImageInputs, all_images: dict[str, float]
) -> None:
    measured = measure(layer_noise, variants, inputs)
    early = {label for label, count in measured.image_counts.items() if count < IMAGES}
    assert 0 < len(early) < len(variants)
    assert set(measured.image_counts.values()) <= {FIRST_IMAGES, 2 * FIRST_IMAGES, 4 * FIRST_IMAGES, IMAGES}
    for label, value in all_images.items():
        if label in early:
            # The noise as a share of that of full INT8.
            shares = [10 ** ((all_images["int8"] - sqnr) / 10) for sqnr in (value, measured.sqnr[label])]
            assert shares[1] == pytest.approx(shares[0], abs=NOISE_ERROR)
            assert measured.sqnr[label] != value
        else:
            assert measured.sqnr[label] == value
    assert "int8" not in early


def test_few_images_are_all_used(
    layer_noise: LayerNoise, variants: dict[str, Variant], inputs: ImageInputs, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    few = make_input_source((damaged, *inputs.paths[:3]), preprocess=inputs.preprocess, imgsz=inputs.imgsz)
    events: list[Event] = []
    measured = layer_noise.measure_until_known(
        variants, few, reference="int8", stage="measure", reporter=Reporter(events.append)
    )
    assert few.skipped == [str(damaged)]
    assert set(measured.image_counts.values()) == {3}
    assert measured.sqnr == layer_noise.measure_sqnr(variants, few, 4, stage="", reporter=Reporter())
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert {event.total for event in events} == {4}


def test_a_variant_without_noise_keeps_its_limit(
    layer_noise: LayerNoise, variants: dict[str, Variant], inputs: ImageInputs
) -> None:
    measured = measure(layer_noise, {"int8": variants["int8"], "float": layer_noise.float_variant}, inputs)
    assert measured.sqnr["float"] == 200.0
    assert measured.image_counts == {"int8": IMAGES, "float": FIRST_IMAGES}

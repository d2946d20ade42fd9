"""Images that look unlike the model's domain: the FP32 model detects hardly anything in them."""

from __future__ import annotations

import shutil
import warnings

import cv2
import numpy as np
import pytest
import task_models

import trtkit as tk
from trtkit import demo
from trtkit.calibration.dataset_checks import MIN_DETECTION_SHARE, MIN_DOMAIN_IMAGES, check_domain
from trtkit.calibration.diagnosis import find_foreign_images
from trtkit.progress import Reporter


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A folder of images of noise."""
    folder = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    for number in range(MIN_DOMAIN_IMAGES):
        cv2.imwrite(str(folder / f"{number}.png"), generator.integers(0, 256, (120, 160, 3), np.uint8))
    return folder


def codes(diagnosis):
    return {finding.code for finding in diagnosis.findings}


@pytest.mark.parametrize("count", [MIN_DOMAIN_IMAGES, 32])
def test_threshold(count):
    enough = round(MIN_DETECTION_SHARE * count)
    assert not check_domain([3] * enough + [0] * (count - enough), 0.25)
    (finding,) = check_domain([3] * (enough - 1) + [0] * (count - enough + 1), 0.25)
    assert (finding.severity, finding.code) == ("warning", "unlike-domain")
    assert f"{enough - 1} of {count}" in finding.evidence


def test_few_images_are_no_evidence():
    assert not check_domain([0] * (MIN_DOMAIN_IMAGES - 1), 0.25)


@pytest.fixture(scope="module")
def detector():
    """The embedded detector at a small size."""
    return tk.load(demo.model_path(), imgsz=320)


def test_doctor(detector, noise):
    assert "unlike-domain" in codes(tk.examine(noise, model=detector))
    # Without a model there is nothing to count.
    assert "unlike-domain" not in codes(tk.examine(noise))
    diagnosis = tk.examine(demo.data_path(), model=detector, against=None, calibration_images=12)
    assert "unlike-domain" not in codes(diagnosis)
    assert diagnosis.provenance.model_hash == detector.hash


def test_calibrate_warns_in_one_sentence_and_keeps_it(detector, noise):
    with pytest.warns(UserWarning, match="only 0 of 8 images") as caught:
        calibration = tk.calibrate(detector, noise, algorithm="minmax", imgsz=128)
    sentences = [str(one.message) for one in caught if "images" in str(one.message)]
    assert len(sentences) == 1
    assert calibration.notes == (sentences[0],)


def test_no_false_alarm_for_the_embedded_models(detector):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for model, task in ((detector, "detect"), (demo.model_path("classify"), "classify")):
            calibration = tk.calibrate(model, demo.data_path(task), algorithm="minmax", calibration_images=10)
            assert calibration.notes == ()


def test_labeled_images_without_objects_do_not_count(tmp_path):
    """Empty images may be a part of the domain: those with objects decide."""
    dataset = tk.data.open_dataset(task_models.drawn_set(tmp_path, "detect", count=12), task="detect")
    images, labels = dataset.images("train"), tmp_path / "labels" / "train"
    model = task_models.untrained("detect")
    silent = task_models.untrained("detect")
    for branch in silent.module.head.cv3:
        branch[-1].bias.data.fill_(-20)
    (finding,) = find_foreign_images(silent, dataset, images, Reporter())
    assert finding.code == "unlike-domain"
    assert find_foreign_images(model, dataset, images, Reporter()) == []
    # Six images with objects are too few for a verdict; without any labels all twelve count.
    for image in images[6:]:
        (labels / f"{image.stem}.txt").write_text("")
    assert find_foreign_images(silent, dataset, images, Reporter()) == []
    shutil.rmtree(labels)
    assert len(find_foreign_images(silent, dataset, images, Reporter())) == 1


def test_tasks_without_detections_are_left_out(tmp_path):
    dataset = tk.data.open_dataset(task_models.drawn_set(tmp_path, "classify", count=12), task="classify")
    assert find_foreign_images(task_models.untrained("classify"), dataset, dataset.images("train"), Reporter()) == []

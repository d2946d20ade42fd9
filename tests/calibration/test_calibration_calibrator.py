from __future__ import annotations

import struct
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from detector_graph import detector
from onnx import numpy_helper

from trtkit import demo
from trtkit.calibration import ALGORITHMS, Calibration, calibrate
from trtkit.calibration.sampling import hash_preprocessing, sample_stratified
from trtkit.data import open_dataset, sample_images
from trtkit.errors import CalibrationError, CancelledError, ResultError
from trtkit.graph.qdq import insert_qdq
from trtkit.models import Model, load
from trtkit.progress import Event


def model(proto: onnx.ModelProto | None = None) -> Model:
    return load(proto or detector(), task="detect", names=["a", "b", "c"], imgsz=32)


def measured(**settings: object) -> Calibration:
    return calibrate(model(), demo.data_path(), **{"calibration_images": 6, "device": "cpu", "algorithm": "minmax", **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole() -> Calibration:
    return measured(histograms=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_algorithm_needs_no_second_pass(whole: Calibration, algorithm: str) -> None:
    anew, read = measured(algorithm=algorithm), whole.with_algorithm(algorithm)
    assert anew.algorithm == read.algorithm == algorithm
    assert anew.ranges == read.ranges
    assert anew.hash == read.hash
    assert anew.percentile == read.percentile == (99.999 if algorithm == "percentile" else None)
    # No algorithm reaches beyond what was seen.
    for name, (low, high) in read.ranges.items():
        lowest, highest = whole.ranges[name]
        assert lowest <= low <= high <= highest
    insert_qdq(detector(), read.ranges)


def test_percentiles_differ_and_are_ordered(whole: Calibration) -> None:
    reach = [whole.with_algorithm("percentile", percentile=p).ranges["stem/silu"][1] for p in (90, 99, 99.9, 100)]
    assert reach == sorted(set(reach))
    assert reach[-1] == whole.ranges["stem/silu"][1]
    table = whole.compare_algorithms(percentiles=(90, 99))
    assert table.columns == ["tensor", "minmax", "moving_average", "entropy", "percentile 90", "percentile 99", "mse"]
    assert (table["percentile 90"] <= table["minmax"]).all()


def test_ranges_do_not_depend_on_the_batch() -> None:
    one, other = measured(batch=1, algorithm="mse"), measured(batch=5, algorithm="mse")
    assert one.ranges == other.ranges
    one, other = measured(batch=1), measured(batch=5)
    # The sums of another batch may differ in their last bits.
    np.testing.assert_allclose(list(one.ranges.values()), list(other.ranges.values()), rtol=2e-5)


def test_saved_and_loaded_whole(whole: Calibration, tmp_path: Path) -> None:
    loaded = Calibration.load(whole.save(tmp_path / "calibration"))
    assert loaded.ranges == whole.ranges
    assert loaded.hash == whole.hash
    assert loaded.provenance == whole.provenance
    for algorithm in ALGORITHMS:
        assert loaded.with_algorithm(algorithm).ranges == whole.with_algorithm(algorithm).ranges
    assert loaded.frame().equals(whole.frame())
    assert "histograms kept" in repr(loaded)


def test_a_changed_file_is_refused(whole: Calibration, tmp_path: Path) -> None:
    import polars as pl

    folder = whole.save(tmp_path / "calibration")
    path = folder / "calibration.ranges.parquet"
    pl.read_parquet(path).with_columns(high=pl.col("high") * 1.001).write_parquet(path)
    with pytest.raises(ResultError) as e:
        Calibration.load(folder)
    assert e.value.code == "result-table-changed"


def test_figures_show_what_is_there(whole: Calibration) -> None:
    assert len(whole.plot().data[0].x) == len(whole.ranges)
    figure = whole.plot_tensor("stem/silu")
    assert [note.text for note in figure.layout.annotations] == list(ALGORITHMS)
    assert sum(count or 0 for count in figure.data[0].y) == whole.histograms["stem/silu"].total
    with pytest.raises(CalibrationError) as e:
        whole.plot_tensor("nothing")
    assert e.value.code == "calibration-histogram-missing"


def test_what_is_at_odds_is_refused(whole: Calibration) -> None:
    for settings, found in (
        ({"algorithm": "best"}, "no such algorithm"),
        ({"percentile": 99.9}, "takes no percentile"),
        ({"algorithm": "percentile", "percentile": 101}, "not in"),
        ({"algorithm": "mse", "histograms": False}, "needs histograms"),
        ({"calibration_images": 0}, "nothing to measure"),
    ):
        with pytest.raises(CalibrationError, match=found):
            measured(**settings)
    fast = measured()
    assert not fast.histograms
    assert fast.with_algorithm("moving_average").ranges != fast.ranges
    with pytest.raises(CalibrationError, match="histograms=True"):
        fast.with_algorithm("entropy")
    with pytest.raises(CalibrationError, match="takes no percentile"):
        whole.with_algorithm("mse", percentile=99.0)


def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    stop = threading.Event()

    def watch(event: Event) -> None:
        if event.done >= 2:
            stop.set()

    with pytest.raises(CancelledError):
        measured(cache=tmp_path / "cache", progress=watch, cancel=stop)
    assert not (tmp_path / "cache").exists()


def test_unreadable_images_are_skipped_and_named(demo_copy: Path) -> None:
    broken = sorted((demo_copy.parent / "images" / "train").iterdir())[0]
    broken.write_bytes(b"\xff\xd8 cut")
    found = calibrate(model(), demo_copy, device="cpu")
    assert found.skipped == (str(broken),)
    assert found.images == len(open_dataset(demo_copy, task="detect").images("train")) - 1


# The cache.


def cached(data: Path, folder: Path, proto: onnx.ModelProto | None = None, **settings: object) -> Calibration:
    given = {"calibration_images": 6, "device": "cpu", "algorithm": "minmax", "cache": folder, **settings}
    return calibrate(model(proto), data, **given)  # type: ignore[arg-type]


def hit(calibration: Calibration, first: Calibration) -> bool:
    return calibration.provenance.created == first.provenance.created and calibration.notes == first.notes


@pytest.fixture
def filled(demo_copy: Path, tmp_path: Path) -> tuple[Path, Path, Calibration]:
    first = cached(demo_copy, tmp_path / "cache")
    assert first.notes == (f"not taken from the cache in {tmp_path / 'cache'}: the cache holds none yet",)
    return demo_copy, tmp_path / "cache", first


def test_the_cache_is_hit_when_all_is_the_same(filled: tuple[Path, Path, Calibration]) -> None:
    data, folder, first = filled
    events: list[Event] = []
    again = cached(data, folder, progress=events.append)
    assert again.ranges == first.ranges
    assert again.notes == first.notes
    assert any("taken from the cache" in event.message for event in events)
    assert len(events) == 1
    assert len(list(folder.iterdir())) == 1


def test_one_changed_weight_is_enough_to_refuse(filled: tuple[Path, Path, Calibration]) -> None:
    data, folder, first = filled
    proto = detector()
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "neck.weight")
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[17] = np.nextafter(values.reshape(-1)[17], np.float32(1))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    other = cached(data, folder, proto)
    assert not hit(other, first)
    assert "the model's weights" in other.notes[0]


def test_one_changed_image_is_enough_to_refuse(filled: tuple[Path, Path, Calibration]) -> None:
    data, folder, first = filled
    pool = open_dataset(data, task="detect").images("train")
    used = sample_images(pool, count=6)[3]
    image = cv2.imread(str(used))
    image[0, 0] ^= 1
    cv2.imwrite(str(used), image)
    other = cached(data, folder)
    assert not hit(other, first)
    assert "the images or labels" in other.notes[0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("algorithm", "moving_average"),
        ("seed", 1),
        ("calibration_images", 7),
        ("imgsz", 64),
        ("split", "val"),
        ("batch", 3),
        ("histograms", True),
        ("stratify", True),
        ("fraction", 0.99),
        ("percentile", 99.9),
    ],
)
def test_one_changed_setting_is_enough_to_refuse(
    filled: tuple[Path, Path, Calibration], setting: str, value: object
) -> None:
    data, folder, first = filled
    if setting == "percentile":
        first = cached(data, folder, algorithm="percentile")
        assert hit(cached(data, folder, algorithm="percentile"), first)
        other = cached(data, folder, algorithm="percentile", percentile=value)
    elif setting == "imgsz":
        proto = detector(side=64)
        other = calibrate(
            load(proto, task="detect", names=["a", "b", "c"], imgsz=64),
            data,
            calibration_images=6,
            device="cpu",
            cache=folder,
        )
    else:
        other = cached(data, folder, **{setting: value})
    assert other.provenance.created >= first.provenance.created
    assert setting in other.notes[0]


def test_one_changed_label_is_enough_to_refuse(filled: tuple[Path, Path, Calibration]) -> None:
    data, folder, first = filled
    used = sample_images(open_dataset(data, task="detect").images("train"), count=6)[3]
    label = Path(str(used).replace("/images/", "/labels/")).with_suffix(".txt")
    label.write_text(label.read_text().rsplit("\n", 2)[0] + "\n")
    other = cached(data, folder)
    assert not hit(other, first)
    assert "the images or labels" in other.notes[0]


@pytest.mark.parametrize("package", ["onnxruntime", "onnxslim", "torch", "trtkit"])
def test_another_version_is_refused(filled: tuple[Path, Path, Calibration], package: str) -> None:
    import dataclasses

    from trtkit.calibration.storage import CalibrationKey, find_calibration

    _, folder, first = filled
    newer = dataclasses.replace(first.provenance, versions={**first.provenance.versions, package: "99.0"})
    found, reason = find_calibration(folder, CalibrationKey.from_provenance(newer))
    assert found is None
    assert f"{package} ({first.provenance.versions[package]}, not 99.0)" in reason


def test_another_preprocessing_is_refused(
    filled: tuple[Path, Path, Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder, _ = filled
    before = hash_preprocessing("detect", (32, 32))
    monkeypatch.setattr(sys.modules["trtkit.data.images"], "PADDING", 0)
    assert hash_preprocessing("detect", (32, 32)) != before
    assert "preprocessing" in cached(data, folder).notes[0]


def test_a_tampered_entry_is_refused(filled: tuple[Path, Path, Calibration]) -> None:
    import polars as pl

    data, folder, _ = filled
    (path,) = folder.glob("*/calibration.ranges.parquet")
    pl.read_parquet(path).with_columns(high=pl.col("high") + 1).write_parquet(path)
    assert "can't be read" in cached(data, folder).notes[0]


# TensorRT's own cache.


def test_tensorrts_cache_by_hand(whole: Calibration, tmp_path: Path) -> None:
    text = whole.to_tensorrt_cache()
    lines = text.splitlines()
    assert lines[0] == "TRT-8600-MinMaxCalibration"
    name, digits = lines[1].split(": ")
    low, high = whole.ranges["images"]
    assert name == "images"
    assert bytes.fromhex(digits) == struct.pack(">f", max(-low, high) / 127)
    assert len(lines) == 1 + len(whole.ranges)
    assert whole.with_algorithm("entropy").to_tensorrt_cache("10016").startswith("TRT-10016-EntropyCalibration2\n")
    path = tmp_path / "model.cache"
    path.write_text(text)
    for source in (path, str(path), text):
        read = Calibration.from_tensorrt_cache(source, model())
        assert read.provenance.model_hash == whole.provenance.model_hash
        assert read.to_tensorrt_cache() == text
        one, other = insert_qdq(detector(), whole.ranges), insert_qdq(detector(), read.ranges)
        scales = [[t.raw_data for t in proto.graph.initializer] for proto in (one, other)]
        assert scales[0] == scales[1]
    with pytest.raises(CalibrationError, match="scales only"):
        read.with_algorithm("mse")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "it is empty"),
        ("scales: 3c010a14", "its first line is"),
        ("TRT-8600-MinMaxCalibration\nimages: 3c01", "line 2"),
        ("TRT-8600-MinMaxCalibration\nimages: 7f800000", "the scale inf"),
        ("TRT-8600-MinMaxCalibration\nimages: 3c010a14", "no scale for"),
    ],
)
def test_other_texts_are_refused(text: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "model.cache"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=found):
        Calibration.from_tensorrt_cache(path, model())


def test_stratified_samples_keep_shares_and_rare_classes(demo_copy: Path) -> None:
    dataset = open_dataset(demo_copy, task="detect")
    images = dataset.images("train")
    rare = dataset.labels(images[40]).classes[0]
    # Only one image shows the class that is made rare here.
    for index, path in enumerate(images):
        label = Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt")
        rows = [row for row in label.read_text().splitlines() if index == 40 or not row.startswith(f"{rare} ")]
        label.write_text("\n".join(rows))
    for seed in range(5):
        drawn = sample_stratified(dataset, images, count=16, seed=seed)
        assert len(set(drawn)) == 16
        assert images[40] in drawn
        assert list(drawn) == sorted(drawn, key=images.index)
        shown = {name for path in drawn for name in dataset.labels(path).classes.tolist()}
        assert shown == {name for path in images for name in dataset.labels(path).classes.tolist()}
        assert drawn == sample_stratified(dataset, images, count=16, seed=seed)
    assert sample_stratified(dataset, images, count=99) == images

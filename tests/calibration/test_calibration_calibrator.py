from __future__ import annotations

import dataclasses
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
from trtkit.calibration import ALGORITHMS, DEFAULTS, Calibration, calibrate, check_fits
from trtkit.calibration.sampling import hash_preprocessing, load_input_batches, sample_stratified
from trtkit.data import open_dataset, sample_images
from trtkit.errors import CalibrationError, CancelledError, RecipeError, ResultError
from trtkit.graph.qdq import insert_qdq
from trtkit.models import Model, Preprocess, load
from trtkit.progress import Event


def model(proto: onnx.ModelProto | None = None) -> Model:
    return load(proto or detector(), task="detect", names=["a", "b", "c"], imgsz=32)


def run_calibration(**settings: object) -> Calibration:
    return calibrate(
        model(), demo.data_path(), **{"calibration_images": 6, "device": "cpu", "algorithm": "minmax", **settings}
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return run_calibration(histograms=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_algorithm_needs_no_second_pass(calibration: Calibration, algorithm: str) -> None:
    measured, computed = run_calibration(algorithm=algorithm), calibration.with_algorithm(algorithm)
    assert measured.algorithm == computed.algorithm == algorithm
    assert measured.ranges == computed.ranges
    assert measured.hash == computed.hash
    assert measured.percentile == computed.percentile == (99.999 if algorithm == "percentile" else None)
    # No algorithm exceeds the measured extremes.
    for name, (low, high) in computed.ranges.items():
        lowest, highest = calibration.ranges[name]
        assert lowest <= low <= high <= highest
    insert_qdq(detector(), computed.ranges)


def test_percentiles_differ_and_are_ordered(calibration: Calibration) -> None:
    reach = [calibration.with_algorithm("percentile", percentile=p).ranges["stem/silu"][1] for p in (90, 99, 99.9, 100)]
    assert reach == sorted(set(reach))
    assert reach[-1] == calibration.ranges["stem/silu"][1]
    table = calibration.compare_algorithms(percentiles=(90, 99))
    assert table.columns == ["tensor", "minmax", "moving_average", "entropy", "percentile 90", "percentile 99", "mse"]
    assert (table["percentile 90"] <= table["minmax"]).all()


def test_ranges_do_not_depend_on_the_batch() -> None:
    one, other = run_calibration(batch=1, algorithm="mse"), run_calibration(batch=5, algorithm="mse")
    assert one.ranges == other.ranges
    one, other = run_calibration(batch=1), run_calibration(batch=5)
    # The sums of another batch may differ in their last bits.
    np.testing.assert_allclose(list(one.ranges.values()), list(other.ranges.values()), rtol=2e-5)


def test_save_and_load(calibration: Calibration, tmp_path: Path) -> None:
    loaded = Calibration.load(calibration.save(tmp_path / "calibration"))
    assert loaded.ranges == calibration.ranges
    assert loaded.hash == calibration.hash
    assert loaded.provenance == calibration.provenance
    for algorithm in ALGORITHMS:
        assert loaded.with_algorithm(algorithm).ranges == calibration.with_algorithm(algorithm).ranges
    assert loaded.frame().equals(calibration.frame())
    assert "histograms" in repr(loaded)


def test_a_changed_file_does_not_load(calibration: Calibration, tmp_path: Path) -> None:
    import polars as pl

    folder = calibration.save(tmp_path / "calibration")
    path = folder / "calibration.ranges.parquet"
    pl.read_parquet(path).with_columns(high=pl.col("high") * 1.001).write_parquet(path)
    with pytest.raises(ResultError) as error:
        Calibration.load(folder)
    assert error.value.code == "result-table-changed"


def test_the_hash_covers_bias_corrections(calibration: Calibration) -> None:
    corrected = dataclasses.replace(calibration, corrections={"head": (0.1, 0.2)})
    other = dataclasses.replace(calibration, corrections={"head": (0.1, 0.3)})
    assert len({calibration.hash, corrected.hash, other.hash}) == 3


def test_figures_show_ranges_and_algorithms(calibration: Calibration) -> None:
    assert len(calibration.plot().data[0].x) == len(calibration.ranges)
    figure = calibration.plot_tensor("stem/silu")
    assert [note.text for note in figure.layout.annotations] == list(ALGORITHMS)
    assert sum(count or 0 for count in figure.data[0].y) == calibration.histograms["stem/silu"].total
    with pytest.raises(CalibrationError) as error:
        calibration.plot_tensor("nothing")
    assert error.value.code == "calibration-histogram-missing"


def test_contradicting_settings(calibration: Calibration) -> None:
    for settings, code in (
        ({"algorithm": "best"}, "calibration-algorithm-unknown"),
        ({"percentile": 99.9}, "calibration-percentile-unused"),
        ({"algorithm": "percentile", "percentile": 101}, "argument-invalid"),
        ({"algorithm": "mse", "histograms": False}, "calibration-histograms-needed"),
    ):
        with pytest.raises((CalibrationError, RecipeError)) as error:
            run_calibration(**settings)
        assert error.value.code == code
    fast = run_calibration()
    assert not fast.histograms
    assert fast.with_algorithm("moving_average").ranges != fast.ranges
    with pytest.raises(CalibrationError) as error:
        fast.with_algorithm("entropy")
    assert error.value.code == "calibration-histogram-missing"
    with pytest.raises(CalibrationError) as error:
        calibration.with_algorithm("mse", percentile=99.0)
    assert error.value.code == "calibration-percentile-unused"


def test_the_defaults_are_those_of_every_verb() -> None:
    result = calibrate(model(), demo.data_path(), device="cpu")
    assert (result.algorithm, result.percentile) == (DEFAULTS.algorithm, DEFAULTS.percentile) == ("percentile", 99.999)
    settings = result.provenance.settings
    assert settings["calibration_images"] == DEFAULTS.calibration_images == 512
    assert (settings["fraction"], settings["batch"], result.provenance.seed) == (1.0, 2, 0)


def test_fraction_is_applied_before_the_number_of_images() -> None:
    pool = len(open_dataset(demo.data_path(), task="detect").images("train"))
    assert run_calibration(fraction=0.5, calibration_images=512).image_count == round(pool * 0.5)
    assert run_calibration(fraction=0.5, calibration_images=3).image_count == 3


def test_a_calibration_fits_its_model_only(calibration: Calibration) -> None:
    check_fits(calibration, model())
    proto = detector()
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "neck.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    with pytest.raises(CalibrationError) as error:
        check_fits(calibration, model(proto))
    assert error.value.code == "calibration-model-mismatch"
    assert error.value.fields["value"] == calibration.provenance.model_hash
    stretched = dataclasses.replace(model(), preprocess=dataclasses.replace(model().preprocess, kind="stretch"))
    with pytest.raises(CalibrationError) as error:
        check_fits(calibration, stretched)
    assert error.value.code == "calibration-preprocess-mismatch"


def test_the_model_s_input_and_output_are_recorded(calibration: Calibration, tmp_path: Path) -> None:
    loaded = Calibration.load(calibration.save(tmp_path / "calibration"))
    for one in (calibration, loaded):
        assert one.preprocess == model().preprocess
        assert one.output_format == model().output_format


def test_the_model_s_preprocessing_is_used(calibration: Calibration) -> None:
    halved = dataclasses.replace(model(), preprocess=dataclasses.replace(model().preprocess, scale=0.5 / 255))
    other = calibrate(halved, demo.data_path(), calibration_images=6, device="cpu", algorithm="minmax")
    assert other.ranges["images"][1] == pytest.approx(calibration.ranges["images"][1] / 2, rel=1e-6)
    assert other.preprocess == halved.preprocess
    key = "preprocessing"
    assert other.provenance.settings[key] != calibration.provenance.settings[key]


def test_saved_histograms_keep_their_signs(calibration: Calibration, tmp_path: Path) -> None:
    loaded = Calibration.load(calibration.save(tmp_path / "calibration"))
    for name, histogram in calibration.histograms.items():
        assert histogram.signed
        np.testing.assert_array_equal(loaded.histograms[name].signed_counts(), histogram.signed_counts())
    assert loaded.histograms["images"].negative is not None
    assert loaded.histograms["images"].negative.sum() == 0


def test_a_calibration_of_trtkit_0_1_0_loads() -> None:
    old = Calibration.load(Path(__file__).parent / "references" / "v1" / "calibration")
    assert (old.algorithm, old.image_count, old.split) == ("minmax", 2, "train")
    assert old.provenance.settings["calibration_images"] == 2
    assert (old.preprocess, old.output_format) == (None, None)
    assert list(old.histograms) == ["images", "stem", "stem/relu"]
    assert not any(histogram.signed for histogram in old.histograms.values())
    assert old.sources == {"joined": ("stem", "stem/relu")}
    # Ranges that trtkit 0.1.0 computed of this calibration.
    top = 2.7537243366241455
    for algorithm, (low, high) in {
        "minmax": (-1.210392951965332, top),
        "moving_average": (-0.9003213047981262, 1.9831818342208862),
        "entropy": (-1.210392951965332, 2.7099609375),
        "percentile": (-1.210392951965332, top),
        "mse": (-1.210392951965332, 2.728515625),
    }.items():
        assert old.with_algorithm(algorithm).ranges["stem"] == (low, high)
    assert old.with_algorithm("mse").hash.startswith("1024215a241fed4f")


def test_a_calibration_of_trtkit_0_1_0_is_saved_in_the_present_format(tmp_path: Path) -> None:
    old = Calibration.load(Path(__file__).parent / "references" / "v1" / "calibration")
    again = Calibration.load(old.save(tmp_path / "calibration"))
    assert again.hash == old.hash
    assert again.ranges == old.ranges
    assert not any(histogram.signed for histogram in again.histograms.values())


def test_cancelling_leaves_no_cache_entry(tmp_path: Path) -> None:
    stop = threading.Event()

    def watch(event: Event) -> None:
        if event.done >= 2:
            stop.set()

    with pytest.raises(CancelledError):
        run_calibration(cache_dir=tmp_path / "cache", progress=watch, cancel=stop)
    assert not (tmp_path / "cache").exists()


def test_unreadable_images_are_skipped(demo_copy: Path) -> None:
    broken = sorted((demo_copy.parent / "images" / "train").iterdir())[0]
    broken.write_bytes(b"\xff\xd8 cut")
    result = calibrate(model(), demo_copy, device="cpu")
    assert result.skipped == (str(broken),)
    assert result.image_count == len(open_dataset(demo_copy, task="detect").images("train")) - 1


# The cache.


def cached(data: Path, folder: Path, proto: onnx.ModelProto | None = None, **settings: object) -> Calibration:
    given = {"calibration_images": 6, "device": "cpu", "algorithm": "minmax", "cache_dir": folder, **settings}
    return calibrate(model(proto), data, **given)  # type: ignore[arg-type]


def hit(calibration: Calibration, first: Calibration) -> bool:
    return calibration.provenance.created == first.provenance.created and calibration.notes == first.notes


@pytest.fixture
def filled(demo_copy: Path, tmp_path: Path) -> tuple[Path, Path, Calibration]:
    first = cached(demo_copy, tmp_path / "cache")
    assert len(first.notes) == 1
    assert str(tmp_path / "cache") in first.notes[0]
    return demo_copy, tmp_path / "cache", first


def test_cache_hit(filled: tuple[Path, Path, Calibration]) -> None:
    data, folder, first = filled
    events: list[Event] = []
    again = cached(data, folder, progress=events.append)
    assert again.ranges == first.ranges
    assert again.notes == first.notes
    assert str(folder) in events[-1].message
    # No image is run.
    assert {event.total for event in events[:-1]} == {None}
    assert len(list(folder.iterdir())) == 1


def test_cache_miss_by_one_weight(filled: tuple[Path, Path, Calibration]) -> None:
    data, folder, first = filled
    proto = detector()
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "neck.weight")
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[17] = np.nextafter(values.reshape(-1)[17], np.float32(1))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    other = cached(data, folder, proto)
    assert not hit(other, first)
    assert "weights" in other.notes[0]


def test_cache_miss_by_one_image(filled: tuple[Path, Path, Calibration]) -> None:
    data, folder, first = filled
    pool = open_dataset(data, task="detect").images("train")
    used = sample_images(pool, count=6)[3]
    image = cv2.imread(str(used))
    image[0, 0] ^= 1
    cv2.imwrite(str(used), image)
    other = cached(data, folder)
    assert not hit(other, first)
    assert "labels" in other.notes[0]


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
        ("refine", "ranges"),
        ("fraction", 0.99),
        ("percentile", 99.9),
    ],
)
def test_cache_miss_by_one_setting(filled: tuple[Path, Path, Calibration], setting: str, value: object) -> None:
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
            cache_dir=folder,
        )
    else:
        other = cached(data, folder, **{setting: value})
    assert other.provenance.created >= first.provenance.created
    assert setting in other.notes[0]


def test_cache_miss_by_one_label(filled: tuple[Path, Path, Calibration]) -> None:
    data, folder, first = filled
    used = sample_images(open_dataset(data, task="detect").images("train"), count=6)[3]
    label = Path(str(used).replace("/images/", "/labels/")).with_suffix(".txt")
    label.write_text(label.read_text().rsplit("\n", 2)[0] + "\n")
    other = cached(data, folder)
    assert not hit(other, first)
    assert "labels" in other.notes[0]


@pytest.mark.parametrize("package", ["onnxruntime", "onnxslim", "torch", "trtkit"])
def test_cache_miss_by_version(filled: tuple[Path, Path, Calibration], package: str) -> None:
    from trtkit.calibration.storage import CalibrationKey, find_calibration

    _, folder, first = filled
    newer = dataclasses.replace(first.provenance, versions={**first.provenance.versions, package: "99.0"})
    cached, reason = find_calibration(folder, CalibrationKey.from_provenance(newer))
    assert cached is None
    assert package in reason
    assert "99.0" in reason


def test_cache_miss_by_preprocessing(filled: tuple[Path, Path, Calibration], monkeypatch: pytest.MonkeyPatch) -> None:
    data, folder, _ = filled
    before = hash_preprocessing(model().preprocess, (32, 32))
    monkeypatch.setattr(sys.modules["trtkit.data.images"], "PADDING", 0)
    assert hash_preprocessing(model().preprocess, (32, 32)) != before
    assert "preprocessing" in cached(data, folder).notes[0]


def test_a_changed_cache_entry_is_not_used(filled: tuple[Path, Path, Calibration]) -> None:
    import polars as pl

    data, folder, first = filled
    (path,) = folder.glob("*/calibration.ranges.parquet")
    pl.read_parquet(path).with_columns(high=pl.col("high") + 1).write_parquet(path)
    assert not hit(cached(data, folder), first)


# TensorRT's own cache.


def test_tensorrt_cache_text(calibration: Calibration, tmp_path: Path) -> None:
    text = calibration.to_tensorrt_cache()
    lines = text.splitlines()
    assert lines[0] == "TRT-8600-MinMaxCalibration"
    name, digits = lines[1].split(": ")
    low, high = calibration.ranges["images"]
    assert name == "images"
    assert bytes.fromhex(digits) == struct.pack(">f", max(-low, high) / 127)
    assert len(lines) == 1 + len(calibration.ranges)
    assert (
        calibration.with_algorithm("entropy").to_tensorrt_cache("10016").startswith("TRT-10016-EntropyCalibration2\n")
    )
    path = tmp_path / "model.cache"
    path.write_text(text)
    for source in (path, str(path), text):
        read = Calibration.from_tensorrt_cache(source, model())
        assert read.provenance.model_hash == calibration.provenance.model_hash
        assert read.to_tensorrt_cache() == text
        one, other = insert_qdq(detector(), calibration.ranges), insert_qdq(detector(), read.ranges)
        scales = [[t.raw_data for t in proto.graph.initializer] for proto in (one, other)]
        assert scales[0] == scales[1]
    with pytest.raises(CalibrationError) as error:
        read.with_algorithm("mse")
    assert error.value.code == "calibration-scales-only"


@pytest.mark.parametrize(
    ("digits", "version"), [("8600", "8.6.0"), ("8502", "8.5.2"), ("101302", "10.13.2"), ("100300", "10.3.0")]
)
def test_the_version_in_a_tensorrt_cache(calibration: Calibration, digits: str, version: str) -> None:
    read = Calibration.from_tensorrt_cache(calibration.to_tensorrt_cache(digits), model())
    assert read.provenance.runner == f"TensorRT {version}"


def test_a_tensorrt_cache_of_a_file_of_fixed_batch(calibration: Calibration) -> None:
    fixed = model(detector(batch=4))
    assert (
        Calibration.from_tensorrt_cache(calibration.to_tensorrt_cache(), fixed).ranges.keys()
        == calibration.ranges.keys()
    )


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("", "calibration-cache-header", 1),
        ("scales: 3c010a14", "calibration-cache-header", 1),
        ("TRT-8600-MinMaxCalibration\nimages: 3c01", "calibration-cache-line", 2),
        ("TRT-8600-MinMaxCalibration\nimages: 7f800000", "calibration-cache-scale", 2),
        ("TRT-8600-MinMaxCalibration\n: 3c010a14", "calibration-cache-scale", 2),
        ("TRT-8600-MinMaxCalibration\nimages: 3c010a14", "calibration-cache-tensor-missing", None),
    ],
)
def test_texts_that_are_no_tensorrt_cache(text: str, code: str, line: int | None, tmp_path: Path) -> None:
    path = tmp_path / "model.cache"
    path.write_text(text)
    with pytest.raises(CalibrationError) as error:
        Calibration.from_tensorrt_cache(path, model())
    assert error.value.code == code
    assert error.value.fields.get("line") == line


def test_stratified_samples_keep_rare_classes(demo_copy: Path) -> None:
    dataset = open_dataset(demo_copy, task="detect")
    images = dataset.images("train")
    rare = dataset.labels(images[40]).classes[0]
    # Only one image shows the class that is made rare here.
    for index, path in enumerate(images):
        label = Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt")
        rows = [row for row in label.read_text().splitlines() if index == 40 or not row.startswith(f"{rare} ")]
        label.write_text("\n".join(rows))
    for seed in range(5):
        sampled = sample_stratified(dataset, images, count=16, seed=seed)
        assert len(set(sampled)) == 16
        assert images[40] in sampled
        assert list(sampled) == sorted(sampled, key=images.index)
        classes = {name for path in sampled for name in dataset.labels(path).classes.tolist()}
        assert classes == {name for path in images for name in dataset.labels(path).classes.tolist()}
        assert sampled == sample_stratified(dataset, images, count=16, seed=seed)
    assert sample_stratified(dataset, images, count=99) == images


@pytest.mark.parametrize(("refill", "sizes"), [(True, [2, 2, 1]), (False, [1, 2, 2])])
def test_images_that_can_not_be_read_are_replaced_or_leave_their_batch_smaller(
    tmp_path: Path, refill: bool, sizes: list[int]
) -> None:
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), np.full((8, 8, 3), number, np.uint8))
    paths[1].write_bytes(b"no image")
    skipped: list[str] = []
    batches = list(
        load_input_batches(
            paths, preprocess=Preprocess(scale=1.0), size=(8, 8), batch=2, skipped=skipped, refill=refill
        )
    )
    assert [len(batch) for batch in batches] == sizes
    assert np.concatenate(batches)[:, 0, 0, 0].tolist() == [0, 2, 3, 4, 5]
    assert skipped == [str(paths[1])]

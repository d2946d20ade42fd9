from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from trtkit import demo
from trtkit.calibration.dataset_checks import check_object_sizes, measure_class_shift, measure_value_shift
from trtkit.calibration.diagnosis import Diagnosis, examine
from trtkit.calibration.image_hashes import ImageFingerprints, find_near_duplicates, fingerprint_images
from trtkit.data import open_dataset
from trtkit.errors import DataError
from trtkit.progress import Reporter


def random_image(random: np.random.Generator, shape: tuple[int, int] = (72, 96)) -> np.ndarray:
    """Soft random blobs with the brightness and contrast of a photograph; no two are similar."""
    coarse = random.normal(120 + random.normal(0, 12), 45, (6, 8, 3))
    return np.clip(cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def healthy_set(folder: Path, train: int = 120, val: int = 60) -> Path:
    random = np.random.default_rng(5)
    for split, count in (("train", train), ("val", val)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for index in range(count):
            shape = ((72, 96), (96, 72), (80, 88))[random.integers(3)]
            cv2.imwrite(str(folder / "images" / split / f"{index:04}.png"), random_image(random, shape))
            rows = []
            for _ in range(4):
                side = 10 ** random.uniform(-1.7, -0.4)
                rows.append(f"{random.integers(3)} 0.5 0.5 {side:.4f} {side:.4f}")
            (folder / "labels" / split / f"{index:04}.txt").write_text("\n".join(dict.fromkeys(rows)))
    data = folder / "data.yaml"
    data.write_text("path: .\ntrain: images/train\nval: images/val\nnames: [car, dog, tree]\n")
    return data


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return healthy_set(tmp_path_factory.mktemp("healthy"))


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine.parent, tmp_path / "set")
    return tmp_path / "set" / pristine.name


def codes(diagnosis: Diagnosis, least: str = "warning") -> set[str]:
    wanted = {"note": ("note", "warning", "problem"), "warning": ("warning", "problem"), "problem": ("problem",)}[least]
    return {finding.code for finding in diagnosis.findings if finding.severity in wanted}


def transform(data: Path, split: str, picks: slice, how: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in sorted((data.parent / "images" / split).iterdir())[picks]:
        cv2.imwrite(str(path), how(cv2.imread(str(path))))


def test_a_healthy_set_has_no_warnings(pristine: Path) -> None:
    for settings in (
        {},
        {"calibration_images": 80},
        {"calibration_images": 80, "stratify": True},
        {"fraction": 0.6, "seed": 3},
    ):
        diagnosis = examine(pristine, **settings)  # type: ignore[arg-type]
        assert diagnosis.healthy, diagnosis
        assert codes(diagnosis, "note") == {"few"}


def test_the_embedded_and_shared_sets_have_no_warnings(shared: Path) -> None:
    for data in (demo.data_path(), shared / "data" / "scenes" / "detect" / "data.yaml"):
        diagnosis = examine(data)
        assert diagnosis.healthy, diagnosis
        assert codes(diagnosis, "note") == {"few"}


def test_too_few(pristine: Path) -> None:
    diagnosis = examine(pristine, calibration_images=20)
    assert "few" in codes(diagnosis)
    (finding,) = (finding for finding in diagnosis.findings if finding.code == "few")
    assert finding.severity == "warning"
    assert "20 images" in finding.evidence


def test_unreadable_images(data: Path) -> None:
    (data.parent / "images" / "train" / "0003.png").write_bytes(b"\x89PNG no more")
    diagnosis = examine(data)
    assert codes(diagnosis) == {"unreadable"}
    assert diagnosis.findings[0].images[0].endswith("0003.png")


def test_duplicates(data: Path) -> None:
    folder = data.parent / "images" / "train"
    for index in range(3):
        shutil.copy(folder / f"000{index}.png", folder / f"copy{index}.png")
    (finding,) = (one for one in examine(data).findings if one.code == "duplicates")
    assert finding.severity == "warning"
    assert finding.evidence.startswith("3 images")
    assert {Path(path).name for path in finding.images} == {f"{s}{i}.png" for s in ("000", "copy") for i in range(3)}


@pytest.mark.parametrize(
    "how",
    [
        lambda image: cv2.resize(image, None, fx=0.8, fy=0.8),
        lambda image: np.clip(image.astype(int) + 12, 0, 255).astype(np.uint8),
        lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 1),
    ],
    ids=["smaller", "brighter", "compressed"],
)
def test_near_duplicates(data: Path, how: Callable[[np.ndarray], np.ndarray]) -> None:
    folder = data.parent / "images" / "train"
    for index in range(4):
        cv2.imwrite(str(folder / f"near{index}.png"), how(cv2.imread(str(folder / f"000{index}.png"))))
    diagnosis = examine(data)
    assert codes(diagnosis) == {"near-duplicates"}
    assert "4 pairs" in repr(diagnosis)


def test_a_missing_class(data: Path) -> None:
    for path in (data.parent / "labels" / "train").iterdir():
        path.write_text("\n".join(row for row in path.read_text().splitlines() if not row.startswith("2")))
    diagnosis = examine(data)
    assert {"classes-missing", "classes-shifted"} <= codes(diagnosis)
    assert "tree" in repr(diagnosis)


def test_classes_in_other_shares(data: Path) -> None:
    random = np.random.default_rng(0)
    for path in (data.parent / "labels" / "train").iterdir():
        rows = [("0" if random.random() < 0.8 else row[0]) + row[1:] for row in path.read_text().splitlines()]
        path.write_text("\n".join(rows))
    assert codes(examine(data)) == {"classes-shifted"}


def test_missing_sizes(data: Path) -> None:
    for path in (data.parent / "labels" / "train").iterdir():
        rows = [row for row in path.read_text().splitlines() if float(row.split()[3]) > 0.06]
        path.write_text("\n".join(rows))
    diagnosis = examine(data)
    assert "sizes-missing" in codes(diagnosis)
    assert "small" in repr(diagnosis)


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("drift-brightness", lambda image: (image * 0.6).astype(np.uint8)),
        ("drift-contrast", lambda image: ((image.astype(float) - image.mean()) * 0.55 + image.mean()).astype(np.uint8)),
        ("drift-aspect", lambda image: cv2.resize(image, (160, 72))),
    ],
)
def test_drift(data: Path, code: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    transform(data, "train", slice(None), how)
    assert code in codes(examine(data))


def test_leakage_of_the_same_and_of_nearly_the_same(data: Path) -> None:
    images = data.parent / "images"
    shutil.copy(images / "val" / "0000.png", images / "train" / "leak.png")
    diagnosis = examine(data)
    assert codes(diagnosis, "problem") == {"leakage"}
    assert diagnosis.findings[0].code == "leakage"
    assert diagnosis.findings[0].images == (str(images / "train" / "leak.png"),)
    small = cv2.resize(cv2.imread(str(images / "val" / "0000.png")), None, fx=0.9, fy=0.9)
    cv2.imwrite(str(images / "train" / "leak.png"), small)
    diagnosis = examine(data)
    assert codes(diagnosis) == {"leakage"}
    assert not codes(diagnosis, "problem")


def test_calibrating_on_validation_is_leakage(pristine: Path) -> None:
    assert codes(examine(pristine, split="val"), "problem") == {"leakage"}
    assert not codes(examine(pristine, split="val", against=None)) - {"few"}


def test_order_bias_of_the_first_n(data: Path) -> None:
    transform(data, "train", slice(0, 60), lambda image: (image * 0.6).astype(np.uint8))
    folder = data.parent / "images" / "train"
    sampled = examine(data, calibration_images=60, against=None)
    assert "order" in codes(sampled, "note")
    assert "order" not in codes(sampled)
    first = examine(data, image_paths=sorted(folder.iterdir())[:60], against=None)
    assert "order" in codes(first)


def test_a_folder_of_classes_sorted_by_class(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for split, count in (("train", 40), ("val", 20)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                cv2.imwrite(str(tmp_path / split / name / f"{index:03}.png"), random_image(random))
    first = sorted((tmp_path / "train").rglob("*.png"))[:40]
    assert {"order", "classes-missing"} <= codes(examine(tmp_path, task="classify", image_paths=first))
    assert examine(tmp_path, task="classify", calibration_images=70).healthy


def test_save_and_load(pristine: Path, tmp_path: Path) -> None:
    diagnosis = examine(pristine, calibration_images=20)
    loaded = Diagnosis.load(diagnosis.save(tmp_path / "diagnosis"))
    assert loaded.findings == diagnosis.findings
    assert loaded.images.equals(diagnosis.images)
    assert loaded.provenance.runner == "trtkit examine"
    assert loaded.frame().equals(diagnosis.frame())
    assert {trace.name for trace in loaded.plot().data} == {"calibration (20)", "validation (60)"}


def test_a_missing_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        examine(tmp_path / "nowhere.yaml")
    assert "nowhere" in str(error.value)


def test_shifts_against_known_distances() -> None:
    same = measure_value_shift(np.arange(100.0), np.arange(100.0) + 0.5)
    assert same.distance == pytest.approx(0.01)
    assert same.p_value > 0.9
    apart = measure_value_shift(np.zeros(30), np.ones(20))
    assert (apart.distance, apart.p_value) == (1.0, 0.001)
    # Ties: three quarters of one group lie at or below 1, a quarter of the other.
    tied = measure_value_shift(np.array([1.0, 1, 1, 2]), np.array([1.0, 2, 2, 2]))
    assert tied.distance == pytest.approx(0.5)
    shares = measure_class_shift(np.tile([[3, 1]], (40, 1)), np.tile([[1, 3]], (40, 1)))
    assert shares.distance == pytest.approx(0.5)
    assert shares.p_value == pytest.approx(0.001)


def with_sizes(*sizes: float) -> ImageFingerprints:
    """One image with objects of these sizes."""
    return ImageFingerprints(
        paths=(Path("a.png"),),
        unreadable=(),
        content_hashes=("a",),
        brightness=np.zeros(1),
        contrast=np.zeros(1),
        aspect=np.ones(1),
        gradient_hashes=np.ones((1, 64), np.float32),
        thumbnails=np.zeros((1, 1024), np.float32),
        counts=np.array([[len(sizes)]]),
        sizes=np.array(sizes, np.float64),
        image_indices=np.zeros(len(sizes), np.int64),
    )


def test_object_sizes_that_a_few_objects_lack_by_chance() -> None:
    reference = with_sizes(*[0.01] * 40, *[0.5] * 60)
    assert check_object_sizes(with_sizes(*[0.5] * 3), reference) == []
    for own in (with_sizes(*[0.5] * 30), with_sizes()):
        (finding,) = check_object_sizes(own, reference)
        assert finding.code == "sizes-missing"
        assert "small objects are 0.0% against 40.0%" in finding.evidence
    assert check_object_sizes(with_sizes(*[0.01] * 5, *[0.5] * 25), reference) == []


def test_images_of_one_color_are_compared_by_it(tmp_path: Path) -> None:
    """Compression noise has no correlation; images of another gray level are no duplicates."""
    random = np.random.default_rng(0)
    paths = []
    for number, level in enumerate((120, 120, 90)):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), (level + (random.integers(0, 6, (96, 96, 3)) == 0)).astype(np.uint8))
    dataset = open_dataset([str(path) for path in paths], task="detect", needs_labels=False)
    fingerprints = fingerprint_images(paths, dataset, Reporter(), "read")
    assert find_near_duplicates(fingerprints) == [(0, 1)]

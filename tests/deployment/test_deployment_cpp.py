"""C++ folders: the compiled program finds what the package finds, and the check passes without the package."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import deploy_samples as samples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises

import trtkit.deployment
from trtkit.data.images import resize_to_input, to_input
from trtkit.deployment import deploy
from trtkit.errors import RecipeError
from trtkit.tasks import PostprocessSettings, get_task

FILES = Path(trtkit.deployment.__file__).parent / "files"

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"))),
    reason="CMake and a C++17 compiler are needed",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment of an engine that does not run here."""
    base = tmp_path_factory.mktemp("cpp")
    reference = samples.write_onnx(base)
    engine = samples.write_foreign_engine(base)
    return deploy(engine, "cpp", base / "folder", reference=reference, conf=0.3).folder


@pytest.fixture(scope="module")
def first_check(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_check(folder)


@pytest.fixture(scope="module")
def program(folder: Path, first_check: object) -> Path:
    return folder / "build" / "detect"


def run_check(folder: Path) -> subprocess.CompletedProcess[str]:
    # `-I`: neither the working folder nor PYTHONPATH, so that no trtkit is on the path but an installed one.
    command = f"import sys; sys.path.insert(0, {str(folder)!r}); import check; sys.exit(check.main())"
    # Without optimization it compiles in half the time.
    environment = {**os.environ, "CMAKE_BUILD_TYPE": "Debug"}
    return subprocess.run(
        [sys.executable, "-I", "-c", command], capture_output=True, text=True, cwd=folder, env=environment
    )


def write_pam(path: Path, image: np.ndarray) -> Path:
    height, width, channels = image.shape
    pixels = image[..., ::-1] if channels == 3 else image
    header = f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH {channels}\nMAXVAL 255\nENDHDR\n"
    path.write_bytes(header.encode() + np.ascontiguousarray(pixels).tobytes())
    return path


def run_program(program: Path, model: Path, images: list[np.ndarray], *options: str) -> list[dict]:
    paths = [str(write_pam(model / f"{number}.pam", image)) for number, image in enumerate(images)]
    command = [str(program), "--json", "--model", str(model), "--tensors", str(model), *options, *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("task", "kind"), samples.FORMATS, ids=samples.FORMAT_IDS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_same_detections_from_the_same_outputs(program, tmp_path_factory, task, kind, seed):
    rng = np.random.default_rng(seed)
    info = samples.make_info(task, output_format=kind)
    model = tmp_path_factory.mktemp("model")
    images = [rng.integers(0, 256, (*rng.integers(20, 300, 2), 3), np.uint8) for _ in range(2)]
    outputs = samples.make_outputs(rng, task, kind.name, len(images))
    (model / "model.json").write_text(json.dumps(samples.describe(info)))
    samples.write_tensors(model, outputs)
    found = run_program(program, model, images)

    transforms = [resize_to_input(image, samples.SIZE, info.preprocess)[1] for image in images]
    expected = get_task(task).postprocess(outputs, info, transforms, PostprocessSettings(**samples.LIMITS))
    for mine, theirs, image in zip(found, expected, images, strict=True):
        assert mine["classes"] == theirs.classes.tolist()
        np.testing.assert_array_equal(np.array(mine["scores"], np.float32), theirs.scores)
        np.testing.assert_allclose(np.reshape(mine["boxes"], (-1, 4)), theirs.boxes, atol=1e-3)
        if task == "pose":
            np.testing.assert_allclose(
                np.reshape(mine["keypoints"], theirs.keypoints.shape), theirs.keypoints, atol=1e-3
            )
        if task == "obb":
            np.testing.assert_allclose(np.reshape(mine["xywhr"], (-1, 5)), theirs.xywhr, atol=1e-3)
        if task == "segment":
            for index, runs in enumerate(mine["masks"]):
                mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(image.shape[1], image.shape[0]).T
                # Sums of products in another order: a logit of zero may change its sign.
                assert (mask != theirs.masks.full_resolution(index)).mean() < 1e-3


@pytest.mark.parametrize("kind", ["letterbox", "stretch", "center_crop"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3, 4]), is_square=st.booleans())
def test_the_same_input_from_the_same_image(program, tmp_path_factory, kind, seed, channels, is_square):
    rng = np.random.default_rng(seed)
    preprocess = samples.make_preprocess(kind, channels, seed)
    size = (96, 96) if is_square else samples.SIZE
    info = dataclasses.replace(samples.make_info("classify", preprocess=preprocess), imgsz=size)
    image = rng.integers(0, 256, (*rng.integers(2, 400, 2), channels), np.uint8)
    model = tmp_path_factory.mktemp("model")
    (model / "model.json").write_text(json.dumps(samples.describe(info)))
    probabilities = rng.uniform(0, 1, (1, samples.CLASSES)).astype(np.float32)
    samples.write_tensors(model, {"output0": probabilities})
    found = run_program(program, model, [image], "--input", str(model / "input.bin"))
    np.testing.assert_array_equal(np.array(found[0]["probabilities"], np.float32), probabilities[0])
    expected = to_input([resize_to_input(image, size, preprocess)[0]], preprocess)
    values = np.fromfile(model / "input.bin", np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(values, expected)


def test_crops_whose_remainder_is_odd(program, tmp_path):
    """Half a pixel goes to the even side, as Python rounds."""
    preprocess = samples.make_preprocess("center_crop", 3, 0)
    info = dataclasses.replace(samples.make_info("classify", preprocess=preprocess), imgsz=(96, 96))
    images = [
        np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8) for shape in ((97, 96), (96, 97), (99, 96))
    ]
    (tmp_path / "model.json").write_text(json.dumps(samples.describe(info)))
    samples.write_tensors(tmp_path, {"output0": np.zeros((len(images), samples.CLASSES), np.float32)})
    run_program(program, tmp_path, images, "--input", str(tmp_path / "input.bin"))
    expected = to_input([resize_to_input(image, (96, 96), preprocess)[0] for image in images], preprocess)
    values = np.fromfile(tmp_path / "input.bin", np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(values, expected)


def test_the_check_passes_and_says_that_the_engine_did_not_run(first_check):
    assert first_check.returncode == 0, first_check.stdout + first_check.stderr
    assert "TensorRT was not found" in first_check.stdout
    assert first_check.stdout.count("as expected") == 3


def test_the_check_fails_when_the_model_file_is_exchanged(folder, program, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("build"))
    (other / "model.engine").write_bytes((folder / "model.engine").read_bytes() + b"x")
    done = run_check(other)
    assert done.returncode == 1
    assert "SHA-256" in done.stdout


def test_damaged_files_end_in_one_sentence(program, tmp_path):
    for content in ("", "{", '{"task": "detect"', '{"task": "\\u00', "[" * 100_000, '{"task": 3}', "{}"):
        (tmp_path / "model.json").write_text(content)
        done = subprocess.run([str(program), "--model", str(tmp_path), "x.pam"], capture_output=True, text=True)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "JSON" in done.stderr or "model.json" in done.stderr


def test_masks_without_coefficients_end_in_one_sentence(program, tmp_path):
    model = samples.describe(samples.make_info("segment"))
    outputs = samples.make_outputs(np.random.default_rng(0), "segment", "dense", 1)
    for prototypes, words in (
        (np.ones((1, samples.EXTRA["segment"] + 1, 24, 32), np.float32), "mask coefficients"),
        (np.ones((1, 9), np.float32), "no mask prototypes"),
    ):
        (tmp_path / "model.json").write_text(json.dumps(model))
        samples.write_tensors(tmp_path, {**outputs, "output1": prototypes})
        path = write_pam(tmp_path / "0.pam", np.zeros((90, 90, 3), np.uint8))
        command = [str(program), "--json", "--model", str(tmp_path), "--tensors", str(tmp_path), str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert words in done.stderr


def test_the_threshold_is_exclusive_and_nan_is_none(program, tmp_path):
    """As in `yolo.py`."""
    conf = np.float32(samples.LIMITS["conf"])
    output = np.zeros((1, 4 + samples.CLASSES, 4), np.float32)
    output[0, :4] = [[10, 40, 70, 100], [20] * 4, [10] * 4, [10] * 4]
    output[0, 4] = [conf, np.nextafter(conf, np.float32(1)), np.nan, 0]
    (tmp_path / "model.json").write_text(json.dumps(samples.describe(samples.make_info("detect"))))
    samples.write_tensors(tmp_path, {"output0": output})
    (found,) = run_program(program, tmp_path, [np.zeros((96, 128, 3), np.uint8)])
    assert found["boxes"] == [[35, 15, 45, 25]]


def test_images_with_comments_in_their_headers(program, tmp_path):
    """As GIMP writes them."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    (tmp_path / "model.json").write_text(json.dumps(samples.describe(samples.make_info("classify"))))
    samples.write_tensors(tmp_path, {"output0": np.full((2, samples.CLASSES), 0.25, np.float32)})
    pixels = np.ascontiguousarray(image[..., ::-1]).tobytes()
    paths = [tmp_path / "0.ppm", tmp_path / "1.pam"]
    paths[0].write_bytes(b"P6\n# Created by GIMP version 2.10\n30 20 # columns, rows\n255\n" + pixels)
    header = b"P7\n# WIDTH 3\nWIDTH 30\nHEIGHT 20\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n"
    paths[1].write_bytes(header + pixels)
    options = ["--model", str(tmp_path), "--tensors", str(tmp_path), "--input", str(tmp_path / "input.bin")]
    done = subprocess.run([str(program), "--json", *options, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = np.fromfile(tmp_path / "input.bin", np.float32).reshape(2, 3, *samples.SIZE)
    preprocess = samples.make_info("classify").preprocess
    expected = to_input([resize_to_input(image, samples.SIZE, preprocess)[0]], preprocess)
    np.testing.assert_array_equal(values, np.repeat(expected, 2, 0))


LOCALE_PROGRAM = """
#include <clocale>
#include <iostream>
#include "yolo.hpp"
int main(int, char** arguments) {
  if (!std::setlocale(LC_ALL, "") || std::localeconv()->decimal_point[0] != ',') return 2;
  const yolo::Processor processor(arguments[1]);
  std::cout << processor.thresholds.conf << ' ' << processor.thresholds.iou;
}
"""


@pytest.mark.skipif(shutil.which("localedef") is None, reason="localedef is needed")
def test_numbers_are_read_in_any_locale(tmp_path):
    """GStreamer's and GTK's programs take the user's locale."""
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(made.stderr)
    (tmp_path / "main.cpp").write_text(LOCALE_PROGRAM)
    (tmp_path / "model.json").write_text(json.dumps(samples.describe(samples.make_info("detect"))))
    compiler = next(name for name in ("c++", "g++", "clang++") if shutil.which(name))
    command = [compiler, "-std=c++17", f"-I{FILES / 'cpp'}", str(tmp_path / "main.cpp"), "-o", str(tmp_path / "main")]
    subprocess.run(command, check=True)
    environment = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8"}
    command = [str(tmp_path / "main"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0.3 0.6"), done.stderr


def test_an_onnx_file_is_refused(tmp_path):
    with raises(RecipeError, "deploy-format-unsupported", value="onnx"):
        deploy(samples.write_onnx(tmp_path), "cpp", tmp_path / "folder")


# The program with TensorRT, compiled against headers that stand in for TensorRT's and CUDA's.


@pytest.fixture(scope="module")
def tensorrt_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tensorrt") / "detect"
    stub = Path(__file__).parent.parent / "support" / "tensorrt_stub"
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-DYOLO_TENSORRT", f"-I{stub}"]
    compiler = next(name for name in ("c++", "g++", "clang++") if shutil.which(name))
    done = subprocess.run([compiler, *options, str(FILES / "cpp" / "main.cpp"), "-o", str(path)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return path


def write_plan(model: Path, outputs: dict[str, np.ndarray], *, header: bytes, batch: int, kind: str = "float") -> None:
    lines = ["ftrt", f"images in {kind} - {batch} 3 {samples.SIZE[0]} {samples.SIZE[1]}"]
    for name, values in outputs.items():
        sizes = " ".join(map(str, (batch, *values.shape[1:])))
        lines.append(f"{name} out float {model / name}.bin {sizes}")
    (model / "model.engine").write_bytes(header + "\n".join(lines).encode())


@pytest.mark.parametrize(("batch", "dynamic"), [(2, False), (4, True)])
@pytest.mark.parametrize("header", [b"", (18).to_bytes(4, "little") + b'{"task": "detect"}'], ids=["plan", "header"])
def test_the_engine_runs_in_batches(tensorrt_program, tmp_path, header, batch, dynamic):
    rng = np.random.default_rng(3)
    info = samples.make_info("segment")
    model = samples.describe(info)
    model["input"] |= {"batch": batch, "dynamic": dynamic}
    (tmp_path / "model.json").write_text(json.dumps(model))
    # The fourth output is what a batch that was filled up with zeros gives.
    outputs = samples.make_outputs(rng, "segment", "dense", 4)
    samples.write_tensors(tmp_path, outputs)
    write_plan(tmp_path, outputs, header=header, batch=batch)
    images = [rng.integers(0, 256, (60, 90, 3), np.uint8) for _ in range(3)]
    paths = [str(write_pam(tmp_path / f"{number}.pam", image)) for number, image in enumerate(images)]
    command = [str(tensorrt_program), "--json", "--model", str(tmp_path)]
    done = subprocess.run([*command, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == run_program(tensorrt_program, tmp_path, images)


def test_what_tensorrt_refuses_ends_in_one_sentence(tensorrt_program, tmp_path):
    model = samples.describe(samples.make_info("detect"))
    (tmp_path / "model.json").write_text(json.dumps(model))
    write_pam(tmp_path / "0.pam", np.zeros((9, 9, 3), np.uint8))
    command = [str(tensorrt_program), "--model", str(tmp_path), str(tmp_path / "0.pam")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "model.engine can't be read" in done.stderr) == (1, True)
    (tmp_path / "model.engine").write_bytes(b"another release")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "the same compute capability" in done.stderr) == (1, True)
    write_plan(tmp_path, {}, header=b"", batch=1, kind="half")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "images is not float32" in done.stderr) == (1, True)
    write_plan(tmp_path, {}, header=b"", batch=0)
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "does not take this shape" in done.stderr) == (1, True)


def test_an_engine_with_a_runtime_of_its_own_runs_where_the_folder_says_so(tensorrt_program, tmp_path):
    outputs = samples.make_outputs(np.random.default_rng(0), "detect", "dense", 1)
    samples.write_tensors(tmp_path, outputs)
    write_plan(tmp_path, outputs, header=b"", batch=1)
    plan = (tmp_path / "model.engine").read_bytes()
    (tmp_path / "model.engine").write_bytes(plan.replace(b"ftrt", b"ftrt-with-runtime", 1))
    path = write_pam(tmp_path / "0.pam", np.zeros((9, 9, 3), np.uint8))
    for passport, code in ((None, 1), ({"compatibility": None}, 1), ({"compatibility": "version"}, 0)):
        model = {**samples.describe(samples.make_info("detect")), "passport": passport}
        (tmp_path / "model.json").write_text(json.dumps(model))
        done = subprocess.run([str(tensorrt_program), "--model", str(tmp_path), str(path)], capture_output=True)
        assert done.returncode == code

"""C++ folders: the compiled program finds what the package finds, and the check passes without the package."""

from __future__ import annotations

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
@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3, 4]))
def test_the_same_input_from_the_same_image(program, tmp_path_factory, kind, seed, channels):
    rng = np.random.default_rng(seed)
    preprocess = samples.make_preprocess(kind, channels, seed)
    info = samples.make_info("classify", preprocess=preprocess)
    image = rng.integers(0, 256, (*rng.integers(2, 400, 2), channels), np.uint8)
    model = tmp_path_factory.mktemp("model")
    (model / "model.json").write_text(json.dumps(samples.describe(info)))
    probabilities = rng.uniform(0, 1, (1, samples.CLASSES)).astype(np.float32)
    samples.write_tensors(model, {"output0": probabilities})
    found = run_program(program, model, [image], "--input", str(model / "input.bin"))
    np.testing.assert_array_equal(np.array(found[0]["probabilities"], np.float32), probabilities[0])
    expected = to_input([resize_to_input(image, samples.SIZE, preprocess)[0]], preprocess)
    values = np.fromfile(model / "input.bin", np.float32).reshape(expected.shape)
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
    (tmp_path / "model.engine").write_bytes(b"another release")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "the same compute capability" in done.stderr) == (1, True)
    write_plan(tmp_path, {}, header=b"", batch=1, kind="half")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "images is not float32" in done.stderr) == (1, True)
    write_plan(tmp_path, {}, header=b"", batch=0)
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "does not take this shape" in done.stderr) == (1, True)

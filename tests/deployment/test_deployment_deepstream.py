"""DeepStream folders: the compiled parser finds what the package finds; the configuration fits the model."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from types import ModuleType

import deploy_samples as samples
import numpy as np
import pytest
import tiny_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises

import trtkit as tk
from trtkit.data.images import resize_to_input
from trtkit.deployment.bundle import FILES, Bundle, TensorSpec
from trtkit.deployment.deepstream import find_mask_tolerance, render_config, render_labels, to_nvinfer
from trtkit.errors import RecipeError
from trtkit.models.model import CLASS_SCORES, ModelInfo, Preprocess
from trtkit.tasks import PostprocessSettings, get_task

needs_compiler = pytest.mark.skipif(
    not (shutil.which("make") and shutil.which("g++")), reason="make and g++ are needed to compile the parser"
)
# Without optimization it compiles in half the time.
FLAGS = "-O0 -Werror"


@pytest.fixture(scope="module")
def infer() -> ModuleType:
    """The folder's `infer.py`, beside its `yolo.py`."""
    yolo = read_program("yolo", FILES / "yolo.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yolo", yolo)
        return read_program("infer", FILES / "deepstream" / "infer.py")


def read_program(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("deepstream")
    return tk.deploy(samples.write_onnx(base), "deepstream", base / "folder", conf=0.3).folder


@pytest.fixture(scope="module")
def first_check(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_check(folder)


@pytest.fixture(scope="module")
def library(folder: Path, first_check: object) -> Path:
    """The folder that holds the compiled parser and the program that feeds it."""
    return folder


def run_check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = f"import sys; sys.modules['trtkit'] = None; sys.path.insert(0, {str(folder)!r}); import check; sys.exit(check.main())"  # noqa: E501
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"CXXFLAGS": FLAGS}
    return subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=folder, env=environment)


def write_model(library: Path, folder: Path, task: str, outputs: dict[str, np.ndarray], **values: object) -> None:
    """A folder whose parser reads its own `model.json`: the library looks beside itself."""
    for name in ("replay", "libreplay_yolo.so"):
        shutil.copy(library / name, folder / name)
    (folder / "model.json").write_text(json.dumps(samples.describe(samples.make_info(task, **values))))
    samples.write_tensors(folder / "tensors", outputs)


@needs_compiler
@pytest.mark.parametrize(("task", "kind"), samples.FORMATS, ids=samples.FORMAT_IDS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_parser_finds_the_same_objects(library, infer, tmp_path_factory, task, kind, seed):
    rng = np.random.default_rng(seed)
    info, model = samples.make_info(task, output_format=kind), tmp_path_factory.mktemp("model")
    outputs = samples.make_outputs(rng, task, kind.name, 2)
    write_model(library, model, task, outputs, output_format=kind)
    found = infer.parse(model / "replay", model, model / "tensors")

    images = [np.zeros((*rng.integers(20, 300, 2), 3), np.uint8) for _ in range(2)]
    transforms = [resize_to_input(image, samples.SIZE, info.preprocess)[1] for image in images]
    places = infer.Processor(model).preprocess(images)[1]
    expected = get_task(task).postprocess(outputs, info, transforms, PostprocessSettings(**samples.LIMITS))
    for objects, theirs, place in zip(found, expected, places, strict=True):
        mine = infer.to_detections(objects, place, task)
        assert mine["classes"].tolist() == theirs.classes.tolist()
        np.testing.assert_array_equal(mine["scores"], theirs.scores)
        np.testing.assert_allclose(mine["boxes"], theirs.boxes, atol=2e-3)
        if task == "pose":
            np.testing.assert_allclose(mine["keypoints"].reshape(theirs.keypoints.shape), theirs.keypoints, atol=2e-3)
        if task == "obb":
            np.testing.assert_allclose(mine["xywhr"], theirs.xywhr, atol=2e-3)
    if task == "segment":
        check_masks(found, outputs["output1"], outputs["output0"], kind.name, infer)


def check_masks(found, prototypes, main, kind, infer):
    """A mask's cell holds the sigmoid of the weighted prototypes at its center, interpolated."""
    for image, objects in enumerate(found):
        columns = 4 + samples.CLASSES if kind == "dense" else 6
        rows = main[image].T if kind == "dense" else main[image]
        scores = rows[:, 4 : 4 + samples.CLASSES].max(1) if kind == "dense" else rows[:, 4]
        for one in objects:
            coefficients = rows[np.abs(scores - np.float32(one["score"])).argmin(), columns:]
            logits = np.einsum("k,khw->hw", coefficients, prototypes[image])
            height, width = one["mask_shape"]
            left, top, box_width, box_height = one["box"]
            assert abs(height - np.clip(box_height, 1, logits.shape[0])) <= 0.5
            assert abs(width - np.clip(box_width, 1, logits.shape[1])) <= 0.5
            y = np.clip((top + (np.arange(height) + 0.5) * box_height / height) / 4 - 0.5, 0, logits.shape[0] - 1)
            x = np.clip((left + (np.arange(width) + 0.5) * box_width / width) / 4 - 0.5, 0, logits.shape[1] - 1)
            sampled = infer._resample(infer._resample(logits, y + 0.5).T, x + 0.5).T
            np.testing.assert_allclose(infer.read_mask(one), 1 / (1 + np.exp(-sampled)), atol=1e-4)


@needs_compiler
def test_the_check_passes_without_deepstream(first_check):
    assert first_check.returncode == 0, first_check.stdout + first_check.stderr
    assert first_check.stdout.count("as expected") == 3


@needs_compiler
def test_the_check_fails_when_the_model_file_is_exchanged(folder, library, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "model.onnx").write_bytes(tiny_graphs.detector(seed=1).SerializeToString())
    done = run_check(other)
    assert (done.returncode, "SHA-256" in done.stdout) == (1, True)


@needs_compiler
def test_other_expectations_fail(folder, library, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    expected = json.loads((other / "samples" / "expected.json").read_text())
    expected["images"][0]["boxes"][0][0] += 1
    (other / "samples" / "expected.json").write_text(json.dumps(expected))
    done = run_check(other)
    assert (done.returncode, "pixels off" in done.stdout) == (1, True)


@needs_compiler
def test_a_parser_that_does_not_fit_says_so(library, tmp_path):
    rng = np.random.default_rng(0)
    outputs = samples.make_outputs(rng, "detect", "dense", 1)
    write_model(library, tmp_path, "detect", {"other": outputs["output0"]})
    done = subprocess.run([tmp_path / "replay", tmp_path, tmp_path / "tensors"], capture_output=True, text=True)
    assert (done.returncode, "no output output0" in done.stderr) == (1, True)
    (tmp_path / "model.json").write_text("{")
    done = subprocess.run([tmp_path / "replay", tmp_path, tmp_path / "tensors"], capture_output=True, text=True)
    assert (done.returncode, "JSON" in done.stderr) == (1, True)


THRESHOLDS_PROGRAM = """
#include "nvdsinfer_custom_impl.h"
#include "report.hpp"
extern "C" bool NvDsInferParseYolo(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&,
                                   NvDsInferParseDetectionParams const&, std::vector<NvDsInferObjectDetectionInfo>&);
// FOLDER, the number of configured classes, and the threshold of each.
int main(int count, char** arguments) {
  const std::string folder = arguments[1];
  const yolo::StoredTensors tensors(folder + "/tensors");
  const yolo::Tensor tensor = tensors.get("output0", 0);
  NvDsInferLayerInfo layer{};
  layer.dataType = FLOAT;
  layer.layerName = "output0";
  layer.buffer = const_cast<float*>(tensor.data);
  layer.inferDims.numDims = 2;
  for (int axis = 0; axis < 2; ++axis) layer.inferDims.d[axis] = static_cast<unsigned int>(tensor.shape[axis]);
  std::vector<float> least;
  for (int index = 3; index < count; ++index) least.push_back(std::stof(arguments[index]));
  const yolo::Processor model(folder);
  std::vector<NvDsInferObjectDetectionInfo> objects;
  const NvDsInferParseDetectionParams parameters{static_cast<unsigned int>(std::stoi(arguments[2])), least, least};
  if (!NvDsInferParseYolo({layer}, {unsigned(model.width), unsigned(model.height), 3}, parameters, objects)) return 1;
  for (const auto& one : objects) std::cout << one.classId << ' ';
}
"""


@needs_compiler
def test_each_class_has_its_threshold(library, tmp_path):
    """`[class-attrs-N]` of a configuration; classes beyond `num-detected-classes` are no objects."""
    output = np.zeros((1, 4 + samples.CLASSES, 4), np.float32)
    output[0, :4] = [[10, 40, 70, 100], [20] * 4, [10] * 4, [10] * 4]
    output[0, 4:] = np.diag([0.9, 0.8, 0.7, 0.6])
    write_model(library, tmp_path, "detect", {"output0": output})
    (tmp_path / "main.cpp").write_text(THRESHOLDS_PROGRAM)
    includes = [f"-I{library / 'stub'}", f"-I{library}"]
    options = ["-std=c++17", "-DSTUB_DEEPSTREAM_9", *includes, "-L.", "-lreplay_yolo", "-Wl,-rpath,$ORIGIN"]
    subprocess.run(["g++", "main.cpp", "-o", "main", *options], cwd=tmp_path, check=True)
    for configured, least, expected in (
        (4, (0.5, 0.5, 0.5, 0.5), "0 1 2 3 "),
        (4, (0.5, 0.85, 0.5, 0.65), "0 2 "),
        (2, (0.5, 0.5, 0.5, 0.5), "0 1 "),
        (4, (0.95, 0.5), "1 2 3 "),
        (4, (), "0 1 2 3 "),
    ):
        command = ["./main", ".", str(configured), *map(str, least)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, expected), done.stderr


@needs_compiler
def test_the_library_compiles_for_releases_without_rotation(folder, tmp_path):
    """DeepStream before 9.0 has no `rotation_angle`."""
    headers = tmp_path / "sources" / "includes"
    shutil.copytree(folder / "stub", headers)
    command = ["make", "-B", "libnvdsinfer_yolo.so", f"DEEPSTREAM={tmp_path}", f"CXXFLAGS={FLAGS} -fsyntax-only"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The configuration


def make_bundle(task: str = "detect", *, format: str = "onnx", precision: str = "fp32", **values: object) -> Bundle:
    info = samples.make_info(task, **values)
    return Bundle(
        path=Path("model.onnx"),
        format=format,
        info=info,
        precision=precision,
        batch=4,
        imgsz=samples.SIZE,
        dynamic=True,
        inputs=(TensorSpec(name="images", dtype="float32", shape=(-1, info.channels, -1, -1)),),
        outputs=(TensorSpec(name="output0", dtype="float32", shape=(-1, 8, -1)),),
        passport=None,
        model_hash="",
        thresholds=samples.LIMITS,
        images=(),
        expected=(),
        sample_input=np.zeros(0, np.float32),
        sample_outputs={},
    )


def read_config(bundle: Bundle) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read_string(render_config(bundle))
    return parser


@pytest.mark.parametrize(
    ("task", "kind", "function"),
    [
        ("detect", "0", "bbox-func-name=NvDsInferParseYolo"),
        ("obb", "0", "bbox-func-name=NvDsInferParseYolo"),
        ("segment", "3", "bbox-instance-mask-func-name=NvDsInferParseYoloMask"),
        ("pose", "3", "bbox-instance-mask-func-name=NvDsInferParseYoloMask"),
    ],
)
def test_each_task_has_its_parser(task, kind, function):
    settings_ = read_config(make_bundle(task))
    properties = settings_["property"]
    name, value = function.split("=")
    assert properties["network-type"] == kind
    assert properties[f"parse-{name}"] == value
    assert properties["cluster-mode"] == "4"
    assert properties["num-detected-classes"] == str(samples.CLASSES)
    assert properties["infer-dims"] == "3;96;128"
    assert properties["batch-size"] == "4"
    assert properties["maintain-aspect-ratio"] == properties["symmetric-padding"] == "1"
    assert float(settings_["class-attrs-all"]["pre-cluster-threshold"]) == samples.LIMITS["conf"]


def test_deepstream_reads_class_probabilities_by_itself():
    properties = read_config(make_bundle("classify", output_format=CLASS_SCORES))["property"]
    assert properties["network-type"] == "1"
    assert "custom-lib-path" not in properties
    assert properties["maintain-aspect-ratio"] == "0"


@pytest.mark.parametrize(("task", "text"), [("detect", "cat; wild\nbig dog\n\n"), ("classify", "cat, wild;big dog;\n")])
def test_a_class_has_one_label_whatever_it_is_called(task, text):
    assert render_labels(ModelInfo(task=task, names={0: "cat; wild", 1: "big\ndog", 2: ""})) == text


@pytest.mark.parametrize(
    ("format", "precision", "source", "mode"),
    [
        ("onnx", "fp32", "onnx-file=model.onnx", "0"),
        ("onnx", "fp16", "onnx-file=model.onnx", "2"),
        # Gst-nvinfer builds FP16 from Q/DQ.
        ("onnx", "int8", "model-engine-file=model.plan", "1"),
        ("engine", "fp16", "model-engine-file=model.plan", "2"),
    ],
)
def test_the_model_file_that_gst_nvinfer_can_use(format, precision, source, mode):
    properties = read_config(make_bundle(format=format, precision=precision))["property"]
    name, value = source.split("=")
    assert properties[name] == value
    assert ("onnx-file" in properties) + ("model-engine-file" in properties) == 1
    assert properties["network-mode"] == mode


@given(
    scale=st.sampled_from([1 / 255, 1.0, 0.5]),
    mean=st.sampled_from([(), (0.4, 0.5, 0.6)]),
    std=st.sampled_from([(), (0.25, 0.25, 0.25)]),
    pixel=st.integers(0, 255),
)
def test_the_factor_and_offsets_give_the_models_input(scale, mean, std, pixel):
    factor, offsets = to_nvinfer(Preprocess(scale=scale, mean=mean, std=std))
    for channel in range(3):
        wanted = (pixel * scale - (mean[channel] if mean else 0)) / (std[channel] if std else 1)
        assert factor * (pixel - (offsets[channel] if offsets else 0)) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("preprocess", [Preprocess(channels=4), Preprocess(std=(0.1, 0.2, 0.3))])
def test_preprocessing_that_gst_nvinfer_lacks_is_refused(preprocess):
    with raises(RecipeError, "deploy-preprocess-unsupported"):
        to_nvinfer(preprocess)


def test_a_folder_of_an_engine_holds_the_bare_plan(tmp_path, infer):
    engine = samples.write_foreign_engine(tmp_path)
    reference = samples.write_onnx(tmp_path)
    folder = tk.deploy(engine, "deepstream", tmp_path / "out", reference=reference).folder
    plan = (folder / "model.plan").read_bytes()
    assert (folder / "model.engine").read_bytes().endswith(plan)
    assert plan.startswith(b"ftrt")
    assert (folder / "labels.txt").read_text().splitlines() == list(tiny_graphs.NAMES.values())
    infer.check_plan(folder)
    (folder / "model.plan").write_bytes(plan + b"x")
    with pytest.raises(SystemExit, match="not the plan"):
        infer.check_plan(folder)


@pytest.mark.parametrize(
    ("side", "shape", "expected"),
    [
        (160, (320, 320), 0.05),
        # Its cells are 2 pixels of the image, and its edge of 1 pixel is 76 of 400.
        (20, (640, 640), (1 - 18**2 / 20**2) / 2),
        # At most 80 cells for 400 pixels: 5 pixels each, an edge of 2.
        (400, (320, 320), 0.05),
        (2, (640, 640), 0.3),
        (0, (320, 320), 0.05),
    ],
)
def test_a_mask_may_differ_by_half_a_cell_at_its_edge(side, shape, expected):
    mask = np.zeros((640, 640), bool)
    mask[50 : 50 + side, 50 : 50 + side] = True
    masks = types.SimpleNamespace(full_resolution=lambda index: mask)
    boxes = np.array([[50, 50, 50 + side, 50 + side]], np.float32)
    bundle = types.SimpleNamespace(
        imgsz=(320, 320),
        images=[np.zeros((*shape, 3), np.uint8)],
        expected=[types.SimpleNamespace(boxes=boxes[: bool(side)], masks=masks)],
        sample_outputs={"output0": np.zeros((1, 8, 10)), "output1": np.zeros((1, 32, 80, 80))},
    )
    assert find_mask_tolerance(bundle) == pytest.approx(expected)
    bundle.expected = [types.SimpleNamespace(boxes=boxes)]
    assert find_mask_tolerance(bundle) == 0.05

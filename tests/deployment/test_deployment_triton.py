"""Model repositories of Triton: what a client that sends images gets, on a fake server, and the configurations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_triton
import numpy as np
import onnx
import pytest
import tiny_graphs
from onnx import numpy_helper
from raising import raises

import trtkit as tk
from trtkit.backends import wrap_engine
from trtkit.backends.engine_file import Passport
from trtkit.deployment.triton import Symbol, render_config
from trtkit.errors import OnnxError, RecipeError
from trtkit.files import hash_file, hash_parts
from trtkit.graph.onnx_file import update_metadata
from trtkit.models import Preprocess


@pytest.fixture(scope="module")
def serving(files: Any, samples: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One repository of ten models."""
    output = tmp_path_factory.mktemp("triton") / "serving"
    return tk.deploy(list(files.values()), "triton", output, conf=0.01, max_det=30, samples=samples).folder


@pytest.fixture(scope="module")
def server(serving: Path) -> fake_triton.Server:
    return fake_triton.Server(serving / "models")


@pytest.fixture
def programs(
    serving: Path, server: fake_triton.Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder of the pose model, and its `check` and `infer` with a server at their address."""
    fake_triton.install(monkeypatch, {"localhost:8001": server})
    monkeypatch.delenv("TRITON_URL", raising=False)
    for modules in fake_triton.fresh_modules(serving / "pose", "yolo", "infer", "check"):
        yield serving / "pose", modules


def test_images_in_and_boxes_out_for_every_task(
    programs: Any, serving: Path, server: fake_triton.Server, files: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, modules = programs
    server.requests.clear()
    for path in files.values():
        folder = serving / path.stem
        assert modules["check"].check_file(folder) is None
        assert modules["check"].check(modules["infer"].open_predictor(folder), folder) == 0, capsys.readouterr().out
        assert capsys.readouterr().out.count("as expected") == 3
    assert set(server.requests) == {f"{path.stem}_images" for path in files.values()}


def test_another_model_file_in_the_repository_is_named(programs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, modules = programs
    path = folder.parent / "models" / "pose" / "1" / "model.onnx"
    data = path.read_bytes()
    try:
        path.write_bytes(data[:-1])
        assert modules["check"].main() == 1
        assert "is not the file" in capsys.readouterr().out
    finally:
        path.write_bytes(data)


def test_a_client_says_what_is_wrong_with_the_server(
    programs: Any, server: fake_triton.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, modules = programs
    with pytest.raises(SystemExit, match="no Triton server answers at nowhere:1"):
        modules["infer"].open_predictor(folder, "nowhere:1")
    predict = modules["infer"].open_predictor(folder)
    monkeypatch.setattr(server, "refuses", fake_triton.InferenceServerException("Exceeds maximum queue size"))
    with pytest.raises(SystemExit, match="pose_images at localhost:8001 did not answer: Exceeds maximum queue size"):
        predict([modules["yolo"].read_image(folder / "samples" / "1.png")])
    monkeypatch.delitem(server.configs, "pose_images")
    with pytest.raises(SystemExit, match="does not serve pose_images"):
        modules["infer"].open_predictor(folder)


def test_what_is_no_image_is_refused_by_the_server(server: fake_triton.Server) -> None:
    with pytest.raises(fake_triton.InferenceServerException, match="not an image"):
        server.infer("detect_images", {"image": np.array([[b"no image"]], object)})


def test_the_repository_has_each_file_once(serving: Path, files: Any) -> None:
    for path in files.values():
        model = json.loads((serving / path.stem / "model.json").read_text())
        assert hash_file(serving / path.stem / model["file"]["name"]) == model["file"]["sha256"]
        assert not list((serving / path.stem).glob("*.onnx"))
    assert {folder.name for folder in serving.iterdir()} == {
        "README.md", "models", "models-native", *(path.stem for path in files.values()),
    }  # fmt: skip
    assert "serves all of them" in (serving / "README.md").read_text()
    readme = (serving / "pose" / "README.md").read_text()
    assert "not served here" in readme
    assert "`pose_images`" in readme


def test_a_single_model_lies_below_its_folder(files: Any, samples: Any, tmp_path: Path) -> None:
    deployed = tk.deploy(files["classify", False], "triton", tmp_path / "out", samples=samples)
    assert {"check.py", "models/classify/1/model.onnx", "models/classify_images/1/.keep"} <= set(deployed.files)
    assert json.loads((deployed.folder / "model.json").read_text())["file"]["name"] == "models/classify/1/model.onnx"


def engines(folder: Path) -> dict[str, Path]:
    """Engines by their passports, static and dynamic, at batches 1 and 4, which no TensorRT reads."""
    plan = b"ptrt" + bytes(60)
    (folder / "plan").write_bytes(plan)
    paths = {}
    for batch in (1, 4):
        for dynamic in (False, True):
            name = f"engine-{batch}{'-dynamic' if dynamic else ''}"
            passport = Passport(
                backend="tensorrt", tensorrt="8.6.0", sm="sm90", model_hash="ab" * 32, plan_hash=hash_parts(plan),
                plan_size=len(plan), batch=batch, dynamic=dynamic, imgsz=(32, 32),
            )  # fmt: skip
            paths[name] = wrap_engine(folder / "plan", folder / f"{name}.engine", tiny_graphs.info(), passport)
    return paths


def test_the_configuration_of_an_engine_follows_its_profile(samples: Any, tmp_path: Path) -> None:
    for name, path in engines(tmp_path).items():
        dynamic, batch = name.endswith("dynamic"), int(name.split("-")[1])
        graph = tmp_path / f"{name}.onnx"
        onnx.save(tiny_graphs.detector(batch=batch, dynamic=dynamic), graph)
        folder = tk.deploy(path, "triton", tmp_path / name, conf=0.1, samples=samples, reference=graph).folder
        own = fake_triton.parse_config((folder / "models" / name / "config.pbtxt").read_text())
        native = fake_triton.parse_config((folder / "models-native" / name / "config.pbtxt").read_text())
        assert own["max_batch_size"] == batch
        assert own["instance_group"] == {"count": 1, "kind": "KIND_GPU"}
        assert native["platform"] == "tensorrt_plan"
        side = -1 if dynamic else 32
        assert own["input"][0]["dims"] == [3, side, side]
        assert native["max_batch_size"] == (batch if dynamic else 0)
        assert native["input"][0]["dims"] == ([3, -1, -1] if dynamic else [batch, 3, 32, 32])
        assert native["output"][0]["dims"] == ([7, -1] if dynamic else [batch, 7, 256])
        assert ("dynamic_batching" in native) == (dynamic and batch > 1)
        (warm,) = native["model_warmup"]
        assert warm["batch_size"] == (batch if dynamic else 1)
        assert warm["inputs"]["images"]["dims"] == ([3, 32, 32] if dynamic else [batch, 3, 32, 32])
        assert native["version_policy"] == {"latest": {"num_versions": 1}}
        # The plan alone, as the backend reads it.
        assert (folder / "models-native" / name / "1" / "model.plan").read_bytes() == (tmp_path / "plan").read_bytes()
        ensemble = fake_triton.parse_config((folder / "models" / f"{name}_images" / "config.pbtxt").read_text())
        assert ensemble["max_batch_size"] == batch


def test_text_of_a_configuration_is_read_back() -> None:
    config = {"name": 'a "quoted" name', "data_type": Symbol("TYPE_FP32"), "flag": True, "version_policy": {"all": {}}}
    text = render_config({**config, "dims": [3, -1], "step": [{"model_name": "x"}, {"model_name": "y"}]})
    parsed = fake_triton.parse_config(text)
    assert parsed == {**config, "flag": "true", "dims": [3, -1], "step": [{"model_name": "x"}, {"model_name": "y"}]}


def test_configurations_are_valid_for_the_server_s_own_parser(serving: Path, samples: Any, tmp_path: Path) -> None:
    """With tritonclient's protobuf: every field name, type and enumeration value."""
    protobuf = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    folders = [serving]
    for name, path in engines(tmp_path).items():
        graph = tmp_path / f"{name}.onnx"
        onnx.save(tiny_graphs.detector(batch=int(name.split("-")[1]), dynamic="dynamic" in name), graph)
        folders.append(tk.deploy(path, "triton", tmp_path / name, conf=0.1, samples=samples, reference=graph).folder)
    configs = [path for folder in folders for path in folder.rglob("config.pbtxt")]
    assert len(configs) == 5 * (10 + 4)
    for path in configs:
        config = text_format.Parse(path.read_text(), protobuf.ModelConfig())
        assert config.name == path.parent.name
        assert config.input
        assert config.output
        if "ensemble" not in config.platform and not config.name.endswith("process"):
            assert config.model_warmup[0].inputs["images"].zero_data
            assert json.loads(config.parameters["trtkit"].string_value)["task"]


@pytest.mark.parametrize(
    "stems",
    [
        ("a b", "a_b"),
        ("x", "x_images"),
        ("x_preprocess", "x"),
        ("модель", "сервер"),
        ("models", "x"),
        ("models-native",),
    ],
)
def test_models_that_one_server_can_t_tell_apart_are_named_before_they_run(tmp_path: Path, stems: Any) -> None:
    paths = [tmp_path / f"{stem}.onnx" for stem in stems]
    with raises(RecipeError, "deploy-names-collide", names=stems):
        tk.deploy(paths, "triton", tmp_path / "out")
    # Side by side they share nothing.
    with raises(OnnxError, "model-file-missing"):
        tk.deploy(paths, "onnxruntime", tmp_path / "out")


def test_a_model_of_four_channels_answers_and_refuses_others(tmp_path: Path) -> None:
    proto = tiny_graphs.detector(describe=False)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "stem.weight")
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.concatenate((values, values[:, :1]), 1), weight.name))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    update_metadata(proto, tiny_graphs.info(preprocess=Preprocess(channels=4)).to_metadata(), {})
    onnx.save(proto, tmp_path / "four.onnx")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    np.save(tmp_path / "0.npy", image)
    folder = tk.deploy(tmp_path / "four.onnx", "triton", tmp_path / "out", conf=0.05, samples=tmp_path / "0.npy").folder
    server = fake_triton.Server(folder / "models")
    for modules in fake_triton.fresh_modules(folder, "yolo"):
        encode = modules["yolo"].encode_image
        answer = server.infer("four_images", {"image": np.array([[encode(image)]], object)})
        expected = json.loads((folder / "samples" / "expected.json").read_text())["images"][0]
        assert answer["count"].item() == len(expected["scores"]) > 0
        with pytest.raises(fake_triton.InferenceServerException, match="has 3 channels, the model takes 4"):
            server.infer("four_images", {"image": np.array([[encode(image[..., :3])]], object)})

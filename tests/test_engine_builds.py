"""export(builds=N): the fastest build that agrees with ONNX Runtime is the one that is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tiny_graphs
from planted_faults import FAULTS
from raising import raises
from replaced_builder import replace_builder
from task_models import drawn_set

import trtkit as tk
from trtkit import backends
from trtkit.engine_builds import verify_engine
from trtkit.errors import BuildError, CapabilityError, RecipeError
from trtkit.graph.onnx_file import update_metadata
from trtkit.models.model import ModelInfo, default_preprocess
from trtkit.progress import Event, Reporter


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return replace_builder(monkeypatch)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_graphs.write_images(tmp_path_factory.mktemp("images"), 3)


def export(folder: Path, images: Path, **settings: object) -> tk.Artifact:
    source = folder / "tiny.onnx"
    onnx.save(tiny_graphs.detector(), source)
    return tk.export(source, backend="tensorrt", data=images, output=folder / "tiny.engine", **settings)


def which_build(artifact: tk.Artifact) -> int:
    return backends.read_engine(artifact.path).plan[4]


def test_the_fastest_of_several_builds_is_kept(builder: SimpleNamespace, images: Path, tmp_path: Path) -> None:
    builder.times = [3.0, 1.0, 2.0]
    events: list[Event] = []
    artifact = export(tmp_path, images, builds=3, device=0, progress=events.append)
    assert artifact.build_latencies == (3.0, 1.0, 2.0)
    assert which_build(artifact) == 1
    assert artifact.verification is not None
    assert artifact.verification.verdict == "agrees"
    assert set(builder.devices) == {0}
    # A build that read what another one measured would choose the same kernels.
    assert [settings.timing_cache for settings in builder.settings] == [False] * 3
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.onnx", "tiny.engine"}
    assert "time the builds" in {event.stage for event in events}
    assert artifact.recipe.builds == 3


def test_one_build_is_neither_timed_nor_without_the_cache(
    builder: SimpleNamespace, images: Path, tmp_path: Path
) -> None:
    artifact = export(tmp_path, images)
    assert artifact.build_latencies == ()
    assert [settings.timing_cache for settings in builder.settings] == [True]


def test_a_fast_build_that_is_wrong_is_left(builder: SimpleNamespace, images: Path, tmp_path: Path) -> None:
    builder.times, builder.fault = [2.0, 1.0, 3.0], [None, FAULTS["bias"], None]
    assert which_build(export(tmp_path, images, builds=3)) == 0


def test_without_verification_the_fastest_is_kept_whatever_it_computes(
    builder: SimpleNamespace, images: Path, tmp_path: Path
) -> None:
    builder.times, builder.fault = [2.0, 1.0], [None, FAULTS["bias"]]
    assert which_build(export(tmp_path, images, builds=2, verify=False)) == 1


def test_the_settings_of_the_export_reach_the_builder(builder: SimpleNamespace, images: Path, tmp_path: Path) -> None:
    settings = {
        "workspace": 0.5, "isolate": True, "compatibility": "ampere_plus", "weights": "refittable", "opt_level": 1,
        "aux_streams": 3, "device": 0,
    }  # fmt: skip
    artifact = export(tmp_path, images, batch=1, half=True, **settings)
    (built,) = builder.settings
    assert {name: getattr(built, name) for name in settings} == settings
    assert (built.precision, built.batch, built.imgsz, built.dynamic) == ("fp16", 1, (32, 32), False)
    passport = backends.read_engine(artifact.path).passport
    assert passport is not None
    assert (passport.compatibility, passport.weights, passport.recipe["opt_level"]) == ("ampere_plus", "refittable", 1)


def test_an_int8_engine_names_the_data_of_its_calibration(
    builder: SimpleNamespace, images: Path, tmp_path: Path
) -> None:
    calibration = tk.calibrate(tiny_graphs.detector(), images)
    artifact = export(tmp_path, images, int8=True, verify=False, calibration=calibration)
    passport = backends.read_engine(artifact.path).passport
    assert passport is not None
    assert (passport.data_hash, passport.calibration_hash) == (calibration.provenance.data_hash, calibration.hash)
    assert len(str(passport.data_hash)) == 64


def test_a_build_for_another_gpu_takes_the_builder_that_can(
    builder: SimpleNamespace, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def require(backend: str | None, **settings: object) -> SimpleNamespace:
        asked.append((backend, settings["device"]))
        return SimpleNamespace(backend="tensorrt")

    monkeypatch.setattr(backends, "require_build", require)
    source = tmp_path / "tiny.onnx"
    onnx.save(tiny_graphs.detector(), source)
    tk.export(source, device="sm89", output=tmp_path / "tiny.engine", verify=False)
    assert asked[0] == (None, "sm89")


def test_nothing_is_written_where_every_build_is_wrong(builder: SimpleNamespace, images: Path, tmp_path: Path) -> None:
    builder.times, builder.fault = [2.0, 1.0], FAULTS["bias"]
    with raises(BuildError, "engine-differs"):
        export(tmp_path, images, builds=2)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.onnx"}


def four_channels() -> onnx.ModelProto:
    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Conv", ["images", "weight"], ["cells"], strides=[2, 2]),
        onnx.helper.make_node("Reshape", ["cells", "shape"], ["output0"]),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.ones((7, 4, 2, 2), np.float32), "weight"),
        onnx.numpy_helper.from_array(np.array([1, 7, 256]), "shape"),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [value("images", 1, [1, 4, 32, 32])], [value("output0", 1, [1, 7, 256])], weights
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    info = ModelInfo(
        task="detect", names=tiny_graphs.NAMES, imgsz=(32, 32), preprocess=default_preprocess("detect", channels=4)
    )
    return update_metadata(proto, info.to_metadata(), {})


@pytest.mark.parametrize(
    ("graph", "settings", "opened"),
    [
        (tiny_graphs.detector(), {"weights": "stripped"}, 0),
        (tiny_graphs.detector("int8"), {"int8": True, "implicit": True}, 0),
        (four_channels(), {}, 1),
    ],
)
def test_an_engine_that_is_not_compared_leaves_no_session_open(
    builder: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, graph: onnx.ModelProto, settings: dict, opened: int
) -> None:
    runners, messages = [], []
    monkeypatch.setattr(
        backends, "open", lambda source, open_=backends.open: runners.append(open_(source)) or runners[-1]
    )
    recipe = tk.Recipe(model="m.onnx", backend="tensorrt", **settings)
    reporter = Reporter(lambda event: messages.append(event.message))
    assert verify_engine(Path("m.engine"), graph, "tensorrt", recipe, None, Path("m.engine"), reporter) is None
    assert len(messages) == 1
    assert len(runners) == opened
    assert all(runner.session is None for runner in runners)


def test_an_engine_of_four_channels_is_compared_on_images_of_its_own(
    builder: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph, open_runner = four_channels(), backends.open
    monkeypatch.setattr(backends, "open", lambda source, device=None: open_runner(graph))
    recipe = tk.Recipe(model="m.onnx", backend="tensorrt")
    data = drawn_set(tmp_path, "detect", count=2, channels=4)
    verification = verify_engine(Path("m.engine"), graph, "tensorrt", recipe, data, Path("m.engine"), Reporter())
    assert verification is not None
    assert not verification.frame()["differs"].any()


def test_what_several_builds_need_is_checked_before_any(
    builder: SimpleNamespace, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raises(RecipeError, "recipe-needs-engine", name="builds"):
        export(tmp_path, images, builds=2, format="onnx")
    with raises(RecipeError, "recipe-builds-need-weights"):
        export(tmp_path, images, builds=2, weights="stripped")

    def refuse(*_: object, **__: object) -> None:
        raise CapabilityError("run", "there is no GPU", "run it elsewhere", code="gpu-missing")

    monkeypatch.setattr(backends, "require_run", refuse)
    with raises(CapabilityError, "gpu-missing"):
        export(tmp_path, images, builds=2)
    assert not builder.settings

"""The wizard's jobs: the engine is measured where it runs, its graph by ONNX Runtime elsewhere."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

import trtkit as tk
from trtkit import backends, demo
from trtkit.backends import Passport, write_engine
from trtkit.backends.capabilities import Capabilities
from trtkit.backends.devices import Gpu
from trtkit.errors import CancelledError, CapabilityError, DataError, OutputExistsError, RecipeError
from trtkit.exporter import Artifact
from trtkit.files import hash_parts
from trtkit.progress import Event
from trtkit.recipe import Recipe
from trtkit.widgets.wizard import actions
from trtkit.widgets.wizard.actions import (
    BuiltArtifact,
    build,
    deploy_built,
    examine_images,
    find_eval_data,
    measure,
    read_model,
)

DATA = str(demo.data_path())
H100 = Gpu(index=0, name="NVIDIA H100", sm="sm90", memory=80 * 2**30)


@pytest.fixture(scope="module")
def fp16(model: tk.Model, tmp_path_factory: pytest.TempPathFactory) -> BuiltArtifact:
    output = tmp_path_factory.mktemp("built") / "fp16.onnx"
    return build(model, Recipe(model="m.pt", format="onnx", half=True, imgsz=64, output=str(output)))


def as_engine(built: BuiltArtifact, **settings: Any) -> BuiltArtifact:
    """The same graph, as if TensorRT had built it for an H100."""
    recipe = dataclasses.replace(built.artifact.recipe, format="engine", backend="tensorrt", **settings)
    passport = Passport(backend="tensorrt", tensorrt="8.6.0", sm="sm90", gpu="NVIDIA H100")
    artifact = dataclasses.replace(
        built.artifact, format="engine", passport=passport, recipe=recipe, precision=recipe.precision
    )
    return BuiltArtifact(artifact=artifact, graph=built.graph)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with GPUs and a version to pretend that this TensorRT is installed."""

    def be(*gpus: Gpu, version: str = "8.6.0") -> None:
        capabilities = Capabilities(backend="tensorrt", present=True, version=version, gpus=gpus, torch_cuda=bool(gpus))

        def require(backend: str, *, device: Any = None) -> Capabilities:
            if not gpus:
                raise CapabilityError("run a TensorRT engine", "no NVIDIA driver with a GPU was found", "x")
            return capabilities

        monkeypatch.setattr(backends, "require_run", require)

    return be


def test_the_kept_graph_is_the_file_s(fp16: BuiltArtifact) -> None:
    import onnx

    assert onnx.load(fp16.artifact.path) == fp16.graph


@pytest.mark.parametrize(
    ("gpus", "version", "words"),
    [
        ((), "8.6.0", "no NVIDIA driver"),
        ((H100,), "11.4.0", "TensorRT 11.4.0"),
        ((dataclasses.replace(H100, name="T4", sm="sm75"),), "8.6.0", "the GPU is T4"),
    ],
)
def test_where_the_engine_does_not_run_onnx_runtime_runs_its_graph(
    model: tk.Model, fp16: BuiltArtifact, machine: Any, gpus: tuple[Gpu, ...], version: str, words: str
) -> None:
    machine(*gpus, version=version)
    measurement = measure(model, as_engine(fp16), DATA, eval_images=2)
    assert words in measurement.engine_problem
    comparison = measurement.comparison
    assert comparison is not None
    assert words in comparison.about["why_not_run"]
    rows = comparison.frame()
    assert rows["precision"].to_list() == measurement.timing.runners["label"].to_list() == ["fp32", "fp16"]
    assert rows["runner"].n_unique() == 1
    assert rows["runner"][0].startswith("ONNX Runtime")
    assert not rows["engine"].any()
    assert rows["onnx_mb"].null_count() == 0
    assert rows["engine_mb"].is_null().to_list() == [True, False]
    assert set(comparison.losses()["precision"]) == {"fp16"}
    assert comparison.about["files"]["fp16"]["engine"] == str(fp16.artifact.path)


def test_an_engine_that_does_not_run_here_is_deployed_with_its_graph_s_detections(
    fp16: BuiltArtifact, machine: Any, tmp_path: Path
) -> None:
    machine()
    built, plan = as_engine(fp16), b"ptrt" + bytes(60)
    passport = Passport(
        backend="tensorrt", tensorrt="8.6.0", sm="sm90", precision="fp16", imgsz=(64, 64), plan_hash=hash_parts(plan),
        plan_size=len(plan), model_hash=fp16.artifact.model_hash,
    )  # fmt: skip
    path = write_engine(tmp_path / "fp16.engine", plan, fp16.artifact.info, passport)
    built = dataclasses.replace(built, artifact=dataclasses.replace(built.artifact, path=path, passport=passport))
    deployment = deploy_built(built, "python")
    assert deployment.folder == tmp_path / "fp16-python"
    assert (deployment.folder / "model.engine").read_bytes() == path.read_bytes()
    with pytest.raises(OutputExistsError):
        deploy_built(built, "python")
    assert deploy_built(built, "python", overwrite=True) == deployment


def test_where_the_engine_runs_it_and_an_fp32_engine_are_measured(
    model: tk.Model, fp16: BuiltArtifact, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(H100)
    built = as_engine(fp16, device=0)
    opened: list[tuple[Path, Any]] = []
    recipes: list[Recipe] = []
    real = backends.open

    def open_(source: Any, *, device: Any = None) -> Any:
        opened.append((source, device))
        return real(fp16.graph)

    def export_with_graph(model: Any, recipe: Recipe, **watch: Any) -> tuple[Artifact, Any]:
        recipes.append(recipe)
        path = Path(recipe.output or "")
        return dataclasses.replace(built.artifact, path=path, recipe=recipe, precision="fp32"), fp16.graph

    monkeypatch.setattr(backends, "open", open_)
    monkeypatch.setattr("trtkit.exporter.export_with_graph", export_with_graph)
    measurement = measure(model, built, DATA, eval_images=2)
    assert measurement.engine_problem == ""
    # FP32 is built by the same builder for the same GPU, in a temporary folder.
    (recipe,) = recipes
    assert (recipe.precision, recipe.format, recipe.backend) == ("fp32", "engine", "tensorrt")
    assert (recipe.device, recipe.imgsz) == (0, 64)
    fp32 = Path(recipe.output or "")
    assert opened == [(fp32, 0), (built.artifact.path, 0)]
    assert not fp32.parent.exists()


def test_without_fp32_the_comparison_has_one_precision(model: tk.Model, fp16: BuiltArtifact) -> None:
    measurement = measure(model, fp16, DATA, eval_images=2, compare_fp32=False)
    assert measurement.comparison is not None
    assert measurement.comparison.about["reference"] == "fp16"
    assert measurement.comparison.frame()["precision"].to_list() == ["fp16"]


def test_without_images_only_the_latency_is_measured(model: tk.Model, fp16: BuiltArtifact) -> None:
    measurement = measure(model, fp16, "", compare_fp32=False)
    assert (measurement.comparison, measurement.figures[0]) == (None, None)
    assert measurement.timing.runners["label"].to_list() == ["fp16"]
    assert measurement.engine_problem == ""


def test_an_implicitly_calibrated_engine_is_measured_only_where_it_runs(
    model: tk.Model, fp16: BuiltArtifact, machine: Any
) -> None:
    machine()
    built = as_engine(fp16, half=False, int8=True, implicit=True)
    with pytest.raises(CapabilityError) as e:
        measure(model, built, DATA)
    assert e.value.code == "engine-implicit-not-runnable"


@pytest.mark.parametrize(("device", "where"), [(None, None), ("sm90", None), (1, 1), ("cuda:1", "cuda:1")])
def test_an_engine_for_a_compute_capability_runs_on_the_first_gpu(device: Any, where: Any) -> None:
    assert actions._run_device(Recipe(model="m.pt", device=device)) == where
    assert actions._run_device(Recipe(model="m.pt", format="onnx", device=device)) is None


def test_cancel_stops_a_measurement(model: tk.Model, fp16: BuiltArtifact) -> None:
    cancel = threading.Event()
    events: list[Event] = []

    def progress(event: Event) -> None:
        events.append(event)
        if event.stage.startswith("evaluate"):
            cancel.set()

    with pytest.raises(CancelledError):
        measure(model, fp16, DATA, eval_images=4, progress=progress, cancel=cancel)
    assert not any(event.stage.startswith("time") for event in events)


def test_read_and_examine(model: tk.Model) -> None:
    assert read_model(str(demo.model_path())).hash == model.hash
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        read_model(str(demo.model_path()), cancel=cancel)
    with pytest.raises(RecipeError):
        examine_images("", dataclasses.replace(model, task="depth"), 1.0)
    examination = examine_images("", model, 0.1)
    assert examination.diagnosis.provenance.settings["data"] == DATA
    assert len(examination.figure.data) > 0


def test_the_evaluation_data(model: tk.Model, tmp_path: Path) -> None:
    assert find_eval_data(DATA, model) == DATA
    assert find_eval_data("", model) == DATA
    assert find_eval_data("", dataclasses.replace(model, source=demo.model_path(family="yolo26"))) == DATA
    assert find_eval_data("", dataclasses.replace(model, source=tmp_path / "mine.pt")) == ""
    assert find_eval_data("", dataclasses.replace(model, source=None)) == ""
    with pytest.raises(DataError) as e:
        find_eval_data("/nowhere/data.yaml", model)
    assert (e.value.code, e.value.fields["path"]) == ("data-yaml-missing", Path("/nowhere/data.yaml"))
    unlabeled = Path(DATA).parent / "images"
    assert unlabeled.is_dir()
    assert find_eval_data(str(unlabeled), model) == ""

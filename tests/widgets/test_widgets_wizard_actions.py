"""What the wizard sets going: the engine measures itself where it runs, and its very graph stands in elsewhere."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

import trtkit as tk
from trtkit import backends, demo
from trtkit.backends import Passport
from trtkit.backends.capabilities import Capabilities
from trtkit.backends.devices import Gpu
from trtkit.errors import CancelledError, CapabilityError, DataError, RecipeError
from trtkit.exporter import Artifact
from trtkit.progress import Event
from trtkit.recipe import Recipe
from trtkit.widgets.wizard import actions as outcome
from trtkit.widgets.wizard.actions import BuiltArtifact, build, examine_images, measure, read_model, resolve_eval_data

DATA = str(demo.data_path())
H100 = Gpu(index=0, name="NVIDIA H100", sm="sm90", memory=80 * 2**30)


@pytest.fixture(scope="module")
def half(model: tk.Model, tmp_path_factory: pytest.TempPathFactory) -> BuiltArtifact:
    output = tmp_path_factory.mktemp("made") / "half.onnx"
    return build(model, Recipe(model="m.pt", format="onnx", half=True, imgsz=64, output=str(output)))


def as_engine(made: BuiltArtifact, **settings: Any) -> BuiltArtifact:
    """The same graph, as if TensorRT had built it for an H100."""
    recipe = dataclasses.replace(made.artifact.recipe, format="engine", backend="tensorrt", **settings)
    passport = Passport(backend="tensorrt", tensorrt="8.6.0", sm="sm90", gpu="NVIDIA H100")
    artifact = dataclasses.replace(
        made.artifact, format="engine", passport=passport, recipe=recipe, precision=recipe.precision
    )
    return BuiltArtifact(artifact=artifact, graph=made.graph)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with GPUs and a version to have that TensorRT here."""

    def be(*gpus: Gpu, version: str = "8.6.0") -> None:
        found = Capabilities(backend="tensorrt", present=True, version=version, gpus=gpus, torch_cuda=bool(gpus))

        def require(backend: str, *, device: Any = None) -> Capabilities:
            if not gpus:
                raise CapabilityError("run a TensorRT engine", "no NVIDIA driver with a GPU was found", "x")
            return found

        monkeypatch.setattr(backends, "require_run", require)

    return be


def test_the_graph_handed_over_is_the_file_s(half: BuiltArtifact) -> None:
    import onnx

    assert onnx.load(half.artifact.path) == half.graph


@pytest.mark.parametrize(
    ("gpus", "version", "words"),
    [
        ((), "8.6.0", "no NVIDIA driver"),
        ((H100,), "11.4.0", "TensorRT 11.4.0 is installed"),
        ((dataclasses.replace(H100, name="T4", sm="sm75"),), "8.6.0", "this GPU is T4"),
    ],
)
def test_where_the_engine_does_not_run_onnx_runtime_stands_in_and_says_why(
    model: tk.Model, half: BuiltArtifact, machine: Any, gpus: tuple[Gpu, ...], version: str, words: str
) -> None:
    machine(*gpus, version=version)
    found = measure(model, as_engine(half), DATA, eval_images=2)
    assert words in found.why_not_engine
    assert found.evaluation is not None
    assert found.baseline is not None
    assert found.evaluation.provenance.runner == found.baseline.provenance.runner
    assert found.evaluation.provenance.runner.startswith("ONNX Runtime")
    assert not found.timing.runners["engine"].any()
    assert found.timing.runners["label"].to_list() == ["fp32", "fp16"]
    assert found.differences is not None


def test_where_the_engine_runs_it_and_an_fp32_engine_are_measured(
    model: tk.Model, half: BuiltArtifact, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(H100)
    made = as_engine(half, device=0)
    opened: list[tuple[Any, Any]] = []
    wanted: list[Recipe] = []
    real = backends.open

    def open_(source: Any, *, device: Any = None) -> Any:
        opened.append((source, device))
        return real(half.graph)

    def exported(model: Any, recipe: Recipe, **watch: Any) -> tuple[Artifact, Any]:
        wanted.append(recipe)
        return dataclasses.replace(made.artifact, recipe=recipe, precision="fp32"), None

    monkeypatch.setattr(backends, "open", open_)
    monkeypatch.setattr("trtkit.exporter.export_with_graph", exported)
    found = measure(model, made, DATA, eval_images=2)
    assert found.why_not_engine == ""
    # FP32 comes from the same builder for the same GPU, and into a folder that goes again.
    assert [recipe.precision for recipe in wanted] == ["fp32"]
    assert (wanted[0].backend, wanted[0].device, wanted[0].imgsz) == ("tensorrt", 0, 64)
    assert not Path(wanted[0].output or "").parent.exists()
    assert [source.precision for source, _ in opened] == ["fp32", "fp16"]
    assert opened[1] == (made.artifact, 0)


def test_without_a_baseline_or_images_less_is_measured(model: tk.Model, half: BuiltArtifact) -> None:
    found = measure(model, half, "", baseline=False)
    assert (found.evaluation, found.baseline, found.differences) == (None, None, None)
    assert found.figures[0] is None
    assert found.timing.runners["label"].to_list() == ["fp16"]
    assert found.why_not_engine == ""


def test_ranges_that_are_in_the_engine_alone_can_t_be_judged_elsewhere(
    model: tk.Model, half: BuiltArtifact, machine: Any
) -> None:
    machine()
    made = as_engine(half, half=False, int8=True, implicit=True)
    with pytest.raises(CapabilityError, match="in the engine alone"):
        measure(model, made, DATA)


@pytest.mark.parametrize(("device", "where"), [(None, None), ("sm90", None), (1, 1), ("cuda:1", "cuda:1")])
def test_an_engine_for_a_kind_of_gpu_runs_on_the_first_one(device: Any, where: Any) -> None:
    assert outcome._run_device(Recipe(model="m.pt", device=device)) == where
    assert outcome._run_device(Recipe(model="m.pt", format="onnx", device=device)) is None


def test_cancel_stops_a_measurement(model: tk.Model, half: BuiltArtifact) -> None:
    cancel = threading.Event()
    events: list[Event] = []

    def progress(event: Event) -> None:
        events.append(event)
        if event.stage.startswith("evaluate"):
            cancel.set()

    with pytest.raises(CancelledError):
        measure(model, half, DATA, eval_images=4, progress=progress, cancel=cancel)
    assert not any(event.stage.startswith("time") for event in events)


def test_reading_and_examining_are_the_package_s_own(model: tk.Model) -> None:
    assert read_model(str(demo.model_path())).hash == model.hash
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        read_model(str(demo.model_path()), cancel=cancel)
    with pytest.raises(RecipeError, match="segment"):
        examine_images("", "segment", 1.0)
    found = examine_images("", "detect", 0.1)
    assert found.diagnosis.provenance.settings["data"] == DATA
    assert len(found.figure.data) > 0


def test_what_judges(model: tk.Model, tmp_path: Path) -> None:
    assert resolve_eval_data(DATA, model) == DATA
    assert resolve_eval_data("", model) == DATA
    assert resolve_eval_data("", dataclasses.replace(model, source=tmp_path / "mine.pt")) == ""
    assert resolve_eval_data("", dataclasses.replace(model, source=None)) == ""
    with pytest.raises(DataError, match="no such file"):
        resolve_eval_data("/nowhere/data.yaml", model)

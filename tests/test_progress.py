from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raising import raises
from task_models import drawn_set, untrained

import trtkit as tk
from trtkit.cli import main
from trtkit.errors import CancelledError, DataError, RecipeError, TrtkitError
from trtkit.progress import Event, Plan, Reporter, available_cores, is_planning, parallel_map, start_work


def test_results_are_in_the_order_of_the_items() -> None:
    def slow_when_even(item: int) -> int:
        time.sleep(0.02 if item % 2 == 0 else 0)
        return item * item

    assert list(parallel_map(slow_when_even, range(9), 3)) == [item * item for item in range(9)]
    assert available_cores() >= 1


def test_pending_results_are_limited() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = parallel_map(lambda item: item, items(), 2, max_pending=4)
    assert next(results) == 0
    assert len(taken) == 5
    results.close()  # type: ignore[attr-defined]
    assert len(taken) == 5


def test_an_error_is_raised_and_ends_the_threads() -> None:
    before = threading.active_count()

    def fail(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    results = parallel_map(fail, range(10), 2)
    with pytest.raises(ValueError, match="three"):
        list(results)
    assert threading.active_count() == before


# Steps


@st.composite
def plans(draw: st.DrawFn, depth: int = 2) -> list[Any]:
    """Steps of a verb: each is left out, or reports counts and calls verbs that have steps themselves."""
    steps: list[Any] = []
    for _ in range(draw(st.integers(1, 4))):
        calls = draw(st.lists(plans(depth - 1), max_size=2)) if depth else []
        steps.append((draw(st.booleans()), draw(st.integers(0, 2)), calls))
    return steps


def run_verb(steps: list[Any], progress: Any, *, prefix: str = "step") -> None:
    """A verb as the package's are: it loads, plans, works and calls others."""
    reporter = Reporter(progress)
    reporter.step("load", 0, 1)
    names = tuple(f"{prefix} {number}" for number in range(len(steps)))
    start_work(Plan(verb="run_verb", steps=names), reporter)
    for name, (needed, counts, calls) in zip(names, steps, strict=True):
        if not needed:
            continue
        reporter.begin(name)
        for done in range(counts):
            reporter.step(name, done, counts)
        for call in calls:
            run_verb(call, reporter.progress, prefix="step" if counts else "own")
        reporter.log("part", "a line")
    reporter.finish()


@given(plans())
def test_steps_are_counted_from_1_to_n_whatever_verbs_are_called(steps: list[Any]) -> None:
    events: list[Event] = []
    run_verb(steps, events.append)
    numbers = [event.step for event in events]
    assert numbers == sorted(numbers)
    # None before the plan is known, and then the outermost verb's to the end.
    assert events[0] == Event(stage="load", done=0, total=1)
    assert len({id(event.plan) for event in events[1:]}) == 1
    assert events[-1].plan is not None
    assert (events[-1].step, events[-1].stage) == (len(steps), "done")
    assert len(events[-1].plan.steps) == len(steps)
    # Steps of called verbs, their loading and their end are this step.
    assert all(event.stage in (f"step {event.step - 1}", "part") for event in events[1:-1])


def test_a_verb_that_shares_steps_begins_them() -> None:
    events: list[Event] = []
    reporter = Reporter(events.append)
    reporter.start(Plan(verb="outer", steps=("first", "batch 1", "batch 2", "last")))
    reporter.begin("first")
    inner = Reporter(reporter.shared_progress)
    inner.start(Plan(verb="inner", steps=("batch 1", "batch 2")))
    for step in ("batch 1", "batch 2"):
        inner.begin(step)
        inner.step(step, 1, 2)
    inner.finish()
    assert [(event.stage, event.step) for event in events] == [
        ("first", 1), ("batch 1", 2), ("batch 1", 2), ("batch 2", 3), ("batch 2", 3), ("batch 2", 3),
    ]  # fmt: skip


def test_other_stages_and_messages_of_a_called_verb_stay() -> None:
    events: list[Event] = []
    reporter = Reporter(events.append)
    reporter.start(Plan(verb="outer", steps=("evaluate",)))
    reporter.begin("evaluate")
    inner = Reporter(reporter.progress)
    inner.start(Plan(verb="inner", steps=("run",)))
    inner.log("count detections", "3 found")
    assert (events[-1].stage, events[-1].message, events[-1].step) == ("count detections", "3 found", 1)


def test_what_is_called_before_the_first_step_is_no_step_yet() -> None:
    events: list[Event] = []
    reporter = Reporter(events.append)
    reporter.start(Plan(verb="outer", steps=("first", "last")))
    inner = Reporter(reporter.progress)
    inner.start(Plan(verb="inner", steps=("run",)))
    inner.begin("run")
    assert (events[-1].stage, events[-1].step) == ("run", 0)


def test_the_end_is_too_late_to_cancel_and_any_step_before_is_not() -> None:
    cancel = threading.Event()
    reporter = Reporter(None, cancel)
    reporter.start(Plan(verb="a", steps=("one", "two")))
    cancel.set()
    with pytest.raises(CancelledError):
        reporter.begin("one")
    reporter.finish()


def test_a_step_that_is_not_in_the_plan_is_a_mistake() -> None:
    reporter = Reporter()
    reporter.start(Plan(verb="a", steps=("one", "two")))
    reporter.begin("two")
    for step in ("one", "two", "three"):
        with pytest.raises(ValueError, match="not in tuple"):
            reporter.begin(step)


# Plans


def settings_of(verb: str, folder: Path) -> dict[str, Any]:
    """Small settings; the smallest calibration and evaluation that a verb takes."""
    few = {"calibration_images": 2, "imgsz": 64}
    tuned = {**few, "eval_images": 2, "resamples": 2, "cache_dir": folder / "cache"}
    return {
        "calibrate": {**few, "cache_dir": folder / "cache"},
        "compare": {**few, "eval_images": 2, "output": folder / "out", "build": False, "runs": 1, "seconds": 0.01},
        "evaluate_int8": tuned,
        "examine": {"calibration_images": 2},
        "export": {"format": "onnx", "int8": True, "output": folder / "out" / "a.onnx", "imgsz": 64},
        "search": {**tuned, "probe_images": 2, "trials": 1},
        "sensitivity": {**few, "probe_images": 2, "worst": 1, "cache_dir": folder / "cache"},
        "sweep": {**tuned, "calibration_images": (1, 2), "algorithms": ("minmax",)},
    }[verb]


@pytest.fixture(scope="module")
def model() -> tk.Model:
    return untrained("detect")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_set(tmp_path_factory.mktemp("data"), "detect", count=3)


@pytest.mark.parametrize(
    ("verb", "images"),
    [
        ("calibrate", {"calibration": 2}),
        ("compare", {"calibration": 2, "evaluation": 2}),
        ("evaluate_int8", {"calibration": 2, "evaluation": 2}),
        ("examine", {"calibration": 2, "split": 3}),
        ("export", {"calibration": 3}),
        ("search", {"calibration": 2, "evaluation": 2, "probe": 2}),
        ("sensitivity", {"calibration": 2, "probe": 2}),
        ("sweep", {"calibration": 2, "evaluation": 2}),
    ],
)
def test_a_plan_says_what_would_be_done_and_does_nothing(
    verb: str, images: dict[str, int], model: tk.Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtkit.graph.torch_export._trace", lambda *_: pytest.fail("it was traced"))
    monkeypatch.setattr("onnxruntime.InferenceSession.run", lambda *_: pytest.fail("it was run"))
    settings = settings_of(verb, tmp_path)
    values = {"data": data} if verb in ("examine", "export") else {}
    arguments = () if verb == "examine" else (model,) if verb == "export" else (model, data)
    plan = tk.plan(getattr(tk, verb), *arguments, **values, **settings)
    assert (plan.verb, dict(plan.images)) == (verb, images)
    assert plan.steps
    assert not list(tmp_path.iterdir())
    assert json.loads(json.dumps(plan.to_dict()))["verb"] == verb
    assert all(step in repr(plan) for step in plan.steps)
    assert all(str(path) in repr(plan) for path in plan.files)
    if verb != "examine":
        assert plan.settings["imgsz"] == (64, 64)


@pytest.mark.parametrize(
    "verb", ["calibrate", "compare", "evaluate_int8", "examine", "export", "search", "sensitivity", "sweep"]
)
def test_a_verb_counts_the_steps_of_its_plan(verb: str, model: tk.Model, data: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    arguments = (data,) if verb == "examine" else (model, data)
    settings = {**settings_of(verb, tmp_path), "progress": events.append}
    if verb == "export":
        arguments, settings["data"] = (model,), data
    getattr(tk, verb)(*arguments, **settings)
    counted = [event for event in events if event.plan is not None]
    plan = counted[0].plan
    assert plan is not None
    assert plan.verb == verb
    assert all(event.plan is plan for event in events[events.index(counted[0]) :])
    numbers = [event.step for event in counted]
    assert numbers == sorted(numbers)
    assert numbers[-1] == len(plan.steps)
    # A search ends early where a loss is accepted.
    assert set(numbers) == set(range(1, len(plan.steps) + 1)) or verb == "search"


def test_the_files_of_a_plan_are_those_that_are_written(model: tk.Model, data: Path, tmp_path: Path) -> None:
    for verb in ("export", "compare"):
        settings = {**settings_of(verb, tmp_path), "data": data}
        plan = tk.plan(getattr(tk, verb), model, **settings)
        getattr(tk, verb)(model, **settings)
        written = {path for path in tmp_path.rglob("*") if path.is_file()}
        # Further tables of a result lie beside its first.
        assert set(plan.files) == {path for path in written if path.name.count(".") < 2 or path.suffix != ".parquet"}
        for path in written:
            path.unlink()


def test_runners_are_planned(model: tk.Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tk.export(model, "onnx", output=tmp_path / "a.onnx")
    monkeypatch.setattr("trtkit.backends.ort.OrtRunner.infer", lambda *_: pytest.fail("it was run"))
    plan = tk.plan(tk.evaluate, file, data, eval_images=1)
    assert (dict(plan.images), plan.settings["batch"], plan.settings["imgsz"]) == ({"evaluation": 1}, 1, (64, 64))
    plan = tk.plan(tk.benchmark, {"a": file, "b": file.path})
    assert dict(plan.settings) == {"a": "64x64", "b": "64x64"}


def test_a_plan_raises_what_the_verb_would(model: tk.Model, tmp_path: Path) -> None:
    with raises(RecipeError, "argument-invalid", verb="export", name="batch"):
        tk.plan(tk.export, model, batch=0)
    with raises(DataError, "data-yaml-missing"):
        tk.plan(tk.compare, model, tmp_path / "missing.yaml", output=tmp_path / "out")


@pytest.mark.parametrize("function", [tk.load, print, "export", tk.Recipe])
def test_other_functions_have_no_plan(function: Any) -> None:
    with raises(RecipeError, "plan-verb-unknown"):
        tk.plan(function, "a.pt")


def test_a_plan_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRTKIT_DOWNLOAD", "1")
    monkeypatch.setattr("trtkit.downloads.fetch", lambda *_: pytest.fail("it was downloaded"))
    with pytest.raises(TrtkitError) as caught:
        tk.plan(tk.export, "yolo11n.pt", "onnx")
    assert caught.value.code in ("model-not-downloaded", "model-file-missing", "checkpoint-missing")


def test_after_a_plan_verbs_work_again(model: tk.Model, data: Path, tmp_path: Path) -> None:
    settings = settings_of("export", tmp_path)
    tk.plan(tk.export, model, data=data, **settings)
    assert not is_planning()
    assert tk.export(model, data=data, **settings).path.is_file()


def test_dry_run_on_the_command_line(
    data: Path, model: tk.Model, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tk.export(model, "onnx", output=tmp_path / "a.onnx").path
    image = next(data.parent.glob("images/val/*.png"))
    commands = {
        f"calibrate {file} {data} --calibration-images=2": ("calibration images: 2", "runs/calibrate"),
        f"compare {file} {data} --no-build": ("evaluation images: 3", "runs/compare/report.html"),
        f"evaluate {file} {data}": ("evaluation images: 3",),
        f"evaluate-int8 {file} {data}": ("calibration images: 3", "runs/evaluate-int8"),
        f"examine {data}": ("calibration images: 3", "runs/examine"),
        f"export {file} --format=onnx --output=b.onnx": ("write the ONNX file", "writes b.onnx"),
        f"predict {file} {image}": ("input images: 1", f"runs/predict/{image.stem}.jpg"),
        f"benchmark {file} --output=times": ("a.onnx: 64x64", "writes times"),
        f"search {file} {data}": ("probe images: 3", "runs/search"),
        f"sensitivity {file} {data}": ("probe images: 3", "runs/sensitivity"),
        f"sweep {file} {data}": ("calibration images: 3", "runs/sweep"),
        "demo": ("evaluation images:", "runs/"),
    }
    for command, words in commands.items():
        assert main([*command.split(), "--dry-run"]) == 0
        out = " ".join(capsys.readouterr().out.replace("\n", " ").split())
        assert out.startswith("Plan of ")
        assert all(word in out for word in words), (command, out)
    assert main(["search", str(file), str(data), "--dry-run", "--trials=0"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]

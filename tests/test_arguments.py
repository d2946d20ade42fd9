"""One rule for each argument: every verb and its command line refuse the same values in the same words, before work."""

from __future__ import annotations

import inspect
import math
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raising import raises

import trtkit as tk
from trtkit.arguments import ARGUMENTS, MAX_BATCH, MAX_SIDE, VERB_ARGUMENTS, check_argument, find_rule
from trtkit.cli import main
from trtkit.cli.wording import describe_error
from trtkit.errors import RecipeError, TrtkitError

VERBS = ("benchmark", "calibrate", "compare", "deploy", "evaluate", "evaluate_int8", "examine", "export", "load_test",
         "search", "sensitivity", "sweep", "verify", "why_slow", "zoo")  # fmt: skip

READ_ELSEWHERE = {
    *(
        "artifact",
        "baseline",
        "calibration",
        "data",
        "engine",
        "images",
        "model",
        "models",
        "onnx",
        "reference",
        "runner",
        "runners",
    )
}
"""Arguments that are opened: what opens them checks them."""

NOT_COUNTS: list[Any] = [0, -1, True, 2.0, "8", None, math.nan, [], np.float32(1), 1j]
NOT_PERCENT: list[Any] = [0, -1.0, 100.1, math.nan, math.inf, "99", True, None, [1]]

WRONG: dict[str, list[Any]] = {
    **dict.fromkeys(("calibration_images", "eval_images", "probe_images", "max_det", "runs", "trials"), NOT_COUNTS),
    "threads": NOT_COUNTS,
    "offline_seconds": [-0.1, math.nan, math.inf, "1", True, None],
    "count": NOT_COUNTS,
    "aux_streams": [-1, 17, 2.5, "3", True],
    "batch": [*NOT_COUNTS, MAX_BATCH + 1, 10**30],
    "imgsz": [0, -32, (320, 0), (320,), (320, 320, 3), 320.0, "320", "320,320", (320.0, 320), [], True, {}, math.inf,
              MAX_SIDE + 1, (640, 10**30)],
    "conf": [-0.1, 1, 25, math.nan, "0.5", True, None, [0.5]],
    "iou": [-0.1, 1.1, 7, math.nan, "0.5", False, None],
    "fraction": [0, 1.5, -1, math.nan, "half", True, None],
    **{key: [-0.1, 1, math.nan, "0.005", True, None] for key in ("max_drop", "max_noise")},
    "percentile": NOT_PERCENT,
    "percentiles": [*(value for value in NOT_PERCENT if value != [1]), [], [99.9, 101]],
    "seconds": [0, -1, math.inf, math.nan, "5", True],
    "workspace": [0, -1, math.inf, "4", True],
    **{key: ["", "turing", 86, True] for key in ("compatibility", "weights")},
    "builds": [0, -1, 2.5, "3", True, None, 101],
    "opt_level": [-1, 6, 2.5, "3", True],
    "refine": ["", "biases", 1, True],
    "resamples": [0, 1, 2.5, "500", True],
    **{key: [-1, 1.5, "0", True, None] for key in ("seed", "stage_runs", "warmup", "worst")},
    "concurrency": [0, -1, 1.5, "4", (), (1, 0), True, None, 10**9],
    "device": ["gpu0", "cuda:x", -1, "-1", 1.5, "", True, [0], "sm8", "cuda:0:1"],
    "precisions": [(), ("fp32", "fp32"), ("fp8",), "int4", 8, ("fp32", None)],
    "backends": [5, ["onnxruntime", "onnxruntime"], (), [None]],
    "sizes": [*(one for one in NOT_COUNTS if one is not None), (320, 320), MAX_SIDE + 1],
    "format": ["tflite", "ENGINE", None, 1],
    "algorithms": [(), [1], 5],
    "image_paths": [[], [3], "", ["a\0b"]],
    "candidates": [["a.onnx"], "a.onnx", [("qat", "a.onnx")]],
    "keep": [5, [5], [None], {1: 2}],
    "metrics": [0.5, ["mAP"], {"mAP": "high"}, {3: 0.5}],
    "samples": [[], [3], "", ["a\0b"]],
    "progress": ["yes", 1],
    "cancel": [True, lambda: False],
    "executor": ["local:2", 4, threading.Event(), ThreadPoolExecutor(1)],
    **{key: ["", "a\x00b", 5] for key in ("output", "cache_dir")},
    **{key: [5, ["val"], 0.5] for key in ("against", "algorithm", "backend", "label", "split", "target", "task")},
    **{name: ["yes", 2, [True], 0.5] for name, rule in ARGUMENTS.items() if rule.expected == "True or False"},
}  # fmt: skip


def parameters(verb: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(getattr(tk, verb)).parameters)


def test_every_argument_of_every_verb_has_a_rule() -> None:
    assert not [
        (verb, name)
        for verb in VERBS
        for name in parameters(verb)
        if find_rule(verb, name) is None and name not in READ_ELSEWHERE
    ]
    used = {name for verb in VERBS for name in parameters(verb)} | {"count"}
    assert set(ARGUMENTS) == set(WRONG) == used - READ_ELSEWHERE
    assert all(name in parameters(verb) for verb, name in VERB_ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_example_of_a_rule_is_valid(name: str) -> None:
    # The name in the example stands for a client: a real one needs a scheduler.
    client = types.SimpleNamespace(submit=print, scheduler_info=print)
    check_argument("export", name, eval(ARGUMENTS[name].example, {"tk": tk, "threading": threading, "client": client}))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_wrong_values_are_refused(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(RecipeError) as caught:
            check_argument("export", name, value)
        assert (caught.value.code, caught.value.fields["name"]) == ("argument-invalid", name)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_checks_its_arguments_before_it_opens_anything(verb: str, tmp_path: Path) -> None:
    """The files do not exist: an error of theirs would come first."""
    missing = tmp_path / "missing"
    required = {name: missing for name, one in parameters(verb).items() if one.default is inspect.Parameter.empty}
    for name in parameters(verb):
        if name in READ_ELSEWHERE:
            continue
        value = dict.fromkeys(((verb, "batch") for verb in ("benchmark", "compare", "load_test", "zoo")), 0).get(
            (verb, name), WRONG[name][0]
        )
        with raises(RecipeError, "argument-invalid", verb=verb, name=name, value=value):
            getattr(tk, verb)(**{**required, name: value})
    assert not list(tmp_path.iterdir())


def test_none_is_refused_where_the_signature_has_none() -> None:
    with raises(RecipeError, "argument-invalid", name="eval_images", value=0):
        tk.evaluate("missing.onnx", "missing.yaml", eval_images=0)
    with pytest.raises(TrtkitError) as caught:
        tk.evaluate("missing.onnx", "missing.yaml", eval_images=None)
    assert caught.value.code != "argument-invalid"
    with raises(RecipeError, "argument-invalid", name="calibration_images", value=None):
        tk.calibrate("missing.onnx", calibration_images=None)  # type: ignore[arg-type]


def test_python_s_own_errors_of_a_call_name_the_verb() -> None:
    with pytest.raises(TypeError, match=r"evaluate\(\)"):
        tk.evaluate("a.onnx")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"evaluate\(\).*eval_image'"):
        tk.evaluate("a.onnx", "b.yaml", eval_image=3)  # type: ignore[call-arg]


@given(st.integers(-3, MAX_BATCH + 3))
def test_numpy_s_numbers_are_those_of_python(number: int) -> None:
    def check(value: Any) -> tuple[Any, Any]:
        try:
            checked = check_argument("export", "batch", value)
        except RecipeError as error:
            return error.code, error.fields["name"]
        return checked, type(checked)

    assert check(number) == check(np.int64(number))
    assert check(number) == ((number, int) if 1 <= number <= MAX_BATCH else ("argument-invalid", "batch"))


@given(st.lists(st.integers(-1, 700), max_size=4))
def test_a_size_is_one_side_or_two(sides: list[int]) -> None:
    valid = len(sides) == 2 and min(sides) >= 1
    for value in (tuple(sides), sides, np.array(sides, np.int32)):
        if valid:
            assert check_argument("export", "imgsz", value) == tuple(sides)
        else:
            with pytest.raises(RecipeError):
                check_argument("export", "imgsz", value)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("evaluate a.onnx b.yaml --imgsz=0", lambda: tk.evaluate("a.onnx", "b.yaml", imgsz=0)),
        ("evaluate a.onnx b.yaml --imgsz=-32", lambda: tk.evaluate("a.onnx", "b.yaml", imgsz=-32)),
        ("calibrate a.onnx b.yaml --imgsz=320,0", lambda: tk.calibrate("a.onnx", "b.yaml", imgsz=(320, 0))),
        ("export a.pt --imgsz=1,2,3", lambda: tk.export("a.pt", imgsz=(1, 2, 3))),  # type: ignore[arg-type]
        ("compare a.pt b.yaml --batch=1,0", lambda: tk.compare("a.pt", "b.yaml", batch=(1, 0))),
        ("compare a.pt b.yaml --end2end --eval-images=0", lambda: tk.compare("a.pt", "b.yaml", eval_images=0)),
        ("search a.pt b.yaml --max-drop=5", lambda: tk.search("a.pt", "b.yaml", max_drop=5.0)),
        ("sweep a.pt b.yaml --calibration-images=8,0", lambda: tk.sweep("a.pt", "b.yaml", calibration_images=(8, 0))),
        ("sensitivity a.pt b.yaml --worst=-1", lambda: tk.sensitivity("a.pt", "b.yaml", worst=-1)),
        ("examine b.yaml --fraction=7", lambda: tk.examine("b.yaml", fraction=7.0)),
        ("export a.pt --device=gpu0 --format=onnx", lambda: tk.export("a.pt", device="gpu0", format="onnx")),
        ("benchmark a.onnx --seconds=0", lambda: tk.benchmark("a.onnx", seconds=0.0)),
    ],
)
def test_the_command_line_says_the_same_in_its_words(words: str, call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        call()
    assert main(words.split()) == 2
    assert capsys.readouterr().err.split() == f"trtkit: {describe_error(caught.value)}".split()


@pytest.mark.parametrize("option", ["--conf=25", "--iou=7", "--max-det=0"])
def test_predict_checks_before_it_opens_the_file(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "missing.onnx", "missing.jpg", option]) == 2
    assert option.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--batch=x", "--imgsz=320x", "--workspace=all", "--imgsz=1.5"])
def test_words_that_are_no_numbers_name_what_is_expected(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", "a.pt", option])
    assert stopped.value.code == 2
    name = option.split("=")[0].removeprefix("--")
    assert " ".join(ARGUMENTS[name].expected.split()) in " ".join(capsys.readouterr().err.split())

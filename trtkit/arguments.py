"""Arguments of verbs: one rule for each name, the same in every verb, in a `Recipe` and on the command line."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from trtkit.errors import RecipeError

__all__ = [
    "ARGUMENTS",
    "COMPATIBILITIES",
    "DEVICE_NAME",
    "FORMATS",
    "PRECISIONS",
    "REFINEMENTS",
    "VERB_ARGUMENTS",
    "WEIGHTS",
    "Rule",
    "check_argument",
    "check_arguments",
    "check_values",
    "find_rule",
    "is_verb",
    "to_path",
]

FORMATS = ("engine", "onnx")

PRECISIONS = ("fp32", "fp16", "int8")

COMPATIBILITIES = ("same_compute_capability", "ampere_plus", "version")
"""The machines that run an engine besides those like its builder's: other GPUs, or later TensorRT versions."""

WEIGHTS = ("refittable", "stripped")
"""Weights that can be replaced in the engine, or that are left out until `refit_engine` puts them in."""

REFINEMENTS = ("ranges",)
"""What a calibration refines beyond its algorithm."""

MAX_SIDE = 16384
"""Largest side of an image, pixels: one input of 16384 x 16384 takes 3.2 GB; beyond that it is a slip."""

MAX_BATCH = 4096
"""Largest batch: at 640 x 640 its input takes 20 GB."""

MAX_AUX_STREAMS = 16
"""Most streams beside the first: a head has three branches at each of three to four levels."""

MAX_BUILDS = 100
"""Most builds of one engine: each takes from seconds to half an hour."""

MAX_CLIENTS = 1024
"""Most clients of a load test: each is a thread."""

DEVICE_NAME = re.compile(r"(?P<kind>cuda|dla)(:(?P<index>\d+))?|sm_?(?P<sm>\d{2,3})|(?P<gpu>\d+)|(?P<cpu>cpu)", re.I)
"""Device names: "0", "cuda", "cuda:1", "cpu", "dla:0", "sm89"."""

MAX_SHOWN = 60
"""Most characters of a value in a message."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What one kind of argument may be.

    Attributes:
        convert: Returns the value in its plain type; raises TypeError, ValueError or OverflowError for any other value.
        expected: The values it may have, as in "it must be ...".
        example: A valid value, as code.
    """

    convert: Callable[[Any], Any]
    expected: str
    example: str


def find_rule(verb: str, name: str) -> Rule | None:
    """The rule of a verb's argument; None for what its own reader checks: models, data, calibrations.

    Args:
        verb: The function's name.
        name: The argument's name.
    """
    return VERB_ARGUMENTS.get((verb, name)) or ARGUMENTS.get(name)


def check_argument(verb: str, name: str, value: Any, rule: Rule | None = None) -> Any:
    """Check one argument by the rule of its name, and convert it to a plain type (NumPy's numbers to Python's).

    Args:
        verb: The function, for messages and for the few rules that depend on it.
        name: The argument's name.
        value: Its value.
        rule: The rule; None takes that of the name.

    Returns:
        The value in its plain type.

    Raises:
        RecipeError: The value is of another type or out of range.
    """
    rule = rule or find_rule(verb, name)
    assert rule is not None, name
    try:
        return rule.convert(value)
    except (TypeError, ValueError, OverflowError) as error:
        shown = repr(value)
        shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
        raise RecipeError(
            f"{verb.replace('_', ' ')} with {name}={shown}",
            f"{name} must be {rule.expected}",
            f"use e.g. {name}={rule.example}",
            code="argument-invalid",
            verb=verb,
            name=name,
            value=value,
            expected=rule.expected,
        ) from error


def check_values(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of a verb by the rules of their names; None is accepted where the signature says so.

    Args:
        function: The verb.
        values: Arguments by name; names that the verb does not have, or that have no rule, are returned as they are.

    Returns:
        The arguments, in plain types.

    Raises:
        RecipeError: A value is of another type or out of range.
    """
    verb, parameters = function.__name__, inspect.signature(function).parameters
    checked = dict(values)
    for name, value in values.items():
        if name not in parameters or (value is None and "None" in str(parameters[name].annotation)):
            continue
        rule = find_rule(verb, name)
        if rule is not None:
            checked[name] = check_argument(verb, name, value, rule)
    return checked


P = ParamSpec("P")
R = TypeVar("R")

_VERBS: set[str] = set()


def is_verb(function: Callable[..., Any]) -> bool:
    """Whether a function is decorated with `check_arguments`.

    Args:
        function: The function.
    """
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}" in _VERBS


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a verb so that its arguments are checked by `check_values` before it starts.

    Args:
        function: The verb.
    """
    signature = inspect.signature(function)
    _VERBS.add(f"{function.__module__}.{function.__qualname__}")

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            # Python's own error names the function.
            return function(*args, **kwargs)
        bound.arguments.update(check_values(function, bound.arguments))
        return function(*bound.args, **bound.kwargs)

    return checked


# Kinds of rules


def _is_bool(value: Any) -> bool:
    # numpy.bool_ by name: this module imports nothing heavy.
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")


def _to_bool(value: Any) -> bool:
    if value not in (False, True):
        raise ValueError("neither True nor False")
    return bool(value)


def _to_str(value: Any) -> str:
    # A subclass may have its own __str__.
    return str.__str__(os.fsdecode(value))


def to_path(value: Any) -> str:
    """A path as text.

    Raises:
        TypeError, ValueError: It is none, or no file can have it.
    """
    text = _to_str(value)
    if not text or "\0" in text:
        raise ValueError("no file has such a name")
    return text


def _to_device(value: Any) -> int | str:
    """A number if the text is one: a command line has only text."""
    if _is_bool(value):
        raise TypeError("a truth value")
    text = _to_str(value).strip() if isinstance(value, str) else str(int(operator.index(value)))
    if not DEVICE_NAME.fullmatch(text):
        raise ValueError("no device name")
    return int(text) if text.isdecimal() else text


def _to_imgsz(value: Any) -> int | tuple[int, int]:
    sides = _one_or_several(_SIDE, example="").convert(value)
    if isinstance(sides, tuple) and len(sides) != 2:
        raise ValueError("neither one side nor two")
    return sides  # type: ignore[no-any-return]


def _to_callable(value: Any) -> Any:
    if not callable(value):
        raise TypeError("not callable")
    return value


def _to_token(value: Any) -> Any:
    _to_callable(getattr(value, "is_set", None))
    return value


def _to_executor(value: Any) -> Any:
    _to_callable(getattr(value, "submit", None))
    _to_callable(getattr(value, "scheduler_info", None))
    return value


def _to_mapping(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError("not a mapping")
    return value


def _to_numbers(value: Any) -> dict[str, float]:
    """A mapping of names to numbers; a command line has them as text."""
    return {_to_str(name): float(number) for name, number in _to_mapping(value).items()}


def _is_single(value: Any) -> bool:
    """Whether a value is one and not several; NumPy's numbers have `__iter__`, and so have strings."""
    return isinstance(value, (str, bytes)) or not hasattr(value, "__iter__") or getattr(value, "ndim", 1) == 0


def _count(least: int, most: int | None = None, *, example: int | None = None) -> Rule:
    """Whole numbers; neither True nor 2.0."""

    def convert(value: Any) -> int:
        if _is_bool(value):
            raise TypeError("a truth value")
        number = int(operator.index(value))
        if number < least or (most is not None and number > most):
            raise ValueError("out of range")
        return number

    limits = f"from {least} to {most}" if most is not None else f"of at least {least}"
    return Rule(
        convert=convert, expected=f"a whole number {limits}", example=str(least if example is None else example)
    )


def _number(accepts: Callable[[float], bool], expected: str, example: float) -> Rule:
    """Finite numbers; neither True nor "0.5"."""

    def convert(value: Any) -> float:
        if _is_bool(value) or isinstance(value, (str, bytes)):
            raise TypeError("no number")
        number = float(value)
        if not (math.isfinite(number) and accepts(number)):
            raise ValueError("out of range")
        return number

    return Rule(convert=convert, expected=f"a number {expected}", example=str(example))


def _choice(names: tuple[str, ...]) -> Rule:
    def convert(value: Any) -> str:
        text = _to_str(value)
        if text not in names:
            raise ValueError("no such name")
        return text

    return Rule(convert=convert, expected=f"one of {', '.join(map(repr, names))}", example=repr(names[0]))


def _several(rule: Rule, *, example: str, least: int = 1, unique: bool = False) -> Rule:
    """One value of a rule or a sequence of them, as a tuple."""

    def convert(value: Any) -> tuple[Any, ...]:
        values = tuple(rule.convert(one) for one in ((value,) if _is_single(value) else value))
        if len(values) < least or (unique and len(set(values)) < len(values)):
            raise ValueError("too few values, or one of them twice")
        return values

    twice = ", each of them once" if unique else ""
    return Rule(convert=convert, expected=f"{rule.expected}, or a list of such{twice}", example=example)


def _one_or_several(rule: Rule, *, example: str) -> Rule:
    """One value of a rule as it is, or a sequence of them as a tuple."""
    several = _several(rule, example=example)

    def convert(value: Any) -> Any:
        return rule.convert(value) if _is_single(value) else several.convert(value)

    return dataclasses.replace(several, convert=convert)


_SIDE = _count(1, MAX_SIDE)
_BATCH = _count(1, MAX_BATCH)
_COUNT = _count(1, example=64)
_PERCENTILE = _number(lambda value: 0 < value <= 100, "above 0 and at most 100", 99.99)
_TEXT = Rule(convert=_to_str, expected="text", example="'val'")
_PATH = Rule(convert=to_path, expected="a path", example="'runs/int8'")
_FLAG = Rule(convert=_to_bool, expected="True or False", example="True")
_PATTERNS = _several(Rule(convert=_to_str, expected="a name pattern", example=""), example="['/model.23/*']", least=0)

_FLAGS = (
    "build", "decode", "dynamic", "end2end", "half", "histograms", "implicit", "int8", "isolate", "layers", "nms",
    "overwrite", "protect", "repair", "simplify", "space_to_depth", "stratify", "verify",
)  # fmt: skip

ARGUMENTS: Mapping[str, Rule] = {
    **dict.fromkeys(_FLAGS, _FLAG),
    **dict.fromkeys(("output", "cache_dir"), _PATH),
    **dict.fromkeys(("against", "algorithm", "backend", "label", "split", "task"), _TEXT),
    **dict.fromkeys(("calibration_images", "eval_images", "probe_images"), _COUNT),
    **dict.fromkeys(("max_det", "runs", "trials", "threads"), _count(1, example=8)),
    **dict.fromkeys(("stage_runs", "warmup", "worst"), _count(0, example=3)),
    "algorithms": _several(_TEXT, example="('minmax', 'entropy')"),
    "backends": _several(_TEXT, example="('onnxruntime',)", unique=True),
    "aux_streams": _count(0, MAX_AUX_STREAMS, example=4),
    "batch": _BATCH,
    "builds": _count(1, MAX_BUILDS, example=3),
    "compatibility": _choice(COMPATIBILITIES),
    "count": _COUNT,
    "cancel": Rule(convert=_to_token, expected="a token with is_set()", example="threading.Event()"),
    "candidates": Rule(convert=_to_mapping, expected="a mapping of names to models", example="{'qat': 'qat.onnx'}"),
    "concurrency": _one_or_several(_count(1, MAX_CLIENTS, example=4), example="(1, 2, 4)"),
    "conf": _number(lambda value: 0 <= value < 1, "of at least 0 and below 1", 0.25),
    "device": Rule(convert=_to_device, expected="0, 'cuda:1', 'cpu', 'dla:0', 'sm89' or the like", example="0"),
    "format": _choice(FORMATS),
    "executor": Rule(
        convert=_to_executor, expected="a distributed.Client, such as tk.open_executor gives", example="client"
    ),
    "fraction": _number(lambda value: 0 < value <= 1, "above 0 and at most 1", 0.5),
    "image_paths": _several(_PATH, example="['a.jpg']"),
    "imgsz": Rule(
        convert=_to_imgsz,
        expected=f"one side or (height, width) in whole pixels from 1 to {MAX_SIDE}",
        example="640",
    ),
    "iou": _number(lambda value: 0 <= value <= 1, "from 0 to 1", 0.7),
    "keep": _PATTERNS,
    "max_drop": _number(lambda value: 0 <= value < 1, "of at least 0 and below 1", 0.005),
    "max_noise": _number(lambda value: 0 <= value < 1, "of at least 0 and below 1", 0.002),
    "metrics": Rule(convert=_to_numbers, expected="a mapping of names to numbers", example="{'mAP50-95': 0.51}"),
    "offline_seconds": _number(lambda value: value >= 0, "of seconds of at least 0", 1.0),
    "opt_level": _count(0, 5, example=3),
    "percentile": _PERCENTILE,
    "percentiles": _several(_PERCENTILE, example="(99.9, 99.99)"),
    "precisions": _several(_choice(PRECISIONS), example="('fp32', 'int8')", unique=True),
    "progress": Rule(convert=_to_callable, expected="a function that takes an Event", example="tk.ProgressLine()"),
    "refine": _choice(REFINEMENTS),
    "resamples": _count(2, example=1000),
    "samples": _several(_PATH, example="['street.jpg']"),
    "seconds": _number(lambda value: value > 0, "of seconds above 0", 5.0),
    "seed": _count(0),
    "weights": _choice(WEIGHTS),
    "sizes": _several(_SIDE, example="(320, 640)", unique=True),
    "target": dataclasses.replace(_TEXT, example="'triton'"),
    "workspace": _number(lambda value: value > 0, "of GiB above 0", 4.0),
}
"""The rule of each argument, the same in every verb."""

VERB_ARGUMENTS: Mapping[tuple[str, str], Rule] = {
    **dict.fromkeys(
        (("benchmark", "batch"), ("compare", "batch"), ("load_test", "batch"), ("zoo", "batch")),
        _one_or_several(_BATCH, example="(1, 8)"),
    ),
    ("sweep", "calibration_images"): _several(_COUNT, example="(8, 32, 128)"),
    ("zoo", "data"): Rule(
        convert=_to_mapping, expected="a mapping of tasks to data sets", example="{'detect': 'coco.yaml'}"
    ),
}
"""Rules by verb and argument, where the argument takes several values."""

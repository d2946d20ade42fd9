"""Command-line options of the verbs: names and defaults from the function's signature, help and types from a table.

An argument means the same in every verb, so that `OPTIONS` has one entry per argument name; `VERB_OPTIONS` has the few
whose text depends on the verb. Docstrings are for Python and are not shown here.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trtkit.arguments import COMPATIBILITIES, REFINEMENTS, WEIGHTS, Rule, find_rule
from trtkit.backends import list_backends
from trtkit.calibration import ALGORITHMS
from trtkit.cli.parser import describe_choice
from trtkit.data.data_yaml import SPLITS
from trtkit.deployment import list_targets
from trtkit.models.model import TASKS
from trtkit.progress import is_planning
from trtkit.tasks.base import REGISTERED_TASKS

__all__ = ["DEVICE", "OPTIONS", "VERB_OPTIONS", "Option", "add_options", "call_with_options", "find_option"]

RUN_CONTROL = ("progress", "cancel", "executor")
"""Arguments that control a run and are no options of their names; `--scheduler` opens the executor."""


def parse_numbers(text: str) -> int | tuple[int, ...]:
    """ "8" as 8, "1,8" as (1, 8)."""
    numbers = tuple(int(part) for part in text.split(","))
    return numbers[0] if len(numbers) == 1 else numbers


def parse_counts(text: str) -> tuple[int, ...]:
    """ "8" as (8,), "8,32" as (8, 32)."""
    return tuple(int(part) for part in text.split(","))


def parse_floats(text: str) -> tuple[float, ...]:
    """ "99.9,99.99" as (99.9, 99.99)."""
    return tuple(float(part) for part in text.split(","))


def parse_size(text: str) -> int | tuple[int, ...]:
    """ "640" as 640; "480,640" and "480x640" as (480, 640)."""
    return parse_numbers(text.replace("x", ","))


def parse_device(text: str) -> int | str:
    """ "0" as 0; "cuda:0" and "sm89" as they are."""
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else text


def _parse_words(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A parser of comma-separated words, each one of `choices`."""

    def parse(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        unknown = [word for word in words if word not in choices]
        if unknown:
            raise argparse.ArgumentTypeError(describe_choice(unknown[0], choices))
        return words

    return parse


@dataclasses.dataclass(frozen=True)
class Option:
    """How the command line shows and reads one argument.

    Attributes:
        help: The help text; the default is appended where the text does not have one.
        metavar: The placeholder of the value.
        type: Converts the value.
        choices: Returns the accepted values; it is called when the parser is made, so that registered ones are there.
        many: The value is a comma-separated list of `choices`.
        repeat: The option can be repeated and collects its values.
        several: The option takes one value or several words, such as the files that a shell makes of a pattern.
        switch: The option has no value: `--name`, and `--no-name` if the default is not false.
        pairs: The option, in the singular, can be repeated and collects NAME=VALUE pairs.
    """

    help: str
    metavar: str | None = None
    type: Callable[[str], Any] = str
    choices: Callable[[], Iterable[Any]] | None = None
    many: bool = False
    repeat: bool = False
    several: bool = False
    switch: bool = False
    pairs: bool = False


def _count(text: str) -> Option:
    return Option(text, "N", int)


def _counts(text: str) -> Option:
    return Option(text, "N[,N...]", parse_numbers)


def _number(text: str) -> Option:
    return Option(text, "X", float)


def _switch(text: str) -> Option:
    return Option(text, switch=True)


def _split(text: str) -> Option:
    return Option(text, choices=lambda: SPLITS)


DEVICE = Option("GPU index or name, such as 0 or cuda:1 [default: the first GPU]", "DEVICE", parse_device)

TASK = Option("task of the labels", choices=lambda: dict.fromkeys((*TASKS, *REGISTERED_TASKS)))

OPTIONS: Mapping[str, Option] = {
    "against": _split("split to compare the calibration images with"),
    "algorithm": Option("calibration algorithm", choices=lambda: ALGORITHMS),
    "algorithms": Option("calibration algorithms to compare [default: all]", choices=lambda: ALGORITHMS, many=True),
    "artifact": Option("an .engine file", "ENGINE"),
    "aux_streams": _count(
        "streams beside the first for layers that do not depend on each other [default: TensorRT's choice]"
    ),
    "baseline": Option("the engine to compare with, such as FP16's", "BASELINE"),
    "backend": Option("backend [default: the best one on this machine]", choices=list_backends),
    "backends": Option("backends [default: the best one on this machine]", choices=list_backends, many=True),
    "batch": _count("images per run"),
    "build": _switch("build engines [default: if a backend can build on this machine]"),
    "builds": _count("builds of the engine, of which the fastest that agrees with ONNX Runtime is kept"),
    "cache_dir": Option("cache directory; an interrupted run resumes from it", "FOLDER"),
    "calibration": Option("folder of a saved calibration [default: calibrate on DATA]", "FOLDER"),
    "candidates": Option("a model, ONNX file or engine to measure beside the precisions", "NAME=PATH", pairs=True),
    "calibration_images": _count("maximum number of calibration images"),
    "compatibility": Option(
        "machines that run the engine besides those like this one [default: none]", choices=lambda: COMPATIBILITIES
    ),
    "concurrency": _counts("clients that send requests at the same time"),
    "conf": _number("confidence threshold"),
    "data": Option("data.yaml of a data set; for classify, a folder of class folders", "DATA", several=True),
    "decode": _switch("decode boxes and scores in the graph; --no-decode returns the head's raw maps"),
    "device": DEVICE,
    "dynamic": _switch("dynamic batch, height and width [default: for INT8 engines]"),
    "engine": Option("an .engine file, or the parquet file of a layer table", "ENGINE"),
    "end2end": _switch("one-to-one head of a YOLO26 or YOLOv10 checkpoint, which needs no NMS"),
    "eval_images": _count("maximum number of evaluation images [default: the whole split]"),
    "format": Option("output format", choices=lambda: ("engine", "onnx")),
    "fraction": _number("share of the split to draw calibration images from, above 0 to 1"),
    "half": _switch("FP16 precision"),
    "histograms": _switch("keep histograms, which other algorithms need [default: if --algorithm does]"),
    "image_paths": Option("image file to examine instead of a sample; can be repeated", "FILE", repeat=True),
    "implicit": _switch("calibrate with TensorRT's own min-max calibrator (TensorRT up to 10)"),
    "imgsz": Option("image size, one side or height,width, pixels [default: the model's]", "SIDE|H,W", parse_size),
    "int8": _switch("INT8 precision, by Q/DQ nodes in the graph"),
    "iou": _number("IoU threshold of class-wise NMS"),
    "isolate": _switch("build in a child process, which contains a crash of TensorRT"),
    "keep": Option("name pattern of nodes to keep in FP16; can be repeated", "PATTERN", repeat=True),
    "label": Option("name of the precision assignment in the result", "NAME"),
    "layers": _switch("name the layers where a difference begins, by a second build with further outputs"),
    "max_det": _count("maximum number of detections per image"),
    "max_drop": _number("largest accepted loss of the metric"),
    "max_noise": _number("stop once every mean is known within this share"),
    "metrics": Option("measured accuracy, for model.json; can be repeated", "NAME=VALUE", pairs=True),
    "model": Option("a .pt or .onnx file", "MODEL"),
    "models": Option(".pt or .onnx files, or folders of them", "MODEL", several=True),
    "nms": _switch("put NMS into the graph"),
    "offline_seconds": _number("time of each engine's runs offline (back to back), seconds; 0 leaves them out"),
    "opt_level": Option(
        "TensorRT's optimization level, from a quick build to a fast engine [default: 3]",
        type=int,
        choices=lambda: range(6),
    ),
    "onnx": Option("the graph it was built from [default: the .onnx file of the same name beside it]", "FILE"),
    "output": Option("folder of the result", "FOLDER"),
    "overwrite": _switch("replace an existing output"),
    "percentile": _number("share of values that percentile does not clip, percent [default: 99.999]"),
    "percentiles": Option("percentiles to compare, percent", "X[,X...]", parse_floats),
    "precisions": Option("precisions to compare", choices=lambda: ("fp32", "fp16", "int8"), many=True),
    "probe_images": _count("number of images that layer noise is measured on"),
    "protect": _switch("exclude the layers that INT8 excludes by default, such as attention"),
    "reference": Option(
        "ONNX file of the same export, for the expected detections where the engine does not run here", "FILE"
    ),
    "refine": Option(
        "what to measure beyond ranges, for a more accurate INT8 [default: nothing]", choices=lambda: REFINEMENTS
    ),
    "repair": _switch("equalization, range selection and bias correction before excluding layers"),
    "resamples": _count("number of bootstrap resamples"),
    "runner": Option("an .engine or .onnx file", "FILE"),
    "runs": _count("maximum number of timed runs per file and batch"),
    "samples": Option(
        "up to three images whose detections the check expects [default: embedded images of digits]",
        "IMAGE",
        several=True,
    ),
    "seconds": _number("maximum time per file and batch, seconds"),
    "seed": _count("seed of all random choices"),
    "simplify": _switch("simplify the graph with onnxslim"),
    "sizes": Option("image sides, pixels [default: each model's own]", "N[,N...]", parse_counts),
    "stage_runs": _count("maximum number of timed calls of predict per file and batch; 0 leaves them out"),
    "space_to_depth": _switch("pixels in blocks as the input of an INT8 or FP16 engine, which trtkit's runner makes"),
    "split": _split("split to evaluate on"),
    "stratify": _switch("draw images with the class shares of the split"),
    "target": Option(f"deployment target: {', '.join(list_targets())}", "TARGET", choices=list_targets),
    "task": TASK,
    "threads": _count("images processed in parallel [default: one per core]"),
    "trials": _count("maximum number of trials"),
    "verify": _switch("compare the engine with ONNX Runtime before it is written, where it runs here"),
    "warmup": _count("warm-up runs per file and batch"),
    "weights": Option("weights that can be replaced, or are left out of the engine", choices=lambda: WEIGHTS),
    "workspace": _number("memory limit of the builder, GiB [default: TensorRT's own]"),
    "worst": _count("number of worst layers to measure the metric for"),
}
"""Options by argument name."""

SCHEDULER = (
    "run on a Dask scheduler's workers: tls://HOST:PORT, a scheduler's JSON file, or local:N for N processes here; "
    "results are the same (docs/scale.md)"
)

IMAGES = Option(
    "data.yaml of a data set (for classify, a folder of class folders); or images, folders or patterns of images",
    "DATA",
    several=True,
)

CALIBRATION_SPLIT = _split("split of the calibration images [default: train, else val]")

VERB_OPTIONS: Mapping[tuple[str, str], Option] = {
    ("benchmark", "batch"): _counts("batch sizes to time"),
    ("benchmark", "images"): Option(
        "images, folders or patterns to time the stages of predict on [default: random ones]", "IMAGE", several=True
    ),
    ("calibrate", "batch"): _count("images per run [default: 2]"),
    ("calibrate", "data"): IMAGES,
    ("calibrate", "device"): Option("cpu, or a GPU of ONNX Runtime [default: the first GPU, else cpu]", "DEVICE"),
    ("calibrate", "split"): CALIBRATION_SPLIT,
    ("compare", "backend"): Option(
        "backend; onnxruntime builds no engine [default: the best one on this machine]", choices=list_backends
    ),
    ("compare", "batch"): _counts("batch sizes to time; engines are built for the largest"),
    ("compare", "conf"): _number(
        "confidence threshold in use with FP16; INT8's for the same precision and recall is found"
    ),
    ("compare", "device"): Option(
        "GPU index or name, or sm89 to build for a GPU elsewhere [default: the first GPU]", "DEVICE", parse_device
    ),
    ("compare", "dynamic"): _switch("dynamic batch, height and width [default: for several batches]"),
    ("compare", "max_drop"): _number("largest accepted loss of a metric, which verdicts are decided against"),
    ("compare", "output"): Option("folder of the files and the report", "FOLDER"),
    ("deploy", "artifact"): Option(
        "an .engine or .onnx file; of several, each gets a folder inside FOLDER", "FILE", several=True
    ),
    ("deploy", "output"): Option("folder to write [default: beside the file]", "FOLDER"),
    ("evaluate", "batch"): _count("images per run [default: the file's largest batch]"),
    ("evaluate", "conf"): _number("confidence threshold [default: 0.001, for obb 0.01]"),
    ("examine", "data"): IMAGES,
    ("examine", "model"): Option("a .pt or .onnx file, whose detections on the images are counted", "MODEL"),
    ("examine", "split"): CALIBRATION_SPLIT,
    ("export", "batch"): _count("largest batch"),
    ("export", "conf"): _number("with --nms, confidence threshold fixed in the file"),
    ("export", "iou"): _number("with --nms, IoU threshold fixed in the file"),
    ("export", "max_det"): _count("rows of NMS in the graph or of the one-to-one head"),
    ("export", "calibration"): Option(
        "folder of a saved calibration, or a TensorRT .cache file [default: calibrate on --data]", "PATH"
    ),
    ("export", "data"): Option(
        "images for calibration (INT8) or for the overflow check (FP16): data.yaml, or images, folders or patterns",
        "DATA",
        several=True,
    ),
    ("export", "device"): Option(
        "GPU index or name, dla:0, or sm89 to build for a GPU elsewhere [default: the first GPU]",
        "DEVICE",
        parse_device,
    ),
    ("export", "output"): Option("file to write [default: beside the model]", "FILE"),
    ("load_test", "batch"): _counts("images per request"),
    ("load_test", "runner"): Option("triton+http://HOST:PORT/MODEL, or an .engine or .onnx file", "ADDRESS"),
    ("load_test", "seconds"): _number("time per batch and concurrency, seconds"),
    ("load_test", "warmup"): _count("requests of each client before the measurement"),
    ("open", "backend"): Option("backend [default: the one that the file is for]", choices=list_backends),
    ("open", "task"): dataclasses.replace(TASK, help="task, for a file that does not name it, such as a bare plan"),
    ("search", "backend"): Option(
        "backend to time engines with; onnxruntime uses the cost model [default: engines if they run here]",
        choices=list_backends,
    ),
    ("search", "batch"): _count("images per run, for evaluation and latency"),
    ("sensitivity", "data"): dataclasses.replace(IMAGES, help=f"{IMAGES.help}, with --worst 0"),
    ("sensitivity", "split"): _split("split of the probe images"),
    ("sweep", "calibration_images"): Option("numbers of calibration images to compare", "N[,N...]", parse_counts),
    ("why_slow", "runs"): _count("runs over which each layer is timed, where the engines run here"),
    ("verify", "data"): dataclasses.replace(IMAGES, help=f"{IMAGES.help} [default: the embedded set]"),
    ("verify", "eval_images"): _count("maximum number of images"),
    ("zoo", "batch"): _counts("batch sizes to time [default: 1; without MODEL 1,8]"),
    ("zoo", "data"): Option(
        "data.yaml of a data set of a task; for classify, a folder of class folders [default: embedded images]",
        "TASK=DATA",
        pairs=True,
    ),
    ("zoo", "device"): Option("GPU index or name of engines [default: all GPUs]", "DEVICE", parse_device),
    ("zoo", "dynamic"): _switch("dynamic batch, height and width [default: for several batches]"),
    ("zoo", "models"): Option(
        ".pt or .onnx files, or folders of them [default: YOLOv8n of each task in --data, as in Ultralytics' guide]",
        "MODEL",
        several=True,
    ),
    ("zoo", "output"): Option("folder of the rows and tables; an interrupted zoo goes on there", "FOLDER"),
    ("zoo", "overwrite"): _switch("measure rows again that are done"),
}
"""Options by verb and argument name, where the text or the type depends on the verb."""


def find_option(verb: str, name: str) -> Option:
    """The option of a verb's argument.

    Args:
        verb: The function's name.
        name: The argument's name.
    """
    return VERB_OPTIONS.get((verb, name)) or OPTIONS[name]


class _Switch(argparse.BooleanOptionalAction):
    """`--name` and `--no-name`, without Python's default in the help."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.help = settings.get("help")


class _StorePaths(argparse.Action):
    """Stores one word as it is, several as a tuple."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


class _Pairs(argparse.Action):
    """NAME=VALUE, repeated, as a mapping."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: Any = None
    ) -> None:
        name, separator, value = str(values).partition("=")
        known = dict(getattr(namespace, self.dest) or {})
        if not (name and separator and value):
            raise argparse.ArgumentError(self, f"{values!r} is not {self.metavar}")
        if name in known:
            raise argparse.ArgumentError(self, f"{name!r} is given twice")
        setattr(namespace, self.dest, {**known, name: value})


def add_options(
    parser: argparse.ArgumentParser,
    function: Callable[..., Any],
    *,
    positional: Sequence[str] = (),
    without: Iterable[str] = (),
) -> None:
    """Add an option for each argument of a verb.

    Args:
        parser: Receives the options.
        function: The verb.
        positional: Arguments that can also be given by position, in this order.
        without: Arguments to leave out.
    """
    verb, parameters = function.__name__, inspect.signature(function).parameters
    for name in positional:
        option = find_option(verb, name)
        # The option of the same name has the value if the word is missing.
        several: dict[str, Any] = {"nargs": "*", "action": _StorePaths} if option.several else {"nargs": "?"}
        action = parser.add_argument(
            name, **several, default=argparse.SUPPRESS, metavar=option.metavar, help=_escape(option.help)
        )
        if option.choices is not None:
            action.choices = tuple(option.choices())
    for name, parameter in parameters.items():
        if name in RUN_CONTROL or name in without:
            continue
        option = find_option(verb, name)
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        text = argparse.SUPPRESS if name in positional else _escape(option.help + _format_default(option, default))
        flag = name.removesuffix("s") if option.pairs else name
        settings = _settings(option, default, find_rule(verb, name))
        parser.add_argument(f"--{flag.replace('_', '-')}", dest=name, help=text, **settings)
    if "executor" in parameters and "executor" not in without:
        parser.add_argument("--scheduler", metavar="ADDRESS", help=_escape(SCHEDULER))
    if loads_model(function) and "model" not in without:
        option = find_option(verb, "end2end")
        parser.add_argument("--end2end", help=_escape(option.help), **_settings(option, False))
    required = {
        name: find_option(verb, name).metavar
        for name in positional
        if parameters[name].default is inspect.Parameter.empty
    }
    parser.set_defaults(required=required, verb=function)


def add_output(parser: argparse.ArgumentParser, default: str | None, text: str) -> None:
    """Add `--output FOLDER`; without a default nothing is saved."""
    shown = "nothing is saved" if default is None else default
    parser.add_argument("--output", default=default, metavar="FOLDER", help=f"{text} [default: {shown}]")
    # `main` checks the folder before the work.
    parser.set_defaults(saves_to_folder=True)


def loads_model(function: Callable[..., Any]) -> bool:
    """Whether a verb takes a model, and not the head of a checkpoint: in Python that is chosen by `load(end2end=)`."""
    parameters = inspect.signature(function).parameters
    return "model" in parameters and "end2end" not in parameters


def call_with_options(function: Callable[..., Any], values: argparse.Namespace, **more: Any) -> Any:
    """Call a verb with the parsed options it has, and with `more`; `--end2end` loads the model with that head."""
    known = inspect.signature(function).parameters
    arguments = {name: value for name, value in vars(values).items() if name in known}
    if loads_model(function) and values.end2end and arguments["model"] is not None:
        from trtkit.models import load

        arguments["model"] = load(arguments["model"], end2end=True)
    scheduler = getattr(values, "scheduler", None)
    # A plan starts no workers; those of another machine say what can be built there.
    if scheduler is None or (is_planning() and scheduler.partition(":")[0] == "local"):
        return function(**arguments | more)
    from trtkit.executor import open_executor

    with open_executor(scheduler) as executor:
        return function(**arguments | more, executor=executor)


def make_reader(parse: Callable[[str], Any], rule: Rule | None) -> Callable[[str], Any]:
    """A converter for argparse that says what is expected where a word can't be parsed.

    Args:
        parse: The converter of the word.
        rule: The argument's rule, if it has one; ranges are checked after parsing, as in Python.
    """

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            expected = str(error) if rule is None else f"it must be {rule.expected}"
            raise argparse.ArgumentTypeError(f"{text!r}: {expected}") from None

    return read


def _settings(option: Option, default: Any, rule: Rule | None = None) -> dict[str, Any]:
    """The arguments of `ArgumentParser.add_argument`."""
    if option.switch:
        return {"action": "store_true" if default is False else _Switch, "default": default}
    if option.repeat:
        # argparse appends to a copy of the default, which must be a list.
        return {
            "action": "append",
            "default": list(default) if default is not None else None,
            "metavar": option.metavar,
        }
    if option.several:
        return {"action": _StorePaths, "nargs": "+", "default": default, "metavar": option.metavar}
    if option.pairs:
        return {"action": _Pairs, "default": default, "metavar": option.metavar}
    choices = None if option.choices is None else tuple(option.choices())
    if choices is not None and option.many:
        return {"type": _parse_words(choices), "default": default, "metavar": f"{{{','.join(choices)}}}[,...]"}
    reader = make_reader(option.type, rule)
    return {"type": reader, "default": default, "choices": choices, "metavar": option.metavar}


def _format_default(option: Option, default: Any) -> str:
    if "[default:" in option.help or default is None or default is False or default in ((), ""):
        return ""
    if default is True:
        return " [default: on]"
    return f" [default: {','.join(map(str, default)) if isinstance(default, (tuple, list)) else default}]"


def _escape(text: str) -> str:
    """Text for argparse, where % starts a placeholder."""
    return text.replace("%", "%%")

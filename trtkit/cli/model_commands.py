"""Commands on models and model files, in the order of `trtkit --help`."""

from __future__ import annotations

import argparse
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trtkit.cli import Command
from trtkit.cli.options import add_options, add_output, call_with_options
from trtkit.cli.output import Outcome, make_frame_table, make_table, print_table, print_text
from trtkit.cli.predict_command import add_predict
from trtkit.cli.result_tables import MAX_LAYER_ROWS, print_comparison, print_slowness, print_timing, print_zoo
from trtkit.errors import EngineError, OutputExistsError, RecipeError
from trtkit.progress import Plan, start_work
from trtkit.recipe import Recipe
from trtkit.writing import check_output, find_published, write_bytes

if TYPE_CHECKING:
    from trtkit.comparison.comparison import Comparison
    from trtkit.results import Result

__all__ = [
    "add_benchmark",
    "add_calibrate",
    "add_compare",
    "add_deploy",
    "add_evaluate",
    "add_evaluate_int8",
    "add_examine",
    "add_export",
    "add_load_test",
    "add_predict",
    "add_report",
    "add_search",
    "add_sensitivity",
    "add_sweep",
    "add_verify",
    "add_why_slow",
    "add_zoo",
]


def add_export(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit export`."""
    from trtkit.exporter import export

    add_options(parser, export, positional=("model",))

    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help="settings from a JSON or YAML file, or from the recipe.json of compare; options given beside it win",
    )
    parser.set_defaults(read_defaults=read_recipe)

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        artifact = call_with_options(export, values)

        def show() -> None:
            size = f"{artifact.size / 1e6:.1f} MB, {artifact.seconds:.1f} s"
            print_text(f"{artifact.path}  {artifact.precision} {artifact.format}, {size}")
            if artifact.verification is not None:
                print_text(artifact.verification)

        names = ("format", "precision", "size", "seconds", "build_seconds", "model_hash", "calibration_hash")
        return Outcome(
            show,
            facts={
                **{name: getattr(artifact, name) for name in names},
                "recipe": artifact.recipe.to_dict(),
                "verification": None if artifact.verification is None else artifact.verification.facts(),
            },
            output=artifact.path,
        )

    return run


def read_recipe(values: argparse.Namespace) -> dict[str, Any]:
    """The settings of `--recipe`, by the name of the option.

    Args:
        values: The other options; of a comparison's recipes they choose the precision and the format.

    Raises:
        RecipeError: The file is no recipe.
    """
    if values.recipe is None:
        return {}
    path = Path(values.recipe)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(
            f"read the recipe {path}",
            getattr(error, "strerror", None) or "it is neither JSON nor YAML",
            "name a JSON or YAML file with the arguments of export, or the recipe.json of compare",
            code="recipe-file-unreadable",
            path=str(path),
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("recipes"), Mapping):
        precision = "int8" if values.int8 else "fp16" if values.half else "fp32"
        found = content["recipes"].get(precision) or {}
        if values.format not in found:
            raise RecipeError(
                f"read the recipe {path}",
                f"it has no {values.format} of {precision} (it has: {', '.join(content['recipes'])})",
                "choose one of its precisions with --half or --int8, and --format",
                code="recipe-file-precision-missing",
                path=str(path),
                precision=precision,
            )
        content = found[values.format]
    if isinstance(content, Mapping) and getattr(values, "model", None) is not None:
        content = {**content, "model": values.model}
    recipe = Recipe.from_dict(content)
    settings = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    # argparse appends to a list.
    return {**settings, "keep": list(recipe.keep)}


def add_calibrate(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit calibrate`."""
    from trtkit.calibration import calibrate

    add_options(parser, calibrate, positional=("model", "data"))
    add_output(parser, "runs/calibrate", "folder of the calibration")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing calibration")
    parser.add_argument("--tensorrt-cache", metavar="FILE", help="also write the scales as a TensorRT .cache file")

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        if find_published(values.output, "calibration.json").exists() and not values.overwrite:
            raise OutputExistsError(
                f"write the calibration {values.output}",
                "it exists and was kept",
                "use --overwrite or another --output",
                code="cli-calibration-exists",
                path=values.output,
            )
        if values.tensorrt_cache is not None:
            check_output(values.tensorrt_cache, overwrite=True)
        calibration = call_with_options(calibrate, values)
        if values.tensorrt_cache is not None:
            write_bytes(Path(values.tensorrt_cache), calibration.to_tensorrt_cache().encode())
        folder = calibration.save(values.output)

        def show() -> None:
            print_text(calibration)
            if values.tensorrt_cache is not None:
                print_text(f"{values.tensorrt_cache}  scales in the format of TensorRT's calibrators")
            head = " --end2end" if values.end2end else ""
            print_text(f"{folder}  to use it: trtkit export {values.model}{head} --int8 --calibration {values.output}")

        return Outcome.of(calibration, show, folder)

    return run


def add_evaluate(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit evaluate`."""
    from trtkit.evaluation.evaluation import evaluate

    add_options(parser, evaluate, positional=("runner", "data"))
    add_output(parser, None, "folder of the result")

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        evaluation = call_with_options(evaluate, values)

        def show() -> None:
            table = make_table("metric", "rule", numbers=("value",))
            for row in evaluation.frame().iter_rows(named=True):
                table.add_row(row["metric"], row["rule"], f"{row['value']:.4f}")
            print_table(table)
            skipped = f", {len(evaluation.skipped)} skipped" if evaluation.skipped else ""
            print_text(f"\n{evaluation.image_count} images{skipped}, {evaluation.provenance.runner}")

        return _save(evaluation, values, show)

    return run


def _save(result: Result, values: argparse.Namespace, show: Callable[[], None]) -> Outcome:
    """The outcome of a verb whose result is saved if `--output` asks for it, and its folder printed last."""
    folder = result.save(values.output) if values.output else None

    def show_all() -> None:
        show()
        if folder is not None:
            print_text(folder)

    return Outcome.of(result, show_all, folder)


def add_evaluate_int8(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit evaluate-int8`."""
    from trtkit.tuning.int8_evaluation import evaluate_int8

    return _add_tuning_verb(parser, evaluate_int8, ("model", "data"), "runs/evaluate-int8")


def add_benchmark(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit benchmark`."""
    from trtkit.evaluation.latency import benchmark

    parser.add_argument("files", nargs="+", metavar="FILE", help="model files, or LABEL=FILE")
    add_options(parser, benchmark, without=("runners",))
    add_output(parser, None, "folder of the result")

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        files: dict[str, str] = {}
        for word in values.files:
            # A file's name may have "=" too.
            label, equals, file = word.partition("=")
            if not equals or Path(word).exists():
                label, file = "", word
            files[label or Path(file).name] = file
        if len(files) < len(values.files):
            raise RecipeError(
                "benchmark several files",
                "two of them have the same label",
                "give each file a label: LABEL=FILE",
                code="cli-labels-collide",
                names=tuple(values.files),
            )
        timing = call_with_options(benchmark, values, runners=files)
        return _save(timing, values, lambda: print_timing(timing))

    return run


def add_load_test(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit load-test`."""
    from trtkit.evaluation.load_test import load_test

    add_options(parser, load_test, positional=("runner",))
    add_output(parser, None, "folder of the result")

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        result = call_with_options(load_test, values)

        def show() -> None:
            print_table(make_frame_table(result.frame()))
            print_text(f"\n{result.runner}")

        return _save(result, values, show)

    return run


def add_verify(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit verify`."""
    from trtkit.verification import verify

    add_options(parser, verify, positional=("artifact", "data"))
    add_output(parser, None, "folder of the result")

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        result = call_with_options(verify, values)

        def show() -> None:
            print_table(make_frame_table(result.summary()))
            print_text()
            print_text(result)

        outcome = _save(result, values, show)
        if result.verdict != "differs":
            return outcome
        error = EngineError(
            f"verify {values.artifact}",
            f"it differs from its graph in ONNX Runtime: {result.describe_differences()}",
            "build it at another opt_level or precision",
            code="engine-differs",
            path=values.artifact,
        )
        return dataclasses.replace(outcome, error=error)

    return run


def add_deploy(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit deploy`."""
    from trtkit.deployment import deploy

    add_options(parser, deploy, positional=("target", "artifact"))

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        deployment = call_with_options(deploy, values)

        def show() -> None:
            print_text(f"{deployment.folder}  {len(deployment.files)} files for {deployment.target}; see README.md")

        facts = {"target": deployment.target, "files": list(deployment.files)}
        return Outcome(show, facts=facts, output=deployment.folder)

    return run


def add_compare(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit compare`."""
    from trtkit.comparison.comparator import compare

    add_options(parser, compare, positional=("model", "data"))
    parser.add_argument(
        "--gate",
        metavar="NAME",
        help="exit with the verdict on this precision or candidate: 0 ship, 1 don't ship, 3 can't tell (2 is an error)",
    )
    parser.epilog = "Exit status: 0 done, 2 error; with --gate 0 ship, 1 don't ship, 3 can't tell."

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        if values.gate is not None:
            _check_gate(values)
        comparison = call_with_options(compare, values)
        outcome = comparison_outcome(comparison, values.output, verbose=values.verbose)
        status = 0 if values.gate is None else comparison.verdicts[values.gate].exit_status
        return dataclasses.replace(outcome, status=status)

    return run


def _check_gate(values: argparse.Namespace) -> None:
    """Refuse a gate on what is not compared, or on the reference, before any work."""
    names = [*values.precisions, *(values.candidates or {})]
    reference = "fp32" if "fp32" in names else names[0]
    choices = [name for name in names if name != reference]
    if values.gate not in choices:
        raise RecipeError(
            f"compare with --gate {values.gate}",
            "it is the reference of the comparison" if values.gate == reference else "it is not compared",
            f"choose from {', '.join(choices)}" if choices else "compare two precisions or more",
            code="cli-gate-unknown",
            value=values.gate,
            names=choices,
        )


def comparison_outcome(comparison: Comparison, folder: str | Path, *, verbose: bool) -> Outcome:
    """What is printed of a comparison, as text or JSON.

    Args:
        comparison: The comparison.
        folder: The folder it was saved in.
        verbose: As in `print_comparison`.
    """
    names = ("model", "task", "data", "split", "imgsz", "eval_images", "reference", "max_drop")
    return Outcome(
        lambda: print_comparison(comparison, folder, verbose=verbose),
        facts={
            **{name: comparison.about[name] for name in names},
            "verdicts": {name: verdict.to_dict() for name, verdict in comparison.verdicts.items()},
        },
        rows=comparison.rows.to_dicts(),
        output=folder,
    )


def add_zoo(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit zoo`."""
    from trtkit.model_zoo.zoo import zoo

    add_options(parser, zoo, positional=("models",))
    parser.epilog = "Exit status: 0 all rows are done, 1 some failed, 2 error."

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        # argparse gives an empty list of words to an optional positional argument.
        table = call_with_options(zoo, values, models=values.models or None)
        outcome = Outcome.of(table, lambda: print_zoo(table, values.output), values.output)
        return dataclasses.replace(outcome, status=1 if len(table.failed) else 0)

    return run


def add_why_slow(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit why-slow`."""
    from trtkit.inspection import why_slow

    add_options(parser, why_slow, positional=("engine", "baseline"))
    parser.add_argument(
        "--limit", type=int, default=MAX_LAYER_ROWS, metavar="N", help=f"rows of layers [default: {MAX_LAYER_ROWS}]"
    )

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        diagnosis = call_with_options(why_slow, values)
        facts = diagnosis.to_dict()
        return Outcome(lambda: print_slowness(diagnosis, values.limit), facts=facts, rows=facts.pop("layers"))

    return run


def add_report(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit report`."""
    parser.add_argument("folder", metavar="FOLDER", help="the --output of compare")
    parser.add_argument("--output", metavar="FILE", help="the HTML file [default: report.html in the folder]")

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        from trtkit.comparison.comparison import Comparison

        comparison = Comparison.load(values.folder)
        path = Path(values.output or Path(values.folder) / "report.html")
        start_work(Plan(verb="report", steps=("write the report",), files=(path,)))
        return Outcome.of_file(comparison.report(path))

    return run


def add_examine(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit examine`."""
    from trtkit.calibration.diagnosis import examine

    return _add_tuning_verb(parser, examine, ("data",), "runs/examine")


def add_sweep(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit sweep`."""
    from trtkit.tuning.sweep import sweep

    return _add_tuning_verb(parser, sweep, ("model", "data"), "runs/sweep")


def add_sensitivity(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit sensitivity`."""
    from trtkit.tuning.sensitivity import sensitivity

    return _add_tuning_verb(parser, sensitivity, ("model", "data"), "runs/sensitivity")


def add_search(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit search`."""
    from trtkit.tuning.search_loop import search

    return _add_tuning_verb(parser, search, ("model", "data"), "runs/search")


def _add_tuning_verb(
    parser: argparse.ArgumentParser, function: Callable[..., Any], positional: Sequence[str], output: str
) -> Command:
    """Add the options of a verb whose result is printed, saved and plotted."""
    add_options(parser, function, positional=positional)
    add_output(parser, output, "folder of the result and its figure")

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        result = call_with_options(function, values)
        folder = result.save(values.output)
        figure = folder / f"{result.kind}.html"
        write_bytes(figure, result.plot().to_html().encode())

        def show() -> None:
            print_table(make_frame_table(result.frame()))
            print_text()
            print_text(result)
            print_text(f"{folder}  figure: {figure}")

        return Outcome.of(result, show, folder)

    return run

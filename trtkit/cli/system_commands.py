"""Commands on engine files and this machine: engine, doctor, selftest, demo and completion."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.arguments import check_argument
from trtkit.cli import Command
from trtkit.cli.model_commands import comparison_outcome
from trtkit.cli.options import DEVICE, OPTIONS, parse_size
from trtkit.cli.output import Outcome, make_table, print_table, print_text
from trtkit.errors import CancelledError, CapabilityError, EngineError, TrtkitError
from trtkit.progress import Plan, Reporter
from trtkit.recipe import round_imgsz
from trtkit.writing import check_output, temporary_folder, write_json

if TYPE_CHECKING:
    from trtkit.backends import EngineFile

__all__ = ["add_completion", "add_demo", "add_doctor", "add_engine", "add_selftest"]

SELFTEST_SIZES = {"detect": 320, "classify": 64}
"""Image sides of the self-test's engines, pixels, by task; engines of all five would take TensorRT half an hour."""

SELFTEST_BATCH, SELFTEST_SECONDS = 4, 2.0
"""The self-test's largest batch, and the time that each is measured, s."""


def add_engine(parser: argparse.ArgumentParser) -> Command:
    """Add the subcommands of `trtkit engine`."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="show|check|strip|wrap|refit", prog=parser.prog)
    shown = kinds.add_parser("show", help="print the metadata of an engine file")
    shown.add_argument("file", metavar="ENGINE", help="an .engine file or a bare plan")
    shown.add_argument("--layers", action="store_true", help="also print the layer table")
    shown.set_defaults(run=_show)
    checked = kinds.add_parser("check", help="check whether an engine runs on this machine, or on another by --gpu")
    checked.add_argument("file", metavar="ENGINE", help="an .engine file")
    checked.add_argument("--gpu", metavar="NAME|smXY", help="GPU of another machine, such as 'RTX 3090' or sm86")
    checked.add_argument("--tensorrt", metavar="VERSION", help="TensorRT's version on another machine, such as 10.3.0")
    checked.add_argument("--device", type=DEVICE.type, metavar=DEVICE.metavar, help=DEVICE.help)
    checked.set_defaults(run=_check)
    stripped = kinds.add_parser("strip", help="write the bare plan, which trtexec and Triton read")
    stripped.add_argument("file", metavar="ENGINE", help="an .engine file")
    stripped.add_argument("output", metavar="PLAN", help="the file to write")
    stripped.add_argument("--overwrite", action="store_true", help=OPTIONS["overwrite"].help)
    stripped.set_defaults(run=_strip)
    wrapped = kinds.add_parser("wrap", help="add the header to a bare plan that trtkit and Ultralytics read")
    wrapped.add_argument("file", metavar="PLAN", help="a bare plan")
    wrapped.add_argument("output", metavar="ENGINE", help="the file to write")
    wrapped.add_argument(
        "--like", required=True, metavar="MODEL", help="the .pt or .onnx file that the plan was built from"
    )
    wrapped.add_argument(
        "--imgsz", type=parse_size, metavar="SIDE|H,W", help="image size that it was built for [default: the model's]"
    )
    wrapped.add_argument("--batch", type=int, default=1, metavar="N", help="largest batch [default: 1]")
    wrapped.add_argument("--overwrite", action="store_true", help=OPTIONS["overwrite"].help)
    wrapped.set_defaults(run=_wrap)
    refitted = kinds.add_parser("refit", help="put the weights of an ONNX file into a refittable or stripped engine")
    refitted.add_argument("file", metavar="ENGINE", help="an engine exported with --weights")
    refitted.add_argument("onnx", metavar="ONNX", help="the ONNX file of the same export")
    refitted.add_argument("output", metavar="OUTPUT", help="the engine to write")
    refitted.add_argument("--device", type=DEVICE.type, metavar=DEVICE.metavar, help=DEVICE.help)
    refitted.add_argument("--overwrite", action="store_true", help=OPTIONS["overwrite"].help)
    refitted.set_defaults(run=_refit)
    return lambda values, cancel: values.run(values, cancel)


def _show(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
    """The passport, the model's metadata, and the layers."""
    from trtkit.backends import layer_frame, read_engine

    file = read_engine(values.file)
    passport = {} if file.passport is None else dataclasses.asdict(file.passport)
    layers = passport.pop("layers", None)
    return Outcome(
        lambda: _print_engine(file, with_layers=values.layers),
        facts={
            "file": str(values.file),
            "plan_bytes": len(file.plan),
            "metadata": {name: value for name, value in file.metadata.items() if name != "trtkit"},
            "passport": passport or None,
            "thresholds": _read_thresholds(file),
        },
        rows=layer_frame(layers).to_dicts() if layers else [],
    )


def _read_thresholds(file: EngineFile) -> dict[str, Any] | None:
    """The thresholds that a comparison wrote into the file; None without any, and for what is no such entry."""
    own = file.metadata.get("trtkit")
    thresholds = own.get("thresholds") if isinstance(own, dict) else None
    return thresholds if isinstance(thresholds, dict) else None


def _print_engine(file: EngineFile, *, with_layers: bool) -> None:
    """Print the passport, the model's metadata, and the layers by precision."""
    from trtkit.backends import layer_frame
    from trtkit.inspection import count_kinds

    table = make_table("", "")
    table.show_header = False
    known = dict(file.metadata)
    known.pop("trtkit", None)
    if file.passport is None:
        table.add_row("header", "without a passport of trtkit" if known else "none: a bare plan")
        table.add_row("plan", f"{len(file.plan):,} bytes")
    else:
        passport = dataclasses.asdict(file.passport)
        rows = layer_frame(passport.pop("layers"))
        passport |= {"recipe": passport.pop("recipe"), "versions": passport.pop("versions")}
        for name, value in passport.items():
            if value not in ("", None, {}):
                table.add_row(name.replace("_", " "), _format_value(value))
        if len(rows):
            layers = ", ".join(f"{count} {name}" for name, count in count_kinds(rows).items())
            table.add_row("layers", f"{len(rows)}: {layers}")
    for name in ("task", "imgsz", "batch", "stride", "names"):
        if name in known and not (file.passport and name in ("imgsz", "batch")):
            table.add_row(name, _format_value(known[name]))
    thresholds = _read_thresholds(file)
    for target in ("recall", "precision"):
        found = None if thresholds is None else thresholds.get(target)
        if thresholds is not None and isinstance(found, dict):
            classes = _format_value(found.get("classes") or {})
            like = f"{target} of {thresholds.get('reference')} at {thresholds.get('conf')}"
            table.add_row(like, f"confidence {found.get('all')}" + (f"; by class {classes}" if classes else ""))
    print_table(table)
    if with_layers and file.passport is not None and file.passport.layers:
        listed = make_table("", "name", "type", "precision", "shape")
        for row in layer_frame(file.passport.layers).iter_rows(named=True):
            words = (str(row["index"]), row["name"], row["type"], row["precision"], row["shape"])
            listed.add_row(*(word or "" for word in words))
        print_text()
        print_table(listed)


def _check(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
    """Check an engine against this machine."""
    from trtkit import backends
    from trtkit.backends.compatibility import check_contents
    from trtkit.backends.devices import parse_device

    file = backends.read_engine(values.file)
    if values.gpu is not None or values.tensorrt is not None:
        return _check_elsewhere(values, file)
    if file.passport is not None:
        here = backends.probe(file.backend)
        device = parse_device(values.device)
        mismatch = backends.check_compatibility(file.passport, here, device) if here.present else None
        if mismatch is not None:
            raise mismatch.error(f"run {values.file} here", values.file)
    backends.require_run(file.backend, device=values.device)
    check_contents(file, f"run {values.file} here")
    result = "it runs on this machine" if file.passport is not None else "without a passport it can only be tried"
    return Outcome(lambda: print_text(f"{values.file}: {result}."), facts={"file": str(values.file), "runs": True})


def _check_elsewhere(values: argparse.Namespace, file: EngineFile) -> Outcome:
    """Check an engine against a machine that is only named."""
    from trtkit import backends

    if file.passport is None:
        raise EngineError(
            f"check {values.file} for another machine",
            "it has no passport: nothing says what it was built for",
            "export it with trtkit, or try it there",
            code="engine-passport-missing",
            path=values.file,
        )
    there = backends.describe_machine_elsewhere(file.passport, gpu=values.gpu, tensorrt=values.tensorrt)
    mismatch = backends.check_compatibility(file.passport, there)
    if mismatch is not None:
        raise mismatch.error(f"run {values.file} there", values.file)
    title, gpu = backends.get_title(file.backend), there.gpus[0]
    sentence = f"by its passport it runs with {title} {there.version} on {gpu.name} ({gpu.sm})"
    return Outcome(
        lambda: print_text(f"{values.file}: {sentence}."),
        facts={"file": str(values.file), "runs": True, "gpu": gpu.name, "sm": gpu.sm, "tensorrt": there.version},
    )


def _refit(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
    """Put weights into an engine."""
    from trtkit.backends import refit_engine

    path = refit_engine(values.file, values.onnx, values.output, device=values.device, overwrite=values.overwrite)
    return Outcome.of_file(path)


def _strip(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
    """Write the bare plan."""
    from trtkit.backends import strip_engine

    return Outcome.of_file(strip_engine(values.file, values.output, overwrite=values.overwrite))


def _wrap(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
    """Write the plan with a header."""
    from trtkit.backends import wrap_engine
    from trtkit.models import load

    batch = check_argument("wrap", "batch", values.batch)
    imgsz = None if values.imgsz is None else check_argument("wrap", "imgsz", values.imgsz)
    info = load(values.like).info
    if imgsz is not None:
        info = dataclasses.replace(info, imgsz=round_imgsz(imgsz, 1))
    return Outcome.of_file(wrap_engine(values.file, values.output, info, overwrite=values.overwrite, batch=batch))


def _format_value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items() if inner not in (None, "", [], {}))
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value)) if len(value) == 2 else ", ".join(map(str, value))
    return str(value)


def add_doctor(parser: argparse.ArgumentParser) -> Command:
    """`trtkit doctor` has no options."""
    return _run_doctor


def _run_doctor(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
    """What is installed and what each backend can do on this machine."""
    from trtkit.backends import list_backends, probe
    from trtkit.results import describe_machine, package_versions

    rows = []
    for name in list_backends():
        try:
            here = probe(name)
        except CapabilityError as error:
            rows.append({"backend": name, "present": False, "why_not": f"{error.found}; {error.do}"})
            continue
        facts = {"backend": name, "title": here.title, "version": here.version, "present": here.present}
        rows.append({**facts, "missing": here.missing, **_why_not(name, None)})
    return Outcome(
        _print_doctor,
        facts={
            "machine": describe_machine(),
            "versions": package_versions(),
            "gpus": [dataclasses.asdict(gpu) for gpu in probe("tensorrt").gpus],
        },
        rows=rows,
    )


def _print_doctor() -> None:
    """Print it, one block per backend."""
    from trtkit.backends import get_backend, list_backends, probe, require_build, require_run
    from trtkit.results import describe_machine, package_versions

    machine = describe_machine()
    print_text(f"{machine['processor']}, {machine['cores']} cores, {machine['system']}")
    print_text(", ".join(f"{name} {version}" for name, version in package_versions().items()))
    gpus = probe("tensorrt").gpus
    for gpu in gpus:
        print_text(
            f"GPU {gpu.index}: {gpu.name} ({gpu.sm}), {gpu.memory_gib:.0f} GiB, driver {gpu.driver or 'unknown'}"
        )
    if not gpus:
        print_text("GPU: none (no NVIDIA driver with a GPU was found)")
    for name in list_backends():
        try:
            backend, here = get_backend(name), probe(name)
        except CapabilityError as error:
            print_text(f"\n{name}: {error.found}; {error.do}")
            continue
        print_text(f"\n{here.title}" if here.present else f"\n{backend.title}: {here.missing}")
        if backend.build is None:
            print_text(f"  builds  nothing; runs {backend.models}")
            continue
        for word, require in (("builds", require_build), ("runs", require_run)):
            try:
                require(name)
            except CapabilityError as error:
                print_text(f"  {word:<6}  no: {error.found}; {error.do}")
                continue
            targets = (
                f" for {', '.join(here.cross_build_targets)}" if word == "builds" and here.cross_build_targets else ""
            )
            print_text(f"  {word:<6}  {backend.models}{targets}")


def add_selftest(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit selftest`."""
    parser.add_argument("--device", type=DEVICE.type, metavar=DEVICE.metavar, help=DEVICE.help)
    parser.add_argument(
        "--opt-level", type=int, default=0, choices=range(6), help="TensorRT's optimization level [default: 0]"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("trtkit-selftest.json"),
        metavar="FILE",
        help="the file to send back [default: trtkit-selftest.json]",
    )
    return _run_selftest


def _run_selftest(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
    """Build, verify and time the embedded detector and classifier by every backend, and write what was found.

    The outcome has an error if no engine could be built and run, or if one failed or differs from its graph.
    """
    from trtkit.backends import get_backend, list_backends, probe
    from trtkit.results import describe_machine, package_versions

    report: dict[str, Any] = {
        "format_version": 1,
        "machine": describe_machine(),
        "versions": package_versions(),
        "opt_level": values.opt_level,
        "backends": {},
        "engines": [],
    }
    check_output(values.output, overwrite=True)
    reporter = Reporter(values.progress, cancel)
    reporter.step("load", 0, 1)
    for name in list_backends():
        if get_backend(name).build is not None:
            report["backends"][name] = {**dataclasses.asdict(probe(name)), **_why_not(name, values.device)}
    builders = [name for name, facts in report["backends"].items() if facts["builds"] is None]
    steps = [
        _name_engine(name, task, precision)
        for name in builders
        for task in SELFTEST_SIZES
        for precision in SELFTEST_PRECISIONS
    ]
    reporter.start(Plan(verb="selftest", steps=tuple(steps)))
    for name in builders:
        report["engines"] += _test_engines(name, values, report["backends"][name]["runs"], reporter)
    reporter.finish()
    write_json(values.output, report)
    bad = [row for row in report["engines"] if row["error"] or row["verdict"] == "differs"]
    error: TrtkitError | None = None
    if bad:
        error = EngineError(
            "test this machine",
            f"{len(bad)} of {len(report['engines'])} engines failed or differ from ONNX Runtime",
            f"report it with {values.output}",
            code="selftest-failed",
            engines=[f"{row['backend']} {row['task']} {row['precision']}" for row in bad],
        )
    elif not any(row["verdict"] for row in report["engines"]):
        error = CapabilityError(
            "test this machine",
            "no engine ran",
            "run it on a machine with an NVIDIA GPU and TensorRT",
            code="selftest-nothing-ran",
        )
    facts = {name: value for name, value in report.items() if name != "engines"}
    show = functools.partial(_print_selftest, report, values.output)
    return Outcome(show, facts=facts, rows=report["engines"], output=values.output, error=error)


def _print_selftest(report: Mapping[str, Any], path: Path) -> None:
    """Print one row per engine, and why there is none of a backend."""
    from trtkit.backends import get_backend

    table = make_table("backend", "model", "precision", "build s", "against ONNX Runtime", "p50 ms")
    for row in report["engines"]:
        result = row["error"]["message"] if row["error"] else row["verdict"] or "built, not run"
        times = ", ".join(f"{time['p50_ms']:.2f} (batch {time['batch']})" for time in row["times"])
        table.add_row(row["backend"], row["task"], row["precision"], f"{row['build_seconds']:.0f}", result, times)
    print_table(table)
    for name, facts in report["backends"].items():
        for word in ("builds", "runs"):
            if facts[word] is not None and (word == "builds" or facts["builds"] is None):
                print_text(f"{get_backend(name).title} {word} no engine here: {facts[word]}")
    print_text(f"{path}  please attach it to an issue, whatever it says")


def _why_not(name: str, device: str | int | None) -> dict[str, str | None]:
    """Why a backend builds and runs no engine here; None where it does."""
    from trtkit.backends import require_build, require_run

    reasons: dict[str, str | None] = {}
    for word, require in (("builds", require_build), ("runs", require_run)):
        try:
            require(name, device=_target(name, device) if word == "builds" else device)
            reasons[word] = None
        except CapabilityError as error:
            reasons[word] = f"{error.found}; {error.do}"
    return reasons


def _target(name: str, device: str | int | None) -> str | int | None:
    """The device to build for: without a GPU the demo's, where the backend builds for a GPU elsewhere."""
    from trtkit import demo
    from trtkit.backends import probe

    here = probe(name)
    return demo.DEVICE if device is None and not here.gpus and demo.DEVICE in here.cross_build_targets else device


SELFTEST_PRECISIONS = ("fp32", "fp16", "int8")


def _name_engine(backend: str, task: str, precision: str) -> str:
    """The step that tests an engine."""
    return f"{backend} {task} {precision}"


def _test_engines(
    name: str, values: argparse.Namespace, not_run: str | None, reporter: Reporter
) -> Iterator[dict[str, Any]]:
    """One row per engine, of each model and precision."""
    for task in SELFTEST_SIZES:
        for precision in SELFTEST_PRECISIONS:
            reporter.begin(_name_engine(name, task, precision))
            row: dict[str, Any] = {
                "backend": name,
                "task": task,
                "precision": precision,
                "build_seconds": 0.0,
                "not_run": not_run,
                "verdict": None,
                "differences": [],
                "times": [],
                "error": None,
            }
            try:
                _test_engine(row, values, reporter)
            except CancelledError:
                raise
            except TrtkitError as error:
                row["error"] = {"code": error.code, "message": str(error)}
            except Exception as error:  # noqa: BLE001 - whatever a new TensorRT raises is what the file is for
                row["error"] = {"code": None, "message": f"{type(error).__name__}: {error}"}
            yield row


def _test_engine(row: dict[str, Any], values: argparse.Namespace, reporter: Reporter) -> None:
    """Build one engine, compare it with its graph and time it; fills the row."""
    from trtkit import backends, demo
    from trtkit.evaluation.latency import benchmark
    from trtkit.exporter import export_with_graph
    from trtkit.recipe import Recipe
    from trtkit.verification import compare_runners

    task, precision = row["task"], row["precision"]
    with temporary_folder() as folder:
        recipe = Recipe(
            model=str(demo.model_path(task)),
            imgsz=SELFTEST_SIZES[task],
            half=precision == "fp16",
            int8=precision == "int8",
            data=str(demo.data_path(task)) if precision == "int8" else None,
            fraction=0.25,
            dynamic=True,
            batch=SELFTEST_BATCH,
            backend=row["backend"],
            device=_target(row["backend"], values.device),
            opt_level=values.opt_level,
            output=str(folder / "selftest.engine"),
        )
        artifact, graph = export_with_graph(
            demo.model_path(task), recipe, verify=False, progress=reporter.progress, cancel=reporter.cancel
        )
        row["build_seconds"] = artifact.build_seconds
        if row["not_run"] is not None:
            return
        with backends.open(artifact, device=values.device) as engine, backends.open(graph) as reference:
            verification = compare_runners(
                engine, reference, demo.data_path(task), progress=reporter.progress, cancel=reporter.cancel
            )
            row["verdict"], row["differences"] = verification.verdict, verification.summary().to_dicts()
            timing = benchmark(
                {"engine": engine},
                batch=(1, SELFTEST_BATCH),
                seconds=SELFTEST_SECONDS,
                stage_runs=0,
                progress=reporter.progress,
                cancel=reporter.cancel,
            )
            row["times"] = timing.frame().select("batch", "clock", "runs", "p50_ms", "p99_ms").to_dicts()


def add_demo(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit demo`."""
    from trtkit import demo as embedded

    parser.add_argument(
        "--output",
        type=Path,
        default=embedded.OUTPUT_DIR,
        metavar="FOLDER",
        help=f"folder of the result [default: {embedded.OUTPUT_DIR}]",
    )
    for name in ("eval_images", "calibration_images"):
        text = f"{OPTIONS[name].help.partition(' [')[0]} [default: all]"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    return _run_demo


def _run_demo(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
    """Compare the embedded model's precisions."""
    from trtkit import demo as embedded
    from trtkit.backends.capabilities import probe
    from trtkit.comparison.comparator import compare

    # The demo replaces its own results; without a GPU it builds for a common one.
    device = None if probe("tensorrt_rtx").gpus else embedded.DEVICE
    comparison = compare(
        embedded.model_path(),
        embedded.data_path(),
        imgsz=embedded.IMGSZ,
        device=device,
        eval_images=values.eval_images,
        **({} if values.calibration_images is None else {"calibration_images": values.calibration_images}),
        # Enough for a processor, whose latency says little of an engine's; a GPU has its 100 runs in less.
        seconds=1.0,
        output=values.output,
        overwrite=True,
        progress=values.progress,
        cancel=cancel,
    )
    return comparison_outcome(comparison, values.output, verbose=values.verbose)


def add_completion(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `trtkit completion`."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"{', '.join(SHELLS[:-1])} or {SHELLS[-1]}")

    def run(values: argparse.Namespace, cancel: threading.Event) -> Outcome:
        import shtab

        from trtkit.cli import list_actions, make_full_parser

        parser = make_full_parser()
        for action in list_actions(parser):
            if action.metavar in PATHS:
                action.complete = shtab.DIRECTORY if action.metavar == "FOLDER" else shtab.FILE  # type: ignore[attr-defined]
        script = shtab.complete(parser, values.shell)
        return Outcome(lambda: print_text(script))

    return run


SHELLS = ("bash", "zsh", "fish")

PATHS = ("BASELINE", "DATA", "ENGINE", "FILE", "FOLDER", "IMAGE", "MODEL", "ONNX", "OUTPUT", "PATH", "PLAN")
"""Placeholders of files and folders, which a shell completes."""

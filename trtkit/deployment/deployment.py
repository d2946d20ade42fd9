"""deploy(): a folder for one target, with the model's description, sample images and a check that needs no trtkit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# They register the package's own targets.
from trtkit.deployment import cpp, deepstream, jetson, targets, tensorflow, triton, trtexec  # noqa: F401
from trtkit.deployment.bundle import Bundle, check_source, read_bundle, read_samples
from trtkit.deployment.target import TARGETS, Target
from trtkit.errors import OutputExistsError, RecipeError, warn
from trtkit.progress import CancelToken, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.results import package_versions
from trtkit.writing import check_output_folder, replace_folder, restore_interrupted

if TYPE_CHECKING:
    from trtkit.backends.runner import HasPath

__all__ = ["Deployment", "deploy", "list_targets"]


def list_targets(format: str | None = None) -> tuple[str, ...]:
    """The names of the registered targets.

    Args:
        format: "onnx" or "engine", for those that take such files; None for all.
    """
    return tuple(sorted(name for name, target in TARGETS.items() if format is None or format in target.formats))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployment:
    """A folder that `deploy` wrote.

    Attributes:
        folder: The folder.
        target: The target's name.
        files: Paths relative to the folder.
    """

    folder: Path
    target: str
    files: tuple[str, ...]


@verb
def deploy(
    artifact: HasPath | str | Path | Sequence[HasPath | str | Path],
    target: str,
    output: str | Path | None = None,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    max_det: int = 300,
    samples: Sequence[str | Path] | str | Path | None = None,
    reference: HasPath | str | Path | None = None,
    metrics: Mapping[str, float] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Deployment:
    """Write a folder that serves a model on a target, with a `check.py` that proves it there without trtkit.

    >>> import trtkit as tk
    >>> tk.deploy(tk.export("yolo11n.pt", int8=True, data="coco.yaml"), "triton", "serving")

    The folder holds the model file, `model.json` (input, preprocessing, outputs, class names, thresholds, SHA-256),
    sample images with the detections expected on them, a README and the target's files.

    Args:
        artifact: From `export`, or an ONNX or engine file; or several, such as the precisions of one model: the folder
            then holds a folder for each, named after its file.
        target: "cpp", "deepstream", "jetson", "onnxruntime", "python", "tensorflow", "triton", "trtexec" or
            another registered one.
        output: The folder; None takes the model file's name with the target, beside it.
        conf: Minimum score of a detection.
        iou: Class-wise NMS: of two boxes with IoU > `iou` the lower score is dropped.
        max_det: Maximum number of detections per image.
        samples: Up to three images; None takes embedded ones, of handwritten digits.
        reference: The ONNX file of the same export, which gives the expected detections where an engine does not run on
            this machine.
        metrics: Measured accuracy by name, for `model.json`, such as `evaluate(...).metrics`.
        overwrite: Replace the folder if it exists.
        progress: Receives every `Event`.
        cancel: A cancellation token.

    Returns:
        The folder and its files.

    Raises:
        RecipeError: The target is unknown or does not take the file's format, or two files have the same name.
        OutputExistsError: The folder exists, and may not be replaced or is no deployment.
        OutputError: The folder can't be written.
        CapabilityError: The engine does not run here and there is no `reference`.
        OnnxError, EngineError: The file is missing or damaged.
        DataError: A sample can't be read.
    """
    chosen = _find_target(target)
    several = isinstance(artifact, Sequence) and not isinstance(artifact, (str, Path))
    items: Sequence[HasPath | str | Path] = artifact if several else (artifact,)  # type: ignore[assignment]
    paths = [_to_path(item) for item in items]
    _check_names(paths)
    _check_format(paths, chosen)
    if several and chosen.check_several is not None:
        chosen.check_several([path.stem for path in paths])
    folder = Path(output) if output is not None else paths[0].with_name(f"{paths[0].stem}-{target}")
    folder = folder if folder.name else Path.cwd()
    restore_interrupted(folder)
    exists = os.path.lexists(folder)
    check_output_folder(folder.parent if exists else folder)
    if exists and not overwrite:
        raise OutputExistsError(
            f"deploy to {folder}",
            "the folder exists and was kept",
            "allow overwriting (overwrite=True, --overwrite) or name another output",
            code="output-exists",
            path=str(folder),
        )
    if exists:
        _check_replaceable(folder, paths)
    fallback = None if reference is None else _to_path(reference)
    sources = [check_source(path, fallback) for path in paths]
    for source in sources:
        if chosen.check is not None:
            chosen.check(source)
    images = [read_samples(samples, source.info) for source in sources]
    reporter = Reporter(progress, cancel)
    start_work(
        Plan(
            verb="deploy",
            settings={"target": target, "model": ", ".join(path.name for path in paths)},
            images={"sample": len(images[0])},
            steps=("run the sample images", "write the folder"),
            files=(folder,),
        ),
        reporter,
    )
    reporter.begin("run the sample images")
    bundles = []
    for done, (source, own) in enumerate(zip(sources, images, strict=True)):
        reporter.step("run the sample images", done, len(sources))
        bundles.append(read_bundle(source, own, conf=conf, iou=iou, max_det=max_det))
    reporter.step("run the sample images", len(sources), len(sources))
    _warn_of_empty(bundles)
    reporter.begin("write the folder")
    with replace_folder(folder) as staging:
        for bundle in bundles:
            own_folder = staging / bundle.name if several else staging
            own_folder.mkdir(exist_ok=True)
            _write(bundle, chosen, own_folder, metrics or {})
        if several:
            lines = [f"# {len(bundles)} models for {target}", ""]
            lines += [f"- `{bundle.name}`: {bundle.precision.upper()}, {bundle.info.task}" for bundle in bundles]
            lines += ["", "Each folder has a README and a `check.py` of its own."]
            (staging / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
            if chosen.merge is not None:
                chosen.merge(staging)
        files = tuple(sorted(file.relative_to(staging).as_posix() for file in staging.rglob("*") if file.is_file()))
    reporter.finish(f"wrote {folder}")
    return Deployment(folder=folder, target=target, files=files)


def _find_target(name: str) -> Target:
    names = list_targets()
    if name not in names:
        raise RecipeError(
            f"deploy to {name!r}",
            "there is no such target",
            f"choose one of {', '.join(names)}",
            code="deploy-target-unknown",
            value=name,
            names=names,
        )
    return TARGETS[name]


def _to_path(item: HasPath | str | Path) -> Path:
    return Path(item) if isinstance(item, (str, Path)) else item.path


def _check_names(paths: Sequence[Path]) -> None:
    names = [path.stem for path in paths]
    if not paths or len(set(names)) < len(names):
        raise RecipeError(
            "deploy several model files",
            "two of them have the same name" if paths else "there is none",
            "rename one, or deploy them to two folders" if paths else "pass one file or more",
            code="deploy-names-collide" if paths else "deploy-no-file",
            names=names,
        )


def _check_format(paths: Sequence[Path], target: Target) -> None:
    """Check, by their names, that the target takes the files; what they hold is checked when they are read."""
    for path in paths:
        kind = {".onnx": "onnx", ".pt": "checkpoint", ".pth": "checkpoint"}.get(path.suffix.lower(), "engine")
        if kind not in target.formats:
            raise RecipeError(
                f"deploy {path.name} to {target.name}",
                f"{target.name} takes {' or '.join(target.formats)} files",
                f"export it first, with format={target.formats[0]!r}",
                code="deploy-format-unsupported",
                path=str(path),
                value=kind,
                names=target.formats,
            )


def _check_replaceable(folder: Path, paths: Sequence[Path]) -> None:
    """Check that replacing a folder, or what has its name, loses nothing but an earlier deployment."""
    # What every deployment folder has; a folder of programs may have a check.py too.
    marks = ("samples/expected.json", "*/samples/expected.json")
    is_own = folder.is_dir() and (not any(folder.iterdir()) or any(True for mark in marks for _ in folder.glob(mark)))
    is_current = Path.cwd().is_relative_to(folder.resolve())
    holds_model = any(path.resolve().is_relative_to(folder.resolve()) for path in paths)
    if not is_own or holds_model or is_current:
        raise OutputExistsError(
            f"replace {folder}",
            "the model file is in it"
            if holds_model
            else "it is the current folder"
            if is_current
            else "it was not written by deploy",
            "name another output",
            code="deploy-folder-foreign",
            path=str(folder),
        )


def _warn_of_empty(bundles: Sequence[Bundle]) -> None:
    """Warn where nothing is expected on any sample: the check would then accept a model that finds nothing."""
    for bundle in bundles:
        if bundle.info.task != "classify" and not any(map(len, bundle.expected)):  # type: ignore[arg-type]
            warn(
                f"{bundle.path.name} detects nothing on the sample images, so check.py proves little: pass samples= "
                "(--samples), images of what the model detects."
            )


def _write(bundle: Bundle, target: Target, folder: Path, metrics: Mapping[str, float]) -> None:
    bundle.write(folder, metrics=metrics, versions=package_versions())
    notes = target.write(bundle, folder)
    (folder / "README.md").write_text(_render_readme(bundle, target, folder, notes), encoding="utf-8")


FILE_NOTES = {
    "model.onnx": "the model",
    "model.engine": "the engine",
    "model.json": "input, preprocessing, outputs, class names, thresholds, SHA-256 of the model",
    "yolo.py": "preprocessing and postprocessing, NumPy alone",
    "infer.py": "runs the model: `python infer.py IMAGE ...`",
    "check.py": "compares with the expected detections",
    "samples/": "images and the detections expected on them",
}


def _render_readme(bundle: Bundle, target: Target, folder: Path, notes: Sequence[str]) -> str:
    height, width = bundle.imgsz
    files = {**FILE_NOTES, **target.file_notes}
    lines = [
        f"# {bundle.info.architecture or bundle.name}, {bundle.precision.upper()}, for {target.name}",
        "",
        f"Task {bundle.info.task}, {len(bundle.info.names)} classes, input {width} x {height}"
        f"{', other sizes too' if bundle.dynamic else ''}, batch {bundle.batch or 'any'}.",
        "",
        *notes,
        "",
        "`python check.py` runs the sample images and compares the detections with `samples/expected.json`; it ends "
        "with 0 if they agree, and says what differs otherwise.",
        "",
        "| file | what it holds |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in files.items() if (folder / name).exists()),
    ]
    return "\n".join(lines) + "\n"

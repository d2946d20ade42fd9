"""What every deployment folder holds: model file, `model.json`, sample images and the detections expected on them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from trtkit.errors import CapabilityError, EngineError, RecipeError
from trtkit.files import hash_file
from trtkit.models.model import RAW_MAPS
from trtkit.models.output_shapes import find_main_output

if TYPE_CHECKING:
    from trtkit.backends import Passport, Runner
    from trtkit.models.model import ModelInfo
    from trtkit.tasks.base import Prediction

__all__ = ["Bundle", "Source", "TensorSpec", "check_source", "read_bundle", "read_samples", "write_json"]

SAMPLES = 3
"""Sample images of a folder."""

BOX_TOLERANCE = {"fp32": 0.05, "fp16": 1.0, "int8": 2.0}
"""Most pixels that a box may lie from the expected one, where the same file runs on another machine."""

SCORE_TOLERANCE = {"fp32": 0.001, "fp16": 0.01, "int8": 0.02}
"""Most that a score may differ from the expected one."""

REFERENCE_BOX_TOLERANCE = {"fp32": 0.5, "fp16": 2.0, "int8": 8.0}
REFERENCE_SCORE_TOLERANCE = {"fp32": 0.03, "fp16": 0.03, "int8": 0.3}
"""The same where the expected detections are the ONNX file's and an engine runs: as far apart as healthy engines were
from ONNX Runtime (`trtkit.verification.LIMITS`)."""

FILES = Path(__file__).resolve().parent / "files"
"""Programs that are copied into deployment folders as they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output of the model.

    Attributes:
        name: Its name.
        dtype: NumPy's name of its type.
        shape: Its sizes; -1 where open.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A model file and what a deployment must know of it.

    Attributes:
        path: The file.
        format: "onnx" or "engine".
        info: The model's description.
        precision: "fp32", "fp16" or "int8".
        batch: The largest batch; None for any.
        imgsz: Height and width of the input, pixels.
        dynamic: Whether batch, height and width are open.
        inputs: The model's inputs; the first takes images.
        outputs: The model's outputs, in order.
        passport: An engine's provenance, or None.
        model_hash: SHA-256 of the model's architecture and weights, where the file says it, else of the file.
        thresholds: `conf`, `iou` and `max_det`.
        images: Sample images, BGR uint8.
        expected: The predictions on them.
        sample_input: The model's input of the sample images.
        sample_outputs: The model's outputs on it, by name.
        weights: Files that hold the weights of an ONNX file, relative to its folder.
        by_reference: Whether `expected` is of the ONNX file, because the engine did not run here.
    """

    path: Path
    format: str
    info: ModelInfo
    precision: str
    batch: int | None
    imgsz: tuple[int, int]
    dynamic: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    passport: Passport | None
    model_hash: str
    thresholds: Mapping[str, float]
    images: tuple[np.ndarray, ...]
    expected: tuple[Prediction, ...]
    sample_input: np.ndarray
    sample_outputs: Mapping[str, np.ndarray]
    weights: tuple[str, ...] = ()
    by_reference: bool = False

    @property
    def name(self) -> str:
        """The model file's name without its ending."""
        return self.path.stem

    @property
    def file_name(self) -> str:
        """The model file's name in the folder."""
        return "model.onnx" if self.format == "onnx" else "model.engine"

    def copy_model(self, folder: Path) -> None:
        """Copy the model file into a folder, and the files that hold its weights."""
        shutil.copyfile(self.path, folder / self.file_name)
        for name in self.weights:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path.parent / name, folder / name)

    def move_weights(self, folder: Path, target: Path) -> None:
        """Move the files that hold the weights from a folder that `copy_model` filled into another one."""
        for name in self.weights:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).rename(target / name)
        for top in {Path(name).parts[0] for name in self.weights if len(Path(name).parts) > 1}:
            shutil.rmtree(folder / top)

    def describe(self, *, metrics: Mapping[str, float], versions: Mapping[str, str]) -> dict[str, Any]:
        """`model.json`."""
        # As the tasks read outputs: prototypes are `output1` or the first of four axes.
        ranks = {output.name: len(output.shape) for output in self.outputs}
        by_name = sorted(ranks, key=lambda name: name != "output1")
        prototypes = next((name for name in by_name if ranks[name] == 4), None)
        main = find_main_output({name: rank for name, rank in ranks.items() if name != prototypes}, self.info.task)
        return {
            "version": 1,
            "file": {"name": self.file_name, "format": self.format, "sha256": hash_file(self.path)},
            "task": self.info.task,
            "architecture": self.info.architecture,
            "precision": self.precision,
            "names": {str(number): name for number, name in self.info.names.items()},
            "kpt_shape": self.info.kpt_shape,
            "input": {
                **dataclasses.asdict(self.inputs[0]),
                "layout": "NCHW",
                "imgsz": self.imgsz,
                "batch": self.batch,
                "dynamic": self.dynamic,
            },
            "preprocess": self.info.preprocess.to_dict(),
            "outputs": {
                "format": self.info.output_format.name,
                "main": main,
                "prototypes": prototypes,
                "tensors": [dataclasses.asdict(output) for output in self.outputs],
            },
            "thresholds": dict(self.thresholds),
            # JSON has no NaN, as recall without objects is, and readers other than Python's refuse it.
            "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
            "passport": None if self.passport is None else {**self.passport.to_dict(), "layers": []},
            "versions": dict(versions),
        }

    def write(self, folder: Path, *, metrics: Mapping[str, float], versions: Mapping[str, str]) -> None:
        """Write the common files into a folder."""
        self.copy_model(folder)
        write_json(folder / "model.json", self.describe(metrics=metrics, versions=versions))
        (folder / "samples").mkdir()
        rows = []
        for number, (image, prediction) in enumerate(zip(self.images, self.expected, strict=True), 1):
            # PNG: every reader decodes it to the same pixels. It has no place for other numbers of channels.
            name = f"{number}.{'png' if image.shape[2] in (1, 3) else 'npy'}"
            if name.endswith(".png"):
                (folder / "samples" / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
            else:
                np.save(folder / "samples" / name, np.ascontiguousarray(image))
            rows.append({"image": name, **_to_expected(prediction)})
        boxes, scores = (
            (REFERENCE_BOX_TOLERANCE, REFERENCE_SCORE_TOLERANCE)
            if self.by_reference
            else (BOX_TOLERANCE, SCORE_TOLERANCE)
        )
        tolerance = {"box": boxes[self.precision], "score": scores[self.precision]}
        write_json(folder / "samples" / "expected.json", {"tolerance": tolerance, "images": rows})
        for name in ("yolo.py", "check.py"):
            shutil.copyfile(FILES / name, folder / name)

    def write_tensors(self, folder: Path, *, with_input: bool = False) -> None:
        """Write the outputs on the sample images as float32 files, with `tensors.json` that names them.

        Args:
            folder: Where to; it is created.
            with_input: Whether to write the input too.
        """
        folder.mkdir(parents=True)
        tensors = {self.inputs[0].name: self.sample_input} if with_input else {}
        entries = {}
        for number, (name, values) in enumerate({**tensors, **self.sample_outputs}.items()):
            file = f"{number}_{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.bin"
            (folder / file).write_bytes(np.ascontiguousarray(values, "<f4").tobytes())
            entries[name] = {"file": file, "shape": values.shape}
        write_json(folder / "tensors.json", entries)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A model file that was checked and not run yet.

    Attributes:
        path: The file.
        format: "onnx" or "engine".
        info: The model's description.
        passport: An engine's provenance, or None.
        runs: The file to run for the expected detections: `path`, or the ONNX file of the same export.
        weights: Files that hold the weights of an ONNX file, relative to its folder.
        backend: The backend that runs an engine; "" for an ONNX file.
    """

    path: Path
    format: str
    info: ModelInfo
    passport: Passport | None
    runs: Path
    weights: tuple[str, ...] = ()
    backend: str = ""

    def refuse_rtx(self, target: str) -> None:
        """Check that the engine is none of TensorRT-RTX, for a target with TensorRT's own runtime.

        Args:
            target: The target's name.

        Raises:
            RecipeError: It is.
        """
        if self.backend == "tensorrt_rtx":
            raise RecipeError(
                f"deploy {self.path.name} to {target}",
                f"it is a TensorRT-RTX engine, and {target} has TensorRT's runtime, which does not load it",
                "build it with backend='tensorrt', or use the python target",
                code="deploy-backend-unsupported",
                path=str(self.path),
                backend=self.backend,
            )


def check_source(path: Path, reference: Path | None) -> Source:
    """Read a model file's description and check that it, or its reference, runs here.

    Args:
        path: An ONNX or engine file.
        reference: The ONNX file to run where the engine does not run here.

    Raises:
        OnnxError, EngineError: A file is missing or damaged.
        CapabilityError: The engine does not run here and there is no `reference`.
        RecipeError: The reference is of another model, or the file holds no decoding or no weights.
    """
    from trtkit.backends.compatibility import check_compatibility
    from trtkit.backends.engine_file import read_engine
    from trtkit.backends.requirements import require_run
    from trtkit.models.onnx_model import read_onnx

    if path.suffix.lower() == ".onnx":
        model = read_onnx(path)
        _check_decoded(path, model.info)
        return Source(path=path, format="onnx", info=model.info, passport=None, runs=path, weights=_find_weights(path))
    engine = read_engine(path)
    info, passport = engine.info(), engine.passport
    _check_decoded(path, info)
    if passport is not None and passport.pixel_input is not None:
        raise RecipeError(
            f"deploy {path.name}",
            "it reads pixels in blocks, and a deployment's programs pass float images",
            "export it again without space_to_depth=True (--space-to-depth)",
            code="deploy-pixel-input",
            path=str(path),
        )
    if passport is not None and passport.weights == "stripped":
        raise RecipeError(
            f"deploy {path.name}",
            "it was exported without weights",
            "put them in: trtkit engine refit ENGINE ONNX OUTPUT, or backends.refit_engine",
            code="deploy-weights-stripped",
            path=str(path),
        )
    try:
        capabilities = require_run(engine.backend)
        mismatch = None if passport is None else check_compatibility(passport, capabilities)
        found = None if mismatch is None else mismatch.found
    except CapabilityError as error:
        found = error.found
    if found is None:
        return Source(path=path, format="engine", info=info, passport=passport, runs=path, backend=engine.backend)
    if reference is None:
        raise CapabilityError(
            f"deploy {path.name}",
            f"the engine does not run here: {found}",
            "pass reference= (--reference), the ONNX file of the same export, which gives the expected detections",
            code="deploy-reference-missing",
            path=str(path),
        )
    model = read_onnx(reference)
    hashes = model.hash, str(model.notes.get("trtkit", {}).get("model_hash", ""))
    if passport is not None and passport.model_hash not in hashes:
        raise RecipeError(
            f"deploy {path.name} with reference {reference.name}",
            "the reference is of another model",
            "pass the ONNX file of the same export",
            code="deploy-reference-mismatch",
            path=str(reference),
            value=hashes[1] or hashes[0],
            expected=passport.model_hash,
        )
    return Source(path=path, format="engine", info=info, passport=passport, runs=reference, backend=engine.backend)


def _check_decoded(path: Path, info: ModelInfo) -> None:
    if info.output_format.name == RAW_MAPS.name:
        raise RecipeError(
            f"deploy {path.name}",
            "it returns the head's raw maps, and a deployment's programs read decoded boxes",
            "export it again without decode=False (--no-decode)",
            code="deploy-raw-maps",
            path=str(path),
        )


def read_samples(samples: Sequence[str | Path] | str | Path | None, info: ModelInfo) -> tuple[np.ndarray, ...]:
    """Read the sample images.

    Args:
        samples: Images, of which the first three count; None takes embedded ones.
        info: The model that will run them.

    Raises:
        DataError: An image can't be read.
    """
    from trtkit.data import open_dataset, read_image
    from trtkit.demo import EMBEDDED_TASKS, data_path

    if samples is None:
        task = info.task if info.task in EMBEDDED_TASKS else "detect"
        samples = open_dataset(data_path(task), task=task).images("val")
    paths = [samples] if isinstance(samples, (str, Path)) else list(samples)
    return tuple(read_image(Path(path), info.channels) for path in paths[:SAMPLES])


def read_bundle(source: Source, images: tuple[np.ndarray, ...], *, conf: float, iou: float, max_det: int) -> Bundle:
    """Run the sample images and collect what a deployment needs.

    Args:
        source: From `check_source`.
        images: From `read_samples`.
        conf: Minimum score of a detection.
        iou: IoU threshold of NMS.
        max_det: Maximum number of detections per image.
    """
    from trtkit.backends import open as open_runner
    from trtkit.backends.runner import Runner

    passport = source.passport
    with open_runner(source.runs) as runner:
        # Preprocessed on the CPU, as `yolo.py` does: an engine's own GPU preprocessing rounds gray levels differently,
        # which moves the scores of FP16 and INT8 by more than the same engine does from run to run.
        expected = tuple(Runner.predict(runner, list(images), conf=conf, iou=iou, max_det=max_det))
        sample_input, sample_outputs = _run_samples(runner, images)
        inputs, outputs = _read_tensors(runner)
        return Bundle(
            path=source.path,
            format=source.format,
            info=runner.info,
            precision=passport.precision if passport else runner.precision,
            batch=passport.batch if passport else runner.batch,
            imgsz=passport.imgsz if passport else runner.imgsz,
            dynamic=passport.dynamic if passport else runner.dynamic,
            inputs=inputs,
            outputs=outputs,
            passport=passport,
            model_hash=passport.model_hash if passport else runner.hash,
            thresholds={"conf": conf, "iou": iou, "max_det": max_det},
            images=images,
            expected=expected,
            sample_input=sample_input,
            sample_outputs=sample_outputs,
            weights=source.weights,
            by_reference=source.runs != source.path,
        )


def _find_weights(path: Path) -> tuple[str, ...]:
    """The files that hold the weights of an ONNX file, as the graph names them: relative to its folder."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    tensors = [one for one in onnx.load(path, load_external_data=False).graph.initializer if uses_external_data(one)]
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return tuple(sorted(names))


def _run_samples(runner: Runner, images: Sequence[np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The model's input of images and its outputs on it."""
    from trtkit.data import resize_to_input, to_input

    inputs, outputs = [], []
    for batch in runner.read_batches(list(images)):
        resized = [resize_to_input(image, runner.imgsz, runner.info.preprocess)[0] for image in batch]
        inputs.append(to_input(resized, runner.info.preprocess))
        outputs.append(runner.infer(inputs[-1]))
    return np.concatenate(inputs), {
        name: np.concatenate([np.asarray(batch[name], np.float32) for batch in outputs]) for name in outputs[0]
    }


def _read_tensors(runner: Runner) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of a runner, by running it at its own size and, where that is open, at another one."""
    height, width = runner.imgsz
    count = runner.batch if runner.batch is not None and not runner.dynamic else 1
    produced = _shapes(runner, (count, runner.info.channels, height, width))
    others = None
    if runner.dynamic:
        # An open batch alone leaves height and width fixed: the graph says so by refusing another size.
        with contextlib.suppress(EngineError):
            sides = (height // 64 * 32 or height + 32, width // 64 * 32 or width + 32)
            others = _shapes(runner, (count, runner.info.channels, *sides))
    lead = -1 if runner.dynamic else count
    name, dtypes = getattr(runner, "input_name", "images"), _read_dtypes(runner)
    spatial = (height, width) if others is None else (-1, -1)
    inputs = (TensorSpec(name=name, dtype=dtypes.get(name, "float32"), shape=(lead, runner.info.channels, *spatial)),)
    outputs = []
    for output, shape in produced.items():
        other = shape if others is None else others[output]
        axes = tuple(side if side == another else -1 for side, another in zip(shape[1:], other[1:], strict=True))
        outputs.append(TensorSpec(name=output, dtype=dtypes.get(output, "float32"), shape=(lead, *axes)))
    return inputs, tuple(outputs)


def _shapes(runner: Runner, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of the outputs for an input of a shape."""
    return {name: array.shape for name, array in runner.infer(np.zeros(shape, np.float32)).items()}


def _read_dtypes(runner: Runner) -> dict[str, str]:
    """The types of an ONNX file's inputs and outputs; engines that trtkit builds have float32 ones."""
    session = getattr(runner, "session", None)
    if session is None:
        return {}
    types = {"tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8"}
    tensors = (*session.get_inputs(), *session.get_outputs())
    return {tensor.name: types.get(tensor.type, "float32") for tensor in tensors}


def _to_expected(prediction: Any) -> dict[str, Any]:
    """A prediction as JSON-ready data."""
    if hasattr(prediction, "probabilities"):
        return {"probabilities": prediction.probabilities.tolist()}
    rows: dict[str, Any] = {
        "boxes": prediction.boxes.tolist(),
        "scores": prediction.scores.tolist(),
        "classes": prediction.classes.tolist(),
    }
    for name in ("keypoints", "xywhr"):
        if hasattr(prediction, name):
            rows[name] = getattr(prediction, name).tolist()
    if hasattr(prediction, "masks"):
        masks = prediction.masks
        rows["masks"] = [_count_runs(masks.full_resolution(index)) for index in range(len(masks))]
    return rows


def _count_runs(mask: np.ndarray) -> list[int]:
    """Lengths of unset and set runs in turn, down the columns: COCO's uncompressed run-length encoding."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    ends = np.concatenate((edges, [flat.size]))
    runs = np.diff(np.concatenate(([0], ends))).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON into a folder that is not published yet."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

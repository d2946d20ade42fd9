"""Triton Inference Server: a model repository in which a client sends images and gets detections."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trtkit.backends.triton import PARAMETER
from trtkit.deployment.bundle import FILES, Bundle, TensorSpec, write_json
from trtkit.deployment.target import Target, register_target
from trtkit.errors import RecipeError

__all__ = ["merge_triton", "render_config", "write_triton"]

QUEUE_DELAY_US = 500
"""The longest that a request waits for others to join its batch, microseconds."""

MAX_QUEUE = 128
"""Requests that wait at most: beyond them the server refuses, where without a limit it would answer ever later."""

OPEN_BATCH = 8
"""`max_batch_size` of a model whose batch has no limit."""

TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "float64": "TYPE_FP64",
    "int32": "TYPE_INT32",
    "uint8": "TYPE_UINT8",
    "bytes": "TYPE_STRING",
}

REPOSITORY, NATIVE = "models", "models-native"


class Symbol(str):
    """A name that is written without quotation marks."""


def render_config(config: Mapping[str, Any], depth: int = 0) -> str:
    """Render a model configuration as protobuf text.

    Args:
        config: Fields by name: strings, `Symbol`s, numbers, booleans, mappings (messages) and lists of these.
        depth: Level of indentation.
    """
    indent = "  " * depth
    lines = []
    for name, value in config.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                lines.append(f"{indent}{name} {{\n{render_config(item, depth + 1)}{indent}}}\n")
            elif isinstance(item, bool):
                lines.append(f"{indent}{name}: {str(item).lower()}\n")
            elif isinstance(item, str) and not isinstance(item, Symbol):
                lines.append(f"{indent}{name}: {json.dumps(item)}\n")
            else:
                lines.append(f"{indent}{name}: {item}\n")
    return "".join(lines)


def write_triton(bundle: Bundle, folder: Path) -> Sequence[str]:
    """Write a model repository: pre- and postprocessing on the Python backend, and the model on it or on NVIDIA's own.

    `models` holds the repository for Triton's Python backend; `models-native` the model for Triton's TensorRT or ONNX
    Runtime backend.

    Args:
        bundle: The model file and what is known of it.
        folder: The deployment folder.
    """
    name = _model_name(bundle.name)
    most = bundle.batch or OPEN_BATCH
    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    described["triton"] = {"model": name, "ensemble": f"{name}_images", "max_batch_size": most}
    write_json(folder / "model.json", described)
    # Triton's TensorRT backend loads none of TensorRT-RTX.
    is_rtx = bundle.passport is not None and bundle.passport.backend == "tensorrt_rtx"
    if not is_rtx:
        _write_native(folder / NATIVE / name, bundle)
    _write_model(folder / REPOSITORY / name, bundle, folder, most)
    _write_steps(folder / REPOSITORY, name, bundle, folder, most)
    _rename_file(folder, f"{REPOSITORY}/{name}/1/{bundle.file_name}")
    shutil.copyfile(FILES / "triton" / "infer.py", folder / "infer.py")
    is_engine = bundle.format == "engine"
    backend = "TensorRT" if is_engine else "ONNX Runtime"
    fits = bundle.dynamic and all(tensor.dtype == "float32" for tensor in (*bundle.inputs, *bundle.outputs))
    served = (
        f"`tritonserver --model-repository={REPOSITORY}` serves it with Triton's Python backend, which needs NumPy, "
        f"OpenCV or Pillow, and {'tensorrt_rtx' if is_rtx else 'tensorrt' if is_engine else 'onnxruntime'} in its "
        "environment.",
        "",
        f"A client sends encoded images to `{name}_images` and gets boxes: `python infer.py IMAGE --url HOST:8001` "
        "(`pip install tritonclient[grpc]`).",
    )
    if is_rtx:
        return served
    return (
        *served,
        "",
        f"`{NATIVE}/{name}` is the model for Triton's own {backend} backend, tensors in, tensors out"
        f"{f'; it can take the place of `{REPOSITORY}/{name}`' if fits else ''}. It was not served here: its "
        "configuration was only parsed.",
    )


def _model_name(stem: str) -> str:
    """The name under which the server has a model file."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", stem)


def check_several_triton(stems: Sequence[str]) -> None:
    """Check that the server can tell several models apart, and the parts of each.

    Args:
        stems: The names of the model files, without their endings.

    Raises:
        RecipeError: Two have the same name, or one is called as the repository.
    """
    parts = ("", "_preprocess", "_postprocess", "_images")
    owners: dict[str, str] = {REPOSITORY: "the repository", NATIVE: "the repository"}
    for stem in stems:
        taken = [stem] if stem in owners else [f"{_model_name(stem)}{part}" for part in parts]
        for name in taken:
            if name in owners:
                raise RecipeError(
                    f"deploy {', '.join(stems)} to one server",
                    f"{stem} and {owners[name]} would both be called {name}",
                    "rename a file (letters other than A-Z, a-z, 0-9, _ and - become _)",
                    code="deploy-names-collide",
                    names=tuple(stems),
                )
            owners[name] = stem


def merge_triton(folder: Path) -> None:
    """Put the repositories of several models together, so that one server serves them side by side.

    Args:
        folder: The folder that holds one deployment folder for each model.
    """
    for own in sorted(path for path in folder.iterdir() if path.is_dir()):
        for kind in [kind for kind in (REPOSITORY, NATIVE) if (own / kind).is_dir()]:
            (folder / kind).mkdir(exist_ok=True)
            for model in sorted((own / kind).iterdir()):
                model.rename(folder / kind / model.name)
            (own / kind).rmdir()
        described = json.loads((own / "model.json").read_text(encoding="utf-8"))
        described["file"]["name"] = f"../{described['file']['name']}"
        write_json(own / "model.json", described)
    with (folder / "README.md").open("a", encoding="utf-8") as file:
        file.write(f"\n`tritonserver --model-repository={REPOSITORY}` serves all of them.\n")


def _rename_file(folder: Path, name: str) -> None:
    """Note in `model.json` where the model file lies; the copy beside it goes."""
    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    (folder / described["file"]["name"]).unlink()
    described["file"]["name"] = name
    write_json(folder / "model.json", described)


def _tensor(name: str, dtype: str, dims: Iterable[int]) -> dict[str, Any]:
    return {"name": name, "data_type": Symbol(TYPES[dtype]), "dims": [int(value) for value in dims]}


def _tensors(specs: Sequence[TensorSpec], dtype: str | None = None) -> list[dict[str, Any]]:
    """Tensors without the batch, in their own type or a given one."""
    return [_tensor(spec.name, dtype or spec.dtype, spec.shape[1:]) for spec in specs]


def _batching(most: int) -> dict[str, Any]:
    """Dynamic batching, where there is something to batch."""
    policy = {"max_queue_delay_microseconds": QUEUE_DELAY_US, "default_queue_policy": {"max_queue_size": MAX_QUEUE}}
    return {"dynamic_batching": policy} if most > 1 else {}


def _ending(bundle: Bundle, most: int, dtype: str | None = None) -> dict[str, Any]:
    """The description for trtkit, a warm-up run at the optimal size and the version policy."""
    height, width = bundle.imgsz
    # Without a batch of its own, the batch is part of the shape.
    shape = [*([] if most else [bundle.batch or 1]), bundle.info.channels, height, width]
    entry = bundle.inputs[0]
    warm = {"data_type": Symbol(TYPES[dtype or entry.dtype]), "dims": shape, "zero_data": True}
    description = {
        **bundle.info.to_metadata(batch=most or bundle.batch or 1, imgsz=bundle.imgsz),
        "precision": bundle.precision,
        "dynamic": bundle.dynamic,
        "model_hash": bundle.model_hash,
    }
    return {
        "model_warmup": {
            "name": "zeros",
            # 1 where the batch is part of the shape.
            "batch_size": max(1, most),
            "inputs": {"key": entry.name, "value": warm},
        },
        "parameters": [{"key": PARAMETER, "value": {"string_value": json.dumps(description)}}],
        "version_policy": {"latest": {"num_versions": 1}},
    }


def _write_config(target: Path, config: Mapping[str, Any]) -> None:
    (target / "config.pbtxt").write_text(render_config(config), encoding="utf-8")


def _write_model(target: Path, bundle: Bundle, folder: Path, most: int) -> None:
    """The model on the Python backend, which takes and gives float32 and fills a fixed batch up by itself."""
    version = target / "1"
    version.mkdir(parents=True)
    shutil.copyfile(FILES / "triton" / "model.py", version / "model.py")
    is_engine = bundle.format == "engine"
    shutil.copyfile(FILES / ("python" if is_engine else "onnxruntime") / "infer.py", version / "infer.py")
    for file in ("yolo.py", "model.json", bundle.file_name):
        shutil.copyfile(folder / file, version / file)
    bundle.move_weights(folder, version)
    config: dict[str, Any] = {
        "name": target.name,
        "backend": "python",
        "max_batch_size": most,
        "input": _tensors(bundle.inputs, "float32"),
        "output": _tensors(bundle.outputs, "float32"),
        "instance_group": {"count": 1, "kind": Symbol("KIND_GPU" if is_engine else "KIND_CPU")},
        **_batching(most),
        **_ending(bundle, most, "float32"),
    }
    if not is_engine:
        config["parameters"] += [{"key": "provider", "value": {"string_value": "cpu"}}]
    _write_config(target, config)


def _write_native(target: Path, bundle: Bundle) -> None:
    """The model for Triton's TensorRT or ONNX Runtime backend, from its own inputs, outputs and profile."""
    from trtkit.backends.engine_file import strip_engine

    version = target / "1"
    version.mkdir(parents=True)
    is_engine = bundle.format == "engine"
    if is_engine:
        strip_engine(bundle.path, version / "model.plan")
    else:
        bundle.copy_model(version)
    # Only an open batch is Triton's to fill; a fixed one is part of every shape.
    most = (bundle.batch or OPEN_BATCH) if bundle.dynamic else 0
    fixed = [] if most else [bundle.batch or 1]
    config: dict[str, Any] = {
        "name": target.name,
        "platform": "tensorrt_plan" if is_engine else "onnxruntime_onnx",
        "max_batch_size": most,
    }
    for kind, specs in (("input", bundle.inputs), ("output", bundle.outputs)):
        config[kind] = [_tensor(spec.name, spec.dtype, [*fixed, *spec.shape[1:]]) for spec in specs]
    config["instance_group"] = {"count": 1, "kind": Symbol("KIND_GPU")}
    _write_config(target, {**config, **_batching(most), **_ending(bundle, most)})


def _write_steps(repository: Path, name: str, bundle: Bundle, folder: Path, most: int) -> None:
    """Preprocessing, postprocessing and the ensemble of the three."""
    height, width = bundle.imgsz
    source = [_tensor("image", "bytes", [1])]
    place = _tensor("place", "int32", [6])
    middle = [_tensor("input", "float32", [bundle.info.channels, height, width]), place]
    raw, final = _tensors(bundle.outputs, "float32"), _describe_answer(bundle)
    for step, inputs, outputs in (("preprocess", source, middle), ("postprocess", [*raw, place], final)):
        version = repository / f"{name}_{step}" / "1"
        version.mkdir(parents=True)
        shutil.copyfile(FILES / "triton" / f"{step}.py", version / "model.py")
        for file in ("yolo.py", "model.json"):
            shutil.copyfile(folder / file, version / file)
        config = {
            "name": f"{name}_{step}",
            "backend": "python",
            "max_batch_size": most,
            "input": inputs,
            "output": outputs,
            "instance_group": {"count": 2, "kind": Symbol("KIND_CPU")},
        }
        _write_config(version.parent, config)

    results = {spec.name: f"raw_{spec.name}" for spec in bundle.outputs}
    steps = [
        _step(f"{name}_preprocess", {"image": "image"}, {"input": "input", "place": "place"}),
        _step(name, {bundle.inputs[0].name: "input"}, results),
        _step(f"{name}_postprocess", {**results, "place": "place"}, {one["name"]: one["name"] for one in final}),
    ]
    ensemble = repository / f"{name}_images"
    (ensemble / "1").mkdir(parents=True)
    # Triton wants the version folder, and an empty folder is lost in archives and in git.
    (ensemble / "1" / ".keep").write_bytes(b"")
    config = {"name": ensemble.name, "platform": "ensemble", "max_batch_size": most, "input": source, "output": final}
    _write_config(ensemble, {**config, "ensemble_scheduling": {"step": steps}})


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
    """A step of an ensemble: a model, and the ensemble's tensors by those of the model."""
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": [{"key": key, "value": value} for key, value in inputs.items()],
        "output_map": [{"key": key, "value": value} for key, value in outputs.items()],
    }


def _describe_answer(bundle: Bundle) -> list[dict[str, Any]]:
    """What a client gets: rows beyond `count` are zero."""
    if bundle.info.task == "classify":
        return [_tensor("probabilities", "float32", [len(bundle.info.names)])]
    rows = int(bundle.thresholds["max_det"])
    outputs = [
        _tensor("count", "int32", [1]),
        _tensor("boxes", "float32", [rows, 4]),
        _tensor("scores", "float32", [rows]),
        _tensor("classes", "int32", [rows]),
    ]
    if bundle.info.task == "segment":
        outputs.append(_tensor("masks", "bytes", [rows]))
    if bundle.info.task == "pose" and bundle.info.kpt_shape is not None:
        outputs.append(_tensor("keypoints", "float32", [rows, *bundle.info.kpt_shape]))
    if bundle.info.task == "obb":
        outputs.append(_tensor("xywhr", "float32", [rows, 5]))
    return outputs


register_target(
    Target(
        name="triton",
        formats=("onnx", "engine"),
        write=write_triton,
        merge=merge_triton,
        check_several=check_several_triton,
    )
)

"""The nine kinds of files that trtkit reads: whole ones to start from, how they are damaged, and who reads them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import random
import shutil
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import fuzz_mutators as mutators

TESTS = Path(__file__).resolve().parent.parent
for folder in (TESTS / "support", TESTS.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

Files = dict[str, bytes]
"""The content of a folder by relative path."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file.

    Attributes:
        name: As in the table.
        seeds: Whole folders.
        damage: A damaged copy of a folder.
        read: Reads the folder as a user would; returns for whole files.
    """

    name: str
    seeds: Callable[[], list[Files]]
    damage: Callable[[random.Random, Files], Files]
    read: Callable[[Path], None]


def damage_one(structured: Callable[[random.Random, bytes], bytes], *endings: str) -> Callable[..., Files]:
    """Damage one file of a folder, by its structure or, in a third of all cases, as bytes."""

    def damage(dice: random.Random, files: Files) -> Files:
        name = dice.choice([name for name in files if name.endswith(endings)])
        change = mutators.damage_bytes if dice.random() < 1 / 3 else structured
        return {**files, name: change(dice, files[name])}

    return damage


def checkpoints() -> list[Files]:
    """A tiny detector in both formats of torch.save."""
    import torch
    from fake_checkpoints import ultralytics_like

    parts = ("", ".nn", ".nn.tasks", ".nn.modules", ".nn.modules.conv", ".nn.modules.block", ".nn.modules.head")
    names = [f"ultralytics{part}" for part in (*parts, ".utils")]
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    try:
        content = {"model": ultralytics_like(), "version": "8.4.190", "train_args": {"task": "detect", "imgsz": 96}}
        files = []
        for is_zip in (True, False):
            buffer = io.BytesIO()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
            files.append({"best.pt": buffer.getvalue()})
        return files
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def read_checkpoint(folder: Path) -> None:
    import trtkit as tk

    repr(tk.load(folder / "best.pt"))


def graphs() -> list[Files]:
    """Tiny detectors in three precisions."""
    import tiny_graphs

    kinds = (
        {"precision": "fp32"},
        {"precision": "fp32", "dynamic": True},
        {"precision": "fp16"},
        {"precision": "int8"},
    )
    return [{"model.onnx": tiny_graphs.detector(**kind).SerializeToString()} for kind in kinds]


def read_graph(folder: Path) -> None:
    """Load, trace (with onnxslim) and open, as `export` and `evaluate` do."""
    import trtkit as tk
    from trtkit.graph.torch_export import trace

    model = tk.load(folder / "model.onnx")
    trace(model)
    tk.open(folder / "model.onnx").close()


def engines() -> list[Files]:
    """Engines of trtkit and of Ultralytics, and a bare plan."""
    import tiny_graphs

    plan = b"ftrt" + bytes(range(256)) * 4
    info = tiny_graphs.info().to_metadata(batch=8)
    layer = {"name": "stem", "type": "Conv", "onnx_nodes": ["stem"], "precision": "fp16", "reformat": False, "ms": None}
    passport = {
        "backend": "tensorrt", "tensorrt": "8.6.0", "sm": "sm90", "gpu": "NVIDIA H100", "batch": 8, "imgsz": [32, 32],
        "plan_hash": hashlib.sha256(plan).hexdigest(), "plan_size": len(plan), "recipe": {"half": True},
        "versions": {"trtkit": "0.1.0"}, "layers": [layer, {**layer, "inputs": ["images"], "shape": "1x8"}],
    }  # fmt: skip
    from trtkit.files import hash_parts

    passport["plan_hash"] = hash_parts(plan)
    files = [{"model.engine": plan}]
    for header in (
        {**info, "trtkit": {**info["trtkit"], **passport}},
        {k: v for k, v in info.items() if k != "trtkit"},
    ):
        text = json.dumps(header).encode()
        files += [{"model.engine": len(text).to_bytes(4, "little") + text + plan}] * 3
    return files


def read_engine(folder: Path) -> None:
    """What `open` reads before TensorRT sees the plan, and the layer table."""
    import trtkit as tk
    from trtkit.backends import Capabilities, check_compatibility, detect_backend, read_engine
    from trtkit.backends.devices import Gpu, parse_device

    path = folder / "model.engine"
    detect_backend(path)
    file = read_engine(path)
    repr(file)
    core = file.passport.dla if file.passport is not None else file.metadata.get("dla")
    parse_device(None if core is None else f"dla:{core}")
    if file.passport is not None:
        gpu = Gpu(index=0, name="NVIDIA H100", sm="sm90", memory=2**36)
        capabilities = Capabilities(backend="tensorrt", present=True, version="8.6.0", gpus=(gpu,))
        check_compatibility(file.passport, capabilities)
        if file.passport.layers:
            table = tk.read_layers(path)
            tk.summarize_layers(table)
    repr(file.info())


def data_sets() -> list[Files]:
    """Four images with labels."""
    import cv2
    import numpy as np

    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    encoded = {suffix: cv2.imencode(suffix, image)[1].tobytes() for suffix in (".png", ".jpg", ".bmp", ".tiff")}
    files: Files = {"data.yaml": b"path: .\ntrain: images/val\nval: images/val\nnc: 2\nnames:\n  0: bar\n  1: blob\n"}
    for index, (suffix, content) in enumerate(encoded.items()):
        files[f"images/val/{index}{suffix}"] = content
        files[f"labels/val/{index}.txt"] = b"0 0.5 0.5 0.25 0.25\n1 0.25 0.25 0.125 0.125\n"
    return [files]


def read_data(folder: Path) -> None:
    from trtkit.data import open_dataset, read_image

    data = open_dataset(folder / "data.yaml", task="detect")
    for path in data.images("val"):
        read_image(path)
        data.labels(path)


def read_data_yaml(folder: Path) -> None:
    from trtkit.data import open_dataset

    data = open_dataset(folder / "data.yaml", task="detect")
    repr(data)
    for split in data.splits:
        data.images(split)


def caches() -> list[Files]:
    """A calibration cache of TensorRT for the tiny graph."""
    import tiny_graphs

    from trtkit.calibration.tensorrt_cache import format_cache

    proto = tiny_graphs.detector()
    names = {"images", *(name for node in proto.graph.node for name in node.output)}
    ranges = {name: (-1.0 - index, 2.0 + index) for index, name in enumerate(sorted(names))}
    return [{"model.cache": format_cache(ranges).encode(), "model.onnx": proto.SerializeToString()}]


def read_cache(folder: Path) -> None:
    from trtkit.calibration import Calibration

    Calibration.from_tensorrt_cache(folder / "model.cache", folder / "model.onnx")


CACHE_LINES = [
    "TRT-8600-MinMaxCalibration",
    "images: 7f800000",
    "images: ffffffff",
    "a: b: 3c010a14",
    ": 3c010a14",
    "\0",
    "images: 3c010a1",
    "x" * 5000,
    "images 3c010a14",
    "TRT--",
    "images: 3c01\u0660a14",
    "\u2028",
]
LABEL_LINES = [
    "-1 0.5 0.5 0.2 0.2",
    "1e99 0.5 0.5 0.2 0.2",
    "nan 0.5 0.5 0.2 0.2",
    "0 nan inf 0.2 0.2",
    "0 0.5",
    "0 2 2 2 2",
    "0 -0.05 0.5 0.2 0.2",
    "9999999999999 0.5 0.5 0.1 0.1",
    "a b c d e",
    "\0",
    "0,0.5,0.5,0.2,0.2",
    "\ufeff0 1 1 1 1",
    "0 1e400 0.5 0.2 0.2",
    "0 0x1 0.5 0.2 0.2",
    "0 1_0 0.5 0.2 0.2",
    "x" * 5000,
    "0 " + "0.5 " * 3000,
]


def saved_results() -> list[Files]:
    """Results of every kind, and a comparison and a calibration of version 0.1.0."""
    import tempfile

    from example_results import example_results

    folders = [TESTS / "comparison/references/v1", TESTS / "calibration/references/v1/calibration"]
    with tempfile.TemporaryDirectory() as name:
        folders += [result.save(Path(name) / result.kind) for result in example_results()]
        return [
            {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            for folder in folders
        ]


def damage_result(dice: random.Random, files: Files) -> Files:
    """Damage the JSON, a table or a graph; its hash is made right, and the JSON's dropped, in half of all cases."""
    name = dice.choice(list(files))
    if dice.random() < 0.5:
        name = dice.choice([name for name in files if name.endswith(".json")])
    structured = {".parquet": mutators.damage_table, ".json": mutators.damage_json}.get(
        Path(name).suffix, mutators.damage_bytes
    )
    content = (mutators.damage_bytes if dice.random() < 1 / 3 else structured)(dice, files[name])
    changed = {**files, name: content}
    if dice.random() < 0.5:
        old, new = (hashlib.sha256(data).hexdigest().encode() for data in (files[name], content))
        for key in [key for key in files if key.endswith(".json")]:
            changed[key] = changed[key].replace(old, new)
            with contextlib.suppress(ValueError, RecursionError, AttributeError):
                values = json.loads(changed[key])
                values.pop("hash", None)
                changed[key] = json.dumps(values).encode()
    if dice.random() < 0.05:
        del changed[name]
    return changed


def read_result(folder: Path) -> None:
    """Load, and show all that can be shown of it."""
    from example_results import KINDS as TYPES

    from trtkit.comparison.comparison import Comparison

    names = {path.name.partition(".")[0] for path in folder.iterdir()} - {"calibration"} or {"calibration"}
    kind = next(kind for kind in TYPES if kind.kind in names)
    kind.load_provenance(folder)
    result = kind.load(folder)
    repr(result)
    result.frame()
    result.plot()
    result._repr_html_()
    if isinstance(result, Comparison):
        from trtkit.comparison.report import render_report

        render_report(result)


def recipes() -> list[Files]:
    """The settings of an export as JSON, as engines and comparisons hold them."""
    from trtkit.recipe import Recipe

    recipe = Recipe(model="m.pt", int8=True, data="data.yaml", imgsz=(320, 640), keep=("/head/*",), workspace=2.0)
    return [{"recipe.json": json.dumps(recipe.to_dict()).encode()}]


def read_recipe(folder: Path) -> None:
    from trtkit.errors import RecipeError
    from trtkit.recipe import Recipe

    try:
        content = json.loads((folder / "recipe.json").read_bytes())
    except (ValueError, RecursionError) as error:
        # JSON is read by the file that holds the recipe; here only its values count.
        raise RecipeError("read a recipe", "it is no JSON", "write it again") from error
    recipe = Recipe.from_dict(content)
    recipe.to_python()
    recipe.to_command()


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="checkpoint",
            seeds=checkpoints,
            damage=damage_one(mutators.damage_checkpoint, ".pt"),
            read=read_checkpoint,
        ),
        Kind(name="onnx", seeds=graphs, damage=damage_one(mutators.damage_onnx, ".onnx"), read=read_graph),
        Kind(name="engine", seeds=engines, damage=damage_one(mutators.damage_engine, ".engine"), read=read_engine),
        Kind(
            name="data.yaml",
            seeds=data_sets,
            damage=damage_one(lambda dice, data: mutators.damage_text(dice, data, mutators.YAML_LINES), ".yaml"),
            read=read_data_yaml,
        ),
        Kind(
            name="labels",
            seeds=data_sets,
            damage=damage_one(lambda dice, data: mutators.damage_text(dice, data, LABEL_LINES), ".txt"),
            read=read_data,
        ),
        Kind(
            name="images",
            seeds=data_sets,
            damage=damage_one(mutators.damage_image, ".png", ".jpg", ".bmp", ".tiff"),
            read=read_data,
        ),
        Kind(
            name="calibration cache",
            seeds=caches,
            damage=damage_one(lambda dice, data: mutators.damage_text(dice, data, CACHE_LINES), ".cache"),
            read=read_cache,
        ),
        Kind(name="saved result", seeds=saved_results, damage=damage_result, read=read_result),
        Kind(name="recipe", seeds=recipes, damage=damage_one(mutators.damage_json, ".json"), read=read_recipe),
    )
}

_SEEDS: dict[str, list[Files]] = {}


@contextlib.contextmanager
def damaged_folder(kind: Kind, seed: int, parent: Path) -> Iterator[Path]:
    """A folder with the damaged files of one case; removed afterwards."""
    if kind.name not in _SEEDS:
        _SEEDS[kind.name] = kind.seeds()
    dice = random.Random(f"{kind.name}/{seed}")
    files = kind.damage(dice, dice.choice(_SEEDS[kind.name]))
    folder = parent / f"{kind.name.replace(' ', '-')}-{seed}"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run_case(kind: Kind, seed: int, parent: Path) -> tuple[str, str]:
    """One case: ("success" | "clean" | "raw", what was raised)."""
    from trtkit.errors import TrtkitError

    with damaged_folder(kind, seed, parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind.read(folder)
        except TrtkitError as error:
            return ("clean" if len(str(error)) < 4000 else "raw"), f"{type(error).__name__} {error.code}"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 (some libraries' are no Exception)
            return "raw", f"{type(error).__module__}.{type(error).__name__}: {str(error)[:120]!r}"
    return "success", ""

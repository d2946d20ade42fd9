"""Engines of the demo model and of tiny graphs, built once per run on this machine's GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import tempfile
import time
import traceback
import unittest
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
# Run as a script, the package and the test helpers need not be installed.
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "support")]

import tiny_graphs

import trtkit
from trtkit import backends, demo
from trtkit.backends import BuildSettings, Passport
from trtkit.errors import TrtkitError
from trtkit.files import hash_parts
from trtkit.models.model import NMS_ROWS

SIZE = (160, 160)
BATCH = 2
# Largest score difference of a confident detection: TF32, FP16, and INT8 that rounds at other places than ONNX Runtime.
SCORES = {"fp32": 0.02, "fp16": 0.03, "int8": 0.12}


def require_tensorrt() -> backends.Capabilities:
    """The capabilities of TensorRT on this machine; skips the test where there is none."""
    caps = backends.probe("tensorrt")
    if not caps.present or not caps.gpus or not caps.torch_cuda:
        raise unittest.SkipTest(f"needs TensorRT, a GPU and torch with CUDA ({caps.missing or 'no GPU'})")
    return caps


@functools.cache
def folder() -> Path:
    chosen = os.environ.get("TRTKIT_GPU_FOLDER")
    path = Path(chosen) if chosen else Path(tempfile.mkdtemp(prefix="trtkit-gpu-"))
    path.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TRTKIT_CACHE", str(path / "cache"))
    return path


@contextlib.contextmanager
def expect_error(kind: type[TrtkitError], code: str, **fields: Any) -> Iterator[None]:
    """`raising.raises` for a machine without pytest."""
    caught = None
    try:
        yield
    except kind as error:
        caught = error
        print(f"      {error}")
    assert caught is not None, f"{kind.__name__} was not raised"
    assert caught.code == code, caught.code
    assert {name: caught.fields[name] for name in fields} == fields, caught.fields


@functools.cache
def graph(precision: str, nms: bool = False) -> Any:
    """The demo model as an ONNX graph; exported once."""
    import onnx

    path = folder() / f"demo-{precision}{'-nms' if nms else ''}.onnx"
    if not path.is_file():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trtkit.export(
                demo.model_path(),
                format="onnx",
                imgsz=SIZE,
                batch=BATCH,
                half=precision == "fp16",
                int8=precision == "int8",
                dynamic=False,
                nms=nms,
                data=demo.data_path() if precision == "int8" else None,
                fraction=0.25,
                output=path,
            )
    return onnx.load(str(path))


@functools.cache
def engine(precision: str, nms: bool = False) -> Path:
    """The demo model as an engine, built once. With "implicit", TensorRT's own calibrator chooses the INT8 layers."""
    caps = require_tensorrt()
    path = folder() / f"demo-{precision}{'-nms' if nms else ''}-{caps.version}.engine"
    if precision == "implicit" and not path.is_file():
        trtkit.export(
            demo.model_path(),
            imgsz=SIZE,
            batch=BATCH,
            int8=True,
            implicit=True,
            dynamic=False,
            data=demo.data_path(),
            opt_level=0,
            output=path,
        )
    elif not path.is_file():
        build_engine_file(
            graph(precision, nms),
            BuildSettings(precision=precision, batch=BATCH, imgsz=SIZE, opt_level=0),
            path,
            nms=nms,
        )
    return path


def build_engine_file(proto: Any, settings: BuildSettings, path: Path, *, nms: bool = False) -> tuple[Path, Any]:
    built = backends.build(proto, settings, backend="tensorrt")
    counts: dict[str, int] = {}
    for row in built.layers:
        counts[str(row["precision"])] = counts.get(str(row["precision"]), 0) + 1
    reformats = sum(bool(row["reformat"]) for row in built.layers)
    size = len(built.plan) / 1e6
    print(f"      built {path.name} in {built.seconds:.1f} s, {size:.1f} MB, {counts}, {reformats} reformats")
    with backends.open(proto) as described:
        info = described.info
        passport = Passport.from_build(
            built,
            settings,
            backend="tensorrt",
            model_hash=described.hash,
            graph_hash=hash_parts(proto.SerializeToString(deterministic=True)),
        )
    if nms:
        info = dataclasses.replace(info, output_format=NMS_ROWS)
    metadata = info.to_metadata(batch=settings.batch, imgsz=settings.imgsz, dynamic=settings.dynamic)
    return backends.write_engine(path, built.plan, metadata, passport), built


@functools.cache
def tiny(dynamic: bool = False) -> tuple[Path, Any]:
    proto = tiny_graphs.detector(batch=4, size=(64, 64), dynamic=dynamic)
    settings = BuildSettings(batch=4, imgsz=(64, 64), dynamic=dynamic, opt_level=0)
    return build_engine_file(proto, settings, folder() / f"tiny-{dynamic}.engine")[0], proto


@functools.cache
def images() -> tuple[np.ndarray, ...]:
    """Images of the demo, three of them cropped to other sizes."""
    import cv2

    paths = sorted((Path(demo.data_path()).parent / "images" / "val").iterdir())[:24]
    loaded = [cv2.imread(str(path)) for path in paths]
    return (*loaded[:21], loaded[21][:120], loaded[22][:, :133], np.ascontiguousarray(loaded[23][::2, ::2]))


def count_matches(one: Any, two: Any, *, score: float, pixels: float, conf: float = 0.5) -> tuple[int, int]:
    """Detections of `one` above `conf` with a match in `two`, and how many there are."""
    matched = total = 0
    for a, b in zip(one, two, strict=True):
        assert a.shape == b.shape
        for box, value, number in zip(a.boxes, a.scores, a.classes, strict=True):
            if value < conf:
                continue
            total += 1
            far, gap = np.abs(b.boxes - box).max(1), np.abs(b.scores - value)
            near = (far <= pixels) & (b.classes == number) & (gap <= score)
            matched += bool(near.any())
            if not near.any():
                others = sorted(
                    zip(far.round(2).tolist(), gap.round(3).tolist(), b.classes.tolist(), strict=True), key=sum
                )
                print(f"      class {number} at {value:.3f} has no match; nearest (px, score, class): {others[:3]}")
    return matched, total


def run_tests(names: Mapping[str, Any], words: list[str]) -> int:
    """Run a file's tests as a script, on a machine without pytest; each failure is printed and counted.

    Args:
        names: The file's `globals()`.
        words: Tests with one of these in their names; all of them without.

    Returns:
        The exit status, 1 if a test failed.
    """
    failed = []
    for name, test in list(names.items()):
        if not name.startswith("test_") or (words and not any(word in name for word in words)):
            continue
        print(f"{name} ...", flush=True)
        began = time.perf_counter()
        try:
            test()
            verdict = "ok"
        except unittest.SkipTest as reason:
            verdict = f"skipped: {reason}"
        except Exception:
            traceback.print_exc(file=sys.stdout)
            verdict = "FAILED"
            failed.append(name)
        print(f"   {verdict} in {time.perf_counter() - began:.1f} s", flush=True)
    print(f"{len(failed)} failed: {failed}")
    return 1 if failed else 0

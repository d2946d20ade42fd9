"""Builds by TensorRT on a real GPU, and what is built: engines for other machines, refits, deployment folders, workers.

    pytest tests/gpu -m gpu            python tests/gpu/test_tensorrt_builds.py [word in a test's name ...]

As `test_tensorrt_gpu.py`, whose engines run.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
import unittest
import unittest.mock
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx

try:
    import pytest

    pytestmark = pytest.mark.gpu
except ImportError:
    pytest = None  # type: ignore[assignment]

HERE = Path(__file__).resolve().parent
# Run as a script, the package and the test helpers need not be installed.
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent / "support")]

import fake_triton
import tiny_graphs
from gpu_engines import (
    BATCH,
    SCORES,
    SIZE,
    build_engine_file,
    engine,
    expect_error,
    folder,
    require_tensorrt,
    run_tests,
    tiny,
)

import trtkit
from trtkit import backends, demo
from trtkit.backends import BuildSettings, ImplicitCalibration
from trtkit.errors import BuildError, CapabilityError, EngineError, RecipeError
from trtkit.results import package_versions


def test_of_several_builds_the_fastest_is_kept() -> None:
    require_tensorrt()
    source = folder() / "builds.onnx"
    onnx.save(tiny_graphs.detector(batch=4, size=(64, 64)), source)
    path = folder() / "builds.engine"
    artifact = trtkit.export(source, batch=4, builds=3, opt_level=0, output=path, overwrite=True)
    print(f"      p50 of the builds {artifact.build_latencies} ms")
    assert len(artifact.build_latencies) == 3
    assert artifact.verification is not None


def test_layer_table_of_every_precision() -> None:
    caps = require_tensorrt()
    for precision in SCORES:
        with backends.open(engine(precision)) as runner:
            frame = runner.layers(runs=5)
        assert len(frame) > 30
        assert frame["ms"].drop_nulls().sum() > 0, "the profiler's names are the inspector's"
        counts = dict(frame.group_by("precision").len().iter_rows())
        timed = frame["ms"].null_count()
        copies = frame["reformat"].sum()
        print(f"      {caps.version} {precision}: {len(frame)} layers, {counts}, {copies} reformats, {timed} untimed")
        print(frame.sort("ms", descending=True, nulls_last=True).head(3).select("name", "precision", "tactic", "ms"))
        nodes = {name for names in frame["onnx_nodes"] for name in names}
        assert any(name.endswith("Conv") for name in nodes), sorted(nodes)[:5]
        assert precision in counts


def test_the_passport_is_checked_before_tensorrt_loads_the_plan() -> None:
    require_tensorrt()
    path, _ = tiny()
    file = backends.read_engine(path)
    assert file.passport is not None
    changed = folder() / "changed.engine"
    for change, code in (
        ({"sm": "sm86", "gpu": "NVIDIA A10"}, "engine-gpu-mismatch"),
        ({"tensorrt": "9.9.9"}, "engine-version-mismatch"),
        ({"backend": "tensorrt_rtx"}, "engine-backend-mismatch"),
    ):
        passport = dataclasses.replace(file.passport, **change)
        backends.write_engine(changed, file.plan, file.metadata, passport)
        with expect_error(EngineError, code):
            backends.open(changed, backend="tensorrt")
    whole = path.read_bytes()
    changed.write_bytes(whole[: len(whole) // 2])
    with expect_error(EngineError, "engine-truncated"):
        backends.open(changed)
    changed.write_bytes(b"PK\x03\x04" + whole)
    with expect_error(EngineError, "engine-invalid"):
        backends.open(changed)


def test_plans_without_passport() -> None:
    require_tensorrt()
    path, proto = tiny()
    bare = backends.strip_engine(path, folder() / "bare.plan", overwrite=True)
    print(f"      a plan starts with {bare.read_bytes()[:8]!r}")
    with expect_error(EngineError, "engine-task-missing"):
        backends.open(bare)
    feed = np.random.default_rng(0).random((4, 3, 64, 64), dtype=np.float32)
    with backends.open(bare, task="detect") as runner, backends.open(proto) as other:
        assert len(runner.info.names) == 3
        np.testing.assert_allclose(runner.infer(feed)["output0"], other.infer(feed)["output0"], atol=0.1)
    theirs = backends.write_engine(folder() / "theirs.engine", bare.read_bytes(), tiny_graphs.info((64, 64)), None)
    with backends.open(theirs) as runner:
        assert runner.info.names == tiny_graphs.NAMES
    # A damaged plan may crash TensorRT, so it is opened in a child process.
    truncated = folder() / "truncated.engine"
    backends.write_engine(truncated, bare.read_bytes()[:3000], tiny_graphs.info((64, 64)), None)
    root = str(HERE.parents[1])
    code = f"import sys; sys.path.insert(0, {root!r})\nfrom trtkit import backends\nbackends.open({str(truncated)!r})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    print(f"      a truncated plan ends with {answer.returncode}: {answer.stderr.strip().splitlines()[-1][:200]}")
    assert "EngineError" in answer.stderr


def test_build_errors() -> None:
    caps = require_tensorrt()
    with expect_error(RecipeError, "build-workspace-gpu", value=4096):
        backends.build(tiny_graphs.detector(), BuildSettings(imgsz=(32, 32), workspace=4096), backend="tensorrt")
    with expect_error(BuildError, "build-unsupported-node", nodes=["/odd/Sharpen"], operators=["Sharpen"]):
        backends.build(tiny_graphs.unsupported_op(), BuildSettings(imgsz=(32, 32)), backend="tensorrt")
    if caps.has_fp16_flag:
        with expect_error(CapabilityError, "dla-core"):
            backends.build(
                tiny_graphs.detector("fp16"),
                BuildSettings(precision="fp16", imgsz=(32, 32), device="dla:0"),
                backend="tensorrt",
            )


def test_a_second_build_reads_the_timing_cache() -> None:
    require_tensorrt()
    cache = folder() / "once.cache"
    cache.unlink(missing_ok=True)
    settings = BuildSettings(batch=4, imgsz=(64, 64), opt_level=1, timing_cache=cache)
    proto = tiny_graphs.detector(batch=4, size=(64, 64), width=32)
    first, second = (backends.build(proto, settings, backend="tensorrt") for _ in range(2))
    cached = second.facts["timing_cache_bytes"]
    print(f"      {first.seconds:.1f} s, then {second.seconds:.1f} s with {cached:,} bytes of timings")
    assert first.facts["timing_cache_bytes"] == 0
    assert second.facts["timing_cache_bytes"] > 0
    cache.write_bytes(b"no timing cache at all")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backends.build(proto, settings, backend="tensorrt")
    print(f"      a broken cache: {[str(one.message) for one in caught]}")
    assert cache.read_bytes() != b"no timing cache at all"


def test_a_child_process_builds() -> None:
    require_tensorrt()
    path = folder() / "isolated.engine"
    proto = tiny_graphs.detector(batch=4, size=(64, 64))
    settings = BuildSettings(batch=4, imgsz=(64, 64), opt_level=0, isolate=True)
    build_engine_file(proto, settings, path)
    with backends.open(path) as runner, backends.open(proto) as other:
        feed = np.random.default_rng(0).random((4, 3, 64, 64), dtype=np.float32)
        np.testing.assert_allclose(runner.infer(feed)["output0"], other.infer(feed)["output0"], atol=0.1)
    with expect_error(BuildError, "build-unsupported-node", nodes=["/odd/Sharpen"]):
        backends.build(tiny_graphs.unsupported_op(), BuildSettings(imgsz=(32, 32), isolate=True), backend="tensorrt")


def test_engines_for_other_machines_agree_and_say_so() -> None:
    caps = require_tensorrt()
    feed = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    proto = tiny_graphs.detector(size=(64, 64))
    with backends.open(proto) as reference:
        expected = reference.infer(feed)
    for compatibility in caps.compatibilities:
        settings = BuildSettings(imgsz=(64, 64), opt_level=0, compatibility=compatibility)
        path, _ = build_engine_file(proto, settings, folder() / f"{compatibility}.engine")
        passport = backends.read_engine(path).passport
        assert passport is not None
        assert passport.compatibility == compatibility
        with backends.open(path) as runner:
            actual = runner.infer(feed)
        for name, value in expected.items():
            np.testing.assert_allclose(actual[name], value, rtol=0.02, atol=0.02)
        print(f"      {compatibility}: {path.stat().st_size / 1e6:.2f} MB")


def test_weights_are_put_into_refittable_and_stripped_engines() -> None:
    caps = require_tensorrt()
    feed = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    for weights in caps.weights:
        built, given = (
            tiny_graphs.detector(size=(64, 64), seed=seed) for seed in (0, 0 if weights == "stripped" else 1)
        )
        settings = BuildSettings(imgsz=(64, 64), opt_level=0, weights=weights)
        path, _ = build_engine_file(built, settings, folder() / f"{weights}.engine")
        whole = backends.refit_engine(path, given, folder() / f"{weights}-whole.engine", overwrite=True)
        with backends.open(given) as reference, backends.open(whole) as runner:
            expected, actual = reference.infer(feed), runner.infer(feed)
        for name, value in expected.items():
            np.testing.assert_allclose(actual[name], value, rtol=0.02, atol=0.02)
        print(f"      {weights}: {path.stat().st_size / 1e6:.2f} MB, refitted {whole.stat().st_size / 1e6:.2f} MB")


def test_implicit_calibration() -> None:
    caps = require_tensorrt()
    if not caps.has_int8_calibrator:
        raise unittest.SkipTest("this TensorRT has no calibrators")
    random = np.random.default_rng(0)
    cache = folder() / "implicit.cache"
    cache.unlink(missing_ok=True)
    for dynamic in (True, False):
        proto = tiny_graphs.detector(batch=2, size=(64, 64), dynamic=dynamic, width=32)
        implicit = ImplicitCalibration(
            batches=[random.random((4, 3, 64, 64), dtype=np.float32) for _ in range(3)], cache=cache
        )
        settings = BuildSettings(
            precision="int8", batch=2, imgsz=(64, 64), dynamic=dynamic, opt_level=0, implicit=implicit
        )
        path, _ = build_engine_file(proto, settings, folder() / f"implicit-{dynamic}.engine")
        assert b"MinMax" in cache.read_bytes()[:60]
        feed = random.random((2, 3, 64, 64), dtype=np.float32)
        with backends.open(path) as runner, backends.open(proto) as other:
            gap = np.abs(runner.infer(feed)["output0"] - other.infer(feed)["output0"])[:, 4:].max()
        print(f"      dynamic={dynamic}: scores differ by at most {gap:.4f}")
        assert gap < 0.1
        again = dataclasses.replace(settings, implicit=ImplicitCalibration(cache=cache))
        backends.build(proto, again, backend="tensorrt")


def test_box_decoding_stays_in_fp32_with_the_calibrator() -> None:
    caps = require_tensorrt()
    if not caps.has_int8_calibrator:
        raise unittest.SkipTest("this TensorRT has no calibrators")
    with backends.open(engine("implicit")) as runner:
        frame = runner.layers(runs=5)
    decoding = frame.filter(frame["onnx_nodes"].list.contains("/model.23/dfl/conv/Conv"))
    print(decoding.select("name", "precision"), dict(frame.group_by("precision").len().iter_rows()))
    assert len(decoding)
    assert set(decoding["precision"]) == {"fp32"}
    assert "int8" in frame["precision"]


def test_deployment_folders_prove_themselves() -> None:
    """With TensorRT and NumPy alone, and as models of Triton's Python backend."""
    require_tensorrt()
    for precision in SCORES:
        deployed = trtkit.deploy(engine(precision), "python", folder() / f"python-{precision}", overwrite=True).folder
        words = [sys.executable, "check.py"]
        done = subprocess.run(words, cwd=deployed, capture_output=True, text=True, check=False)
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("as expected") == 3
    serving = trtkit.deploy([engine(one) for one in SCORES], "triton", folder() / "serving", overwrite=True).folder
    server = fake_triton.Server(serving / "models")
    assert not server.broken, server.broken
    values = np.random.default_rng(0).random((BATCH, 3, *SIZE), np.float32)
    for precision in SCORES:
        with backends.open(engine(precision)) as runner:
            expected = runner.infer(values)
            found = server.infer(engine(precision).stem.replace(".", "_"), {runner.input_name: values})
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-2)


def require_distributed() -> None:
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise unittest.SkipTest("needs distributed") from error


ON_DEMO: dict[str, Any] = {"imgsz": 160, "eval_images": 8, "backend": "tensorrt", "calibration_images": 8}


def test_compare_builds_and_times_on_a_worker_with_a_gpu() -> None:
    """The caller opens no engine: all of them are built, run and timed by a worker, which takes its GPU for it."""
    caps = require_tensorrt()
    require_distributed()
    open_here = backends.open

    def open_no_engine(model: Any, **settings: Any) -> Any:
        # Calibration looks at the images with ONNX Runtime, in this process.
        assert isinstance(model, onnx.ModelProto), "opened here"
        return open_here(model, **settings)

    with (
        trtkit.open_executor("local:1") as executor,
        unittest.mock.patch.object(backends, "open", side_effect=open_no_engine),
    ):
        # FP16 takes minutes to build.
        comparison = trtkit.compare(
            demo.model_path(), demo.data_path(), ("int8",), opt_level=0, runs=20, seconds=1,
            output=folder() / "compare", overwrite=True, executor=executor, progress=print_stages(), **ON_DEMO,
        )  # fmt: skip
    assert caps.gpu is not None
    rows = comparison.frame()
    assert set(rows["runner"]) == {f"{caps.title} {caps.gpu.name}"}
    assert rows["p50_ms"].min() > 0
    (worker,) = comparison.provenance.machine["workers"]
    print(f"      {worker['gpus'][0]}")
    assert worker["gpus"][0]["name"] == caps.gpu.name
    assert worker["versions"] == package_versions()
    assert comparison.provenance.machine["gpus"][0]["uuid"] == worker["gpus"][0]["uuid"]
    assert set(comparison.layers["label"]) == {"int8"}


def test_search_builds_and_times_on_a_worker_with_a_gpu() -> None:
    caps = require_tensorrt()
    require_distributed()
    with trtkit.open_executor("local:1") as executor:
        result = trtkit.search(
            demo.model_path(), demo.data_path(), probe_images=2, trials=2, repair=False, resamples=20,
            executor=executor, progress=print_stages(), **ON_DEMO,
        )  # fmt: skip
    assert caps.gpu is not None
    assert set(result.trials["unit"]) == {"ms"}
    assert caps.gpu.name in result.cost_source


def print_stages() -> Any:
    """A progress callback that prints when each stage begins: where a run on a machine by hand spends its time."""
    began, seen = time.monotonic(), set()

    def show(event: Any) -> None:
        if event.stage not in seen:
            seen.add(event.stage)
            print(f"      {time.monotonic() - began:.0f} s: {event.stage}", flush=True)

    return show


if __name__ == "__main__":
    sys.exit(run_tests(globals(), sys.argv[1:]))

"""What each change at an engine's inputs, outputs and head gains: one lever at a time, and together.

    python benchmarks/levers.py prepare yolo11n.pt yolo11m --data data.yaml --out levers            (no GPU)
    python benchmarks/levers.py run levers --images IMAGES --seconds 540                            (GPU, TensorRT)
    python benchmarks/levers.py ratio levers/ratio-1.json FP16.engine INT8.engine                  (on each GPU)
    python benchmarks/levers.py write levers                                                       (the record)

`prepare` writes the ONNX graphs: calibration and tracing take a CPU minutes, while a GPU would wait. `run` builds each
variant of each graph several times, one build at a time on each GPU, and times each engine in a process of its own: the
engine alone by CUDA-graph replay, and `predict()` from decoded images where the runner reads the variant, by a call for
each batch and by one call for all. Builds of one number share their timings of kernels, so that variants differ by
their lever, not by luck; those of different numbers share nothing. `run` can be called again, to go on where it
stopped. `ratio` times INT8 beside FP16 on each GPU, round by round, and again beside other work. Levers that no option
of `export` has live here until they have won.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import levers_record
import numpy as np
import onnx
from lever_passes import join_branches, upsample_by_convolution, use_flags
from lever_variants import BASES, INPUTS, KEPT, NOISY, PRECISIONS, REWRITINGS, VARIANTS
from parallel_builds import Program, drive, gpus_here
from refinement_graphs import find_shiftable_groups, shift_activations
from space_to_depth import move_space_to_depth

import trtkit as tk
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.concatenations import read_splits_whole
from trtkit.graph.qdq import plan_qdq
from trtkit.graph.space_to_depth import use_pixel_blocks
from trtkit.models.onnx_model import from_proto
from trtkit.writing import write_json

HERE = Path(__file__).resolve()


# The verbs.


def load_model(name: str) -> tk.Model:
    """A model file, or an architecture by its name with weights made from it: times need no training.

    Args:
        name: A path, or a name such as "yolo11m".
    """
    if Path(name).is_file():
        return tk.load(name)
    sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))
    from networks import load_network

    return load_network(name)


def prepare(options: argparse.Namespace) -> None:
    """Write the graphs of every base, precision and batch."""
    with mock.patch("trtkit.graph.torch_export.fold_sums", lambda proto: proto):
        _write_graphs(options)


def _write_graphs(options: argparse.Namespace) -> None:
    from trtkit.graph.recipe_graph import build_graph
    from trtkit.graph.torch_export import trace

    graphs = Path(options.out) / "graphs"
    graphs.mkdir(parents=True, exist_ok=True)
    for path in options.models:
        model = load_model(path)
        size = (options.imgsz, options.imgsz)
        for base, precision, batch in (
            (base, precision, batch) for base in BASES for precision in PRECISIONS for batch in options.batch
        ):
            file = graphs / f"{model.stem}-{precision}-b{batch}-{base}.onnx"
            if not any(fnmatch.fnmatch(file.stem, words) for words in options.only):
                continue
            if file.is_file() or (base.startswith("end2end") and not model.has_one_to_one_head):
                continue
            if not any(one.base == base and precision in one.precisions for one in VARIANTS.values()):
                continue
            own = model.with_end2end() if base.startswith("end2end") else model
            if base.startswith("end2end") and precision == "int8":
                calibration = _calibrate(own, options, "-end2end")
            else:
                calibration = _calibrate(model, options)
            if base.startswith("joined"):
                graph, joined = join_branches(trace(own, imgsz=size, batch=batch))
                if not joined:
                    print(f"{file.stem}: no convolutions read the same tensor", flush=True)
                    continue
                ranges = dict(calibration.ranges)
                for tensor, parts in joined.items():
                    known = [ranges[part] for part in parts if part in ranges]
                    ranges[tensor] = (min(low for low, _ in known), max(high for _, high in known))
                calibration = dataclasses.replace(calibration, ranges=ranges)
                own = from_proto(graph)
            rewriting = base.split("-")[0]
            if rewriting in REWRITINGS:
                graph = trace(own, imgsz=size, batch=batch)
                for rewrite in REWRITINGS[rewriting]:
                    graph = rewrite(graph)
                own = from_proto(graph)
                calibration = _calibrate(own, options, f"-{rewriting}", stem=model.stem)
            keep = find_kept(base, trace(own, imgsz=size, batch=batch)) if base in KEPT else ()
            if base in NOISY:
                keep = find_noisy(model, _calibrate(model, options).ranges, options.data, NOISY[base])
            recipe = tk.Recipe(
                model=str(path), format="onnx", half=precision == "fp16", int8=precision == "int8", batch=batch,
                dynamic=False, keep=keep, **BASES[base],
            )  # fmt: skip
            graph = build_graph(own, recipe, calibration, imgsz=size)
            if base == "shifted":
                traced = trace(own, imgsz=size, batch=batch)
                placement = plan_qdq(traced)
                groups = find_shiftable_groups(traced, placement)
                graph = shift_activations(graph, placement, groups, calibration.ranges)
            onnx.save(graph, file)
            print(f"{file.stem}: {len(graph.graph.node)} nodes", flush=True)


def find_kept(base: str, graph: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the layers that a base leaves out of INT8.

    Args:
        base: One of `KEPT`.
        graph: The FP32 graph.
    """
    index = GraphIndex(graph)
    return tuple(node.name for node in index.weighted if KEPT[base](index, node))


def find_noisy(model: tk.Model, ranges: Mapping[str, tuple[float, float]], data: str, count: int) -> tuple[str, ...]:
    """Names of the head's layers, and of those that read the noisiest maps before it.

    Args:
        model: The model.
        ranges: Of its calibration.
        data: A data set's YAML file: noise is measured on some images of its `train`.
        count: Number of maps.
    """
    from refinement import NOISE_IMAGES, calibration_inputs
    from refinement_candidates import find_branches, find_worst_before, measure_scale_noise

    from trtkit.graph.torch_export import trace

    graph = trace(model, imgsz=model.imgsz, batch=1)
    images = list(calibration_inputs(model, Path(data), NOISE_IMAGES))
    noise = measure_scale_noise(graph, ranges, len(model.names), images)
    head, groups, index = find_branches(graph)["head"], plan_qdq(graph).scale_groups, GraphIndex(graph)
    noisy = {name for first in find_worst_before(graph, head, noise)[:count] for name in groups[first]}
    return (*head, *(node.name for node in index.weighted if node.input[0] in noisy))


def _calibrate(
    model: tk.Model, options: argparse.Namespace, suffix: str = "", *, stem: str | None = None
) -> tk.Calibration:
    """A calibration, kept in a folder for the next run."""
    folder = Path(options.out) / f"{stem or model.stem}-calibration{suffix}"
    if not folder.is_dir():
        count = options.calibration_images
        tk.calibrate(model, options.data, imgsz=options.imgsz, calibration_images=count, device="cpu").save(folder)
    return tk.Calibration.load(folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One build of one variant.

    Attributes:
        graph: The graph's file.
        model: The model's name.
        precision: One of `PRECISIONS`.
        batch: Images per run.
        variant: One of `VARIANTS`.
        number: Which build, from 0.
    """

    graph: Path
    model: str
    precision: str
    batch: int
    variant: str
    number: int

    @property
    def series(self) -> str:
        """The variants that share their timings of kernels, as the name of a folder."""
        own = "" if VARIANTS[self.variant].level is None else f"-{self.variant}"
        return f"{self.model}-{self.precision}-b{self.batch}-{self.number}{own}"

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.model}-{self.precision}-b{self.batch}-{self.variant}-{self.number}"


def list_jobs(out: Path, builds: int, only: Sequence[str] = ("*",)) -> list[Job]:
    """What is still to be built: a build of everything before the next of anything, and by the order of `only`.

    Args:
        out: The folder, with the graphs that `prepare` wrote and what `run` left.
        builds: Builds of each variant.
        only: Patterns of names, such as "yolo11n-int8-b8-*-0": a series on a GPU has time for some.
    """
    files = {path.stem: path for path in sorted((out / "graphs").glob("*.onnx"))}
    jobs = []
    for number in range(builds):
        for variant, one in VARIANTS.items():
            for stem, path in files.items():
                if not stem.endswith(f"-{one.base}"):
                    continue
                model, precision, batch = stem.removesuffix(f"-{one.base}").rsplit("-", 2)
                if not batch.removeprefix("b").isdecimal() or precision not in one.precisions:
                    continue
                job = Job(
                    graph=path, model=model, precision=precision, batch=int(batch[1:]), variant=variant, number=number
                )
                place = next((place for place, words in enumerate(only) if fnmatch.fnmatch(job.name, words)), None)
                if place is not None and not (out / f"{job.name}.json").is_file():
                    jobs.append((number, place, job))
    return [job for *_, job in sorted(jobs, key=lambda entry: entry[:2])]


def choose_gpu(job: Job, jobs: Sequence[Job], gpus: int) -> int:
    """The GPU of a job: both precisions of a build on one, the builds of a model on one after the other.

    Args:
        job: One of `jobs`.
        jobs: All of them.
        gpus: How many GPUs there are.
    """
    groups = list(dict.fromkeys((one.model, one.batch) for one in jobs))
    return (groups.index((job.model, job.batch)) + job.number) % gpus


def run(options: argparse.Namespace) -> None:
    """Build and time what is missing, one engine at a time on each GPU."""
    out, gpus = Path(options.out).absolute(), gpus_here()
    jobs = list_jobs(out, options.builds, options.only)
    programs = [
        Program(
            name=job.name,
            words=[
                sys.executable, str(HERE), "build", str(out), "--graph", str(job.graph), "--name", job.name,
                "--variant", job.variant, "--precision", job.precision, "--batch", str(job.batch),
                "--series", job.series, "--level", str(VARIANTS[job.variant].level or options.level),
                *(["--images", str(options.images)] if options.images else []),
                "--lanes", str(options.lanes), *(["--keep-engines"] if options.keep_engines else []),
            ],
            log=out / f"{job.name}.log",
            gpu=choose_gpu(job, jobs, len(gpus)),
            queue=job.series,
        )
        for job in jobs
    ]  # fmt: skip
    drive(programs, gpus=gpus, lanes=options.lanes, seconds=options.seconds)


def build(options: argparse.Namespace) -> None:
    """Build one engine, and time it in a process of its own; leaves `<name>.json`."""
    from trtkit import backends
    from trtkit.backends.trt import builder as builds
    from trtkit.backends.trt import network as fitting

    out, variant = Path(options.out), VARIANTS[options.variant]
    os.environ["TRTKIT_CACHE"] = str(out / "cache" / options.series)
    proto = onnx.load(options.graph)
    info = from_proto(proto).info
    proto = INPUTS[variant.input](proto)
    if variant.space_to_depth:
        proto = use_pixel_blocks(proto)
    if variant.whole:
        proto = read_splits_whole(proto)
    if variant.by_convolution:
        proto = upsample_by_convolution(proto)
    if variant.by_flags:
        proto = use_flags(proto)
    if variant.fold is not None:
        proto = move_space_to_depth(proto, variant.fold)
    # The variant has said what is rewritten, so that these add nothing.
    with mock.patch.multiple(fitting, read_splits_whole=lambda one: one, upsample_after_conv=lambda one: one):
        proto = fitting.fit_graph(proto, backends.probe("tensorrt"), precision=options.precision)
    size = info.imgsz
    if variant.input or variant.formats or variant.streams is not None:
        # The builder checks an input of (N, C, H, W); these graphs are static, and need no profile.
        builds.compute_profile_shapes = lambda *_: None  # type: ignore[assignment]
        configure = builds._EngineBuild._configure

        def configure_formats(self: Any, builder: Any, config: Any, network: Any) -> None:
            configure(self, builder, config, network)
            set_formats(self.trt, network, variant.formats)
            if variant.streams is not None:
                config.max_aux_streams = variant.streams

        builds._EngineBuild._configure = configure_formats  # type: ignore[method-assign]
    settings = backends.BuildSettings(
        precision=options.precision, batch=options.batch, imgsz=size, opt_level=options.level
    )
    built = backends.build(proto, settings, backend="tensorrt")
    passport = backends.Passport.from_build(built, settings, backend="tensorrt", model_hash="0" * 64)
    path = out / f"{options.name}.engine"
    backends.write_engine(path, built.plan, info.to_metadata(batch=options.batch, imgsz=size), passport)
    words = [sys.executable, str(HERE), "time", str(path), "--variant", options.variant]
    subprocess.run([*words, *(["--images", str(options.images)] if options.images else [])], check=True)
    facts = passport.to_dict()
    layers = facts.pop("layers", None) or built.layers
    write_json(
        out / f"{options.name}.json",
        {
            "model": options.name.rsplit(f"-{options.precision}-b", 1)[0],
            **{name: getattr(options, name) for name in ("variant", "precision", "batch", "level", "lanes")},
            **json.loads(path.with_suffix(".time").read_text()),
            "cores": os.cpu_count(),
            "gpu": backends.probe("tensorrt").gpus[0].uuid,
            "build_seconds": built.seconds,
            "bytes": len(built.plan),
            "layers": len(layers),
            "reformats": sum(bool(row.get("reformat")) for row in layers),
            "reformatting": [row["name"] for row in layers if row.get("reformat")],
            "passport": facts,
        },
    )
    if not options.keep_engines:
        path.unlink()


def set_formats(trt: Any, network: Any, formats: tuple[str, ...]) -> None:
    """Give TensorRT the choice of types and formats at a network's ends.

    Args:
        trt: The module.
        network: After parsing.
        formats: As in `Variant.formats`.
    """
    if "half-in" in formats:
        network.get_input(0).dtype = trt.float16
    # But for the first, channels of a pixel lie beside each other, padded to as many.
    for name, format_name in (
        ("linear-in", "LINEAR"), ("vector-in", "CHW4"), ("vector32-in", "CHW32"), ("eight-in", "HWC8")
    ):  # fmt: skip
        if name in formats:
            network.get_input(0).allowed_formats = 1 << int(getattr(trt.TensorFormat, format_name))
    if "half-out" in formats:
        for place in range(network.num_outputs):
            network.get_output(place).dtype = trt.float16
    if "any-out" in formats:
        for place in range(network.num_outputs):
            names = ("LINEAR", "HWC8", "CHW2", "CHW4", "CHW16")
            network.get_output(place).allowed_formats = sum(1 << int(getattr(trt.TensorFormat, one)) for one in names)


def measure(options: argparse.Namespace) -> None:
    """Time one engine: CUDA-graph replay, layers, and `predict()` where the runner reads it; leaves `<name>.time`."""
    from trtkit import backends

    path = Path(options.engine)
    result = measure_plan(backends.read_engine(path).plan)
    if VARIANTS[options.variant].runs_predict and options.images:
        import cv2

        with tk.open(path) as runner:
            batch = runner.batch or 1
            images = [cv2.imread(str(one)) for one in sorted(Path(options.images).iterdir())[: 20 * batch]]
            lists = [images[start : start + batch] for start in range(0, len(images) - batch + 1, batch)]
            whole = images[: len(lists) * batch]
            calls: Mapping[str, list[Any]] = {"predict_ms": lists, "one_call_ms": [whole]}
            for name, arguments in calls.items():
                times = []
                for _ in range(12):
                    begin = time.perf_counter()
                    for one in arguments:
                        runner.predict(one)
                    times.append((time.perf_counter() - begin) / len(lists) * 1e3)
                result[name] = statistics.median(times[2:])
    path.with_suffix(".time").write_text(json.dumps(result))


def measure_plan(plan: bytes) -> dict[str, Any]:
    """The engine alone: median of CUDA-graph replays, and the layers that take longest by TensorRT's profiler."""
    import tensorrt as trt
    import torch

    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    types = {
        trt.float32: torch.float32, trt.float16: torch.float16, trt.int8: torch.int8, trt.int32: torch.int32,
        getattr(trt, "uint8", None): torch.uint8,
    }  # fmt: skip
    memory, ends = {}, []
    for place in range(engine.num_io_tensors):
        name = engine.get_tensor_name(place)
        shape, dtype = list(engine.get_tensor_shape(name)), types[engine.get_tensor_dtype(name)]
        # Room for padded formats.
        tensor = torch.zeros(int(np.prod(shape)) * 16, dtype=dtype, device="cuda")
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            most = 1 if dtype.is_floating_point else 255 if dtype == torch.uint8 else 100
            tensor = (torch.rand(len(tensor), device="cuda") * most).to(dtype)
        memory[name] = tensor
        ends.append([name, shape, str(dtype), engine.get_tensor_format_desc(name)])

    def create_context() -> Any:
        context = engine.create_execution_context()
        for name, tensor in memory.items():
            context.set_tensor_address(name, tensor.data_ptr())
        return context

    context, stream = create_context(), torch.cuda.Stream()
    times = []
    with torch.cuda.stream(stream):
        for _ in range(20):
            context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        for number in range(1700):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            if number >= 200:
                times.append(begin.elapsed_time(end))
    rows: dict[str, list[float]] = {}

    class Profiler(trt.IProfiler):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            rows.setdefault(layer_name, []).append(ms)

    profiled, profiler = create_context(), Profiler()
    profiled.profiler = profiler
    for _ in range(60):
        profiled.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
    layers = sorted(((statistics.median(values[10:]), name) for name, values in rows.items()), reverse=True)
    return {
        "p50_ms": statistics.median(times),
        "p90_ms": statistics.quantiles(times, n=10)[-1],
        "ends": ends,
        "streams": engine.num_aux_streams,
        "memory": engine.device_memory_size,
        "profiled_ms": sum(ms for ms, _ in layers),
        "slowest": layers,
    }


LOAD = """
import time, torch
a = torch.ones(4096, 4096, device="cuda", dtype=torch.half)
print("ready", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    a @ a
    torch.cuda.synchronize()
"""
"""Other work on a GPU."""


def compare_on_gpus(options: argparse.Namespace) -> None:
    """Time engines on each GPU here at once, round by round, and then again while each GPU has other work."""
    words, rows = [sys.executable, str(HERE), "pair", *options.engines, "--batch", str(options.batch)], []
    environments = [{**os.environ, "CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus_here()]
    for loaded in (False, True):
        with contextlib.ExitStack() as after:
            for one in environments if loaded else ():
                load = subprocess.Popen([sys.executable, "-c", LOAD], env=one, stdout=subprocess.PIPE)
                after.callback(load.wait)
                after.callback(load.kill)
                assert load.stdout is not None
                load.stdout.readline()
            pairs = [subprocess.Popen(words, env=one, stdout=subprocess.PIPE, text=True) for one in environments]
            for pair in pairs:
                text, _ = pair.communicate()
                rows.append({**json.loads(text.splitlines()[-1]), "loaded": loaded})
                print(json.dumps(rows[-1]), flush=True)
    Path(options.out).write_text(json.dumps(rows, indent=1))


def time_pair(options: argparse.Namespace) -> None:
    """Time engines by turns; prints one line of JSON. Ratios are over the first engine."""
    timing = tk.benchmark(
        {Path(one).stem: one for one in options.engines}, batch=options.batch, runs=2000, seconds=6, max_noise=0,
        offline_seconds=0, stage_runs=0,
    )  # fmt: skip
    frame = timing.frame().select("label", "p50_ms", "p90_ms", "runs", "flags")
    row = {"gpu": timing.provenance.machine, "engines": frame.to_dicts(), "ratios": timing.ratios().to_dicts()}
    print(json.dumps(row, default=str))


def write(options: argparse.Namespace) -> None:
    """Gather what `run` left into `results/`."""
    levers_record.write(Path(options.out), list(VARIANTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("prepare")
    verb.add_argument("models", nargs="+")
    verb.add_argument("--data", required=True)
    verb.add_argument("--out", required=True)
    verb.add_argument("--imgsz", type=int, default=640)
    verb.add_argument("--batch", type=int, nargs="+", default=[8, 1])
    verb.add_argument("--calibration-images", type=int, default=64)
    verb.add_argument("--only", nargs="+", default=["*"], help="patterns of MODEL-PRECISION-bN-GRAPH")
    for name in ("run", "build", "write"):
        verb = verbs.add_parser(name)
        verb.add_argument("out")
        verb.add_argument("--images", help="a folder of images, for predict()")
        verb.add_argument("--level", type=int, default=2)
        verb.add_argument("--builds", type=int, default=3)
        verb.add_argument("--seconds", type=float, help="stop after so many seconds")
        verb.add_argument("--keep-engines", action="store_true", help="keep the engines' files")
        verb.add_argument("--lanes", type=int, default=1, help="builds at once on a GPU: more to look, not to publish")
        if name == "run":
            verb.add_argument("--only", nargs="+", default=["*"], help="patterns of MODEL-PRECISION-bN-VARIANT-NUMBER")
        if name == "build":
            verb.add_argument("--graph", required=True)
            verb.add_argument("--name", required=True)
            verb.add_argument("--series", required=True)
            verb.add_argument("--variant", required=True, choices=VARIANTS)
            verb.add_argument("--precision", required=True, choices=PRECISIONS)
            verb.add_argument("--batch", type=int, required=True)
    verb = verbs.add_parser("time")
    verb.add_argument("engine")
    verb.add_argument("--variant", required=True, choices=VARIANTS)
    verb.add_argument("--images")
    for name in ("ratio", "pair"):
        verb = verbs.add_parser(name)
        if name == "ratio":
            verb.add_argument("out", help="a JSON file")
        verb.add_argument("engines", nargs="+", help="the first is what the others are compared with")
        verb.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    {
        "prepare": prepare, "run": run, "build": build, "time": measure, "write": write, "ratio": compare_on_gpus,
        "pair": time_pair,
    }[options.verb](options)  # fmt: skip


if __name__ == "__main__":
    main()

"""A real Triton server against the local runner, for all five tasks: images in, boxes out; every verb; failures; load.

    python benchmarks/triton_server.py SHARED ENVIRONMENT [--images 40] [--timings] [--output runs/triton]

SHARED holds `models/yolo11n*.pt` and `data/scenes/<task>`. ENVIRONMENT is a virtual environment with the server:
`pip install nvidia-pytriton==0.7.0 "tritonclient[all]" onnxruntime opencv-python-headless`, and
`pytriton/tritonserver/python_backend_stubs/<its Python>/triton_python_backend_stub` copied into
`pytriton/tritonserver/backends/python/`. The server listens on the loopback interface only. Here tritonclient must be
installed. Writes `results/triton.{json,md}`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from records import about, line_of, table, write

import trtkit as tk
from trtkit.data import open_dataset, read_image
from trtkit.errors import TrtkitError

MODELS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}
HTTP, GRPC = "127.0.0.1:18000", "127.0.0.1:18001"
LIMIT = 1e-3
"""The farthest that a box may lie from the local runner's, pixels."""


@contextlib.contextmanager
def running(environment: Path, repository: Path, log: Path) -> Iterator[None]:
    """Serve a repository until the block ends."""
    (server,) = environment.glob("lib/python3*/site-packages/pytriton/tritonserver")
    python = environment / "bin" / "python"
    words = [str(python), "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"]
    libraries = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    places = {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(environment),
        "LD_LIBRARY_PATH": libraries,
    }
    # The packages of this process are not the server's.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ports = (("http", HTTP), ("grpc", GRPC))
    command = [server / "bin" / "tritonserver", f"--model-repository={repository}"]
    command += [f"--backend-directory={server / 'backends'}", "--allow-metrics=false"]
    command += [f"--{name}-address={address.split(':')[0]}" for name, address in ports]
    command += [f"--{name}-port={address.split(':')[1]}" for name, address in ports]
    with log.open("w") as file, subprocess.Popen(command, env={**clean, **places}, stdout=file, stderr=file) as process:
        try:
            for _ in range(240):
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    if urllib.request.urlopen(f"http://{HTTP}/v2/health/ready", timeout=5).status == 200:
                        break
                if process.poll() is not None:
                    raise SystemExit(f"the server ended: see {log}")
                time.sleep(0.5)
            else:
                raise SystemExit(f"the server is not ready: see {log}")
            yield
        finally:
            process.terminate()
            process.wait(60)


def deployed(shared: Path, output: Path) -> dict[str, Path]:
    """Export the five models and deploy them into one repository; the ONNX files by task."""
    files = {}
    for task, ending in MODELS.items():
        path = output / f"yolo11n{ending}.onnx"
        if not path.exists():
            size = None if task == "classify" else 320
            tk.export(shared / "models" / f"yolo11n{ending}.pt", "onnx", dynamic=True, imgsz=size, output=path)
        files[task] = path
    tk.deploy(list(files.values()), "triton", output / "serving", overwrite=True)
    return files


def asked(folder: Path, images: list[np.ndarray]) -> list[dict[str, Any]]:
    """What the folder's own client, which knows nothing of trtkit, gets from the ensemble."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("infer").open_predictor(folder, GRPC)(images)
    finally:
        sys.path.remove(str(folder))
        for name in ("infer", "yolo"):
            sys.modules.pop(name, None)


def differ(mine: dict[str, Any], theirs: Any) -> tuple[int, float, float, float]:
    """Objects, and the largest differences of boxes (keypoints, oriented boxes), of scores and of masks (1 - IoU)."""
    if hasattr(theirs, "probabilities"):
        return 1, 0.0, float(np.abs(mine["probabilities"] - theirs.probabilities).max()), 0.0
    assert np.array_equal(mine["classes"], theirs.classes)
    count = len(theirs)
    if not count:
        return 0, 0.0, 0.0, 0.0
    boxes = float(np.abs(mine["boxes"] - theirs.boxes).max())
    for name in ("keypoints", "xywhr"):
        if hasattr(theirs, name):
            boxes = max(boxes, float(np.abs(mine[name] - getattr(theirs, name)).max()))
    masks = 0.0
    if hasattr(theirs, "masks"):
        for index in range(count):
            one, other = mine["masks"][index], theirs.masks.full_resolution(index)
            masks = max(masks, 1 - float((one & other).sum() / max(1, (one | other).sum())))
    return count, boxes, float(np.abs(mine["scores"] - theirs.scores).max()), masks


def of_task(task: str, file: Path, shared: Path, output: Path, count: int) -> dict[str, Any]:
    """One task: the ensemble's answers and every verb, against the local runner."""
    data = shared / "data" / "scenes" / task
    data = data if task == "classify" else data / "data.yaml"
    paths = open_dataset(data, task=task).images("val")[:count]
    images = [read_image(path) for path in paths]
    address = f"triton+http://{HTTP}/{file.stem}"
    found = asked(output / "serving" / file.stem, images)
    with tk.open(file) as local, tk.open(address) as remote:
        expected = local.predict(images)
        compared = [differ(*pair) for pair in zip(found, expected, strict=True)]
        row = {
            "objects": sum(one[0] for one in compared),
            "boxes": max(one[1] for one in compared),
            "scores": max(one[2] for one in compared),
            "masks": max(one[3] for one in compared),
        }
        predicted = remote.predict(images)
        for mine, theirs in zip(predicted, expected, strict=True):
            values = "probabilities" if task == "classify" else "boxes"
            assert np.abs(getattr(mine, values) - getattr(theirs, values)).max(initial=0) < LIMIT
    protocols = [("http", HTTP), ("grpc", GRPC), ("shm", HTTP)]
    scores = {
        name: tk.evaluate(f"triton+{name}://{host}/{file.stem}", data, eval_images=count) for name, host in protocols
    }
    here = tk.evaluate(file, data, eval_images=count)
    row["metric"] = next(iter(here.metrics))
    row["local"] = here.metrics[row["metric"]]
    for name, evaluation in scores.items():
        row[name] = max(abs(evaluation.metrics[key] - value) for key, value in here.metrics.items())
    timing = tk.benchmark({"local": file, "server": address}, runs=20, seconds=2.0)
    row["ms"] = {one["label"]: one["p50_ms"] for one in timing.frame().iter_rows(named=True)}
    comparison = tk.compare(
        file, data, precisions=("fp32",), build=False, candidates={"server": address}, eval_images=count, runs=5,
        seconds=1.0, output=output / f"compare-{task}", overwrite=True,
    )  # fmt: skip
    rows = {one["precision"]: one for one in comparison.rows.iter_rows(named=True)}
    row["compare"] = max(abs(rows["server"][name] - rows["fp32"][name]) for name, _ in comparison.about["metrics"])
    assert row["boxes"] < LIMIT, row
    return row


def failing(call: Any) -> str:
    """The error of a call, by its code and sentence."""
    try:
        call()
    except TrtkitError as error:
        # Without the names and numbers of this machine's connections.
        return f"`{error.code}`: {re.sub(r'ipv4:[0-9.:]+: ?', '', str(error))}"
    raise AssertionError("it did not fail")


def overloaded(environment: Path, output: Path) -> dict[str, Any]:
    """The same server with room for one waiting request, and 12 clients."""
    repository = output / "overloaded"
    shutil.rmtree(repository, ignore_errors=True)
    shutil.copytree(output / "serving" / "models" / "yolo11n", repository / "yolo11n")
    config = repository / "yolo11n" / "config.pbtxt"
    config.write_text(re.sub(r"max_queue_size: \d+", "max_queue_size: 1", config.read_text()))
    with running(environment, repository, output / "overloaded.log"):
        address = f"triton+http://{HTTP}/yolo11n"
        result = tk.load_test(address, batch=4, concurrency=12, seconds=5.0, warmup=0)
        (row,) = result.frame().iter_rows(named=True)

        def flood() -> None:
            from concurrent.futures import ThreadPoolExecutor

            with tk.open(address) as runner, ThreadPoolExecutor(12) as pool:
                list(pool.map(runner.infer, [np.zeros((8, 3, 320, 320), np.float32)] * 24))

        sentence = failing(flood)
    return {"requests": row["requests"], "refused": row["refused"], "sentence": sentence}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("environment", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--timings", action="store_true", help="record latency and throughput: on an idle machine")
    parser.add_argument("--output", type=Path, default=Path("runs/triton"))
    given = parser.parse_args()
    output = given.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    files = deployed(given.shared, output)
    with running(given.environment, output / "serving" / "models", output / "server.log"):
        rows = {task: of_task(task, file, given.shared, output, given.images) for task, file in files.items()}
        errors = {
            "no server": failing(lambda: tk.open("triton+http://127.0.0.1:1/yolo11n")),
            "no server, gRPC": failing(lambda: tk.open("triton+grpc://127.0.0.1:1/yolo11n")),
            "gRPC's port": failing(lambda: tk.open(f"triton+http://{GRPC}/yolo11n")),
            "no such model": failing(lambda: tk.open(f"triton+http://{HTTP}/yolo99")),
            "no such version": failing(lambda: tk.open(f"triton+grpc://{GRPC}/yolo11n/7")),
            "an ensemble": failing(lambda: tk.open(f"triton+http://{HTTP}/yolo11n_images")),
        }
        load = tk.load_test(f"triton+shm://{HTTP}/yolo11n", batch=(1, 8), concurrency=(1, 2, 4), seconds=3.0)
    full = overloaded(given.environment, output)
    errors["overloaded"] = full.pop("sentence")
    content = {
        "provenance": about(f"SHARED ENVIRONMENT --images {given.images}{' --timings' if given.timings else ''}"),
        "images": given.images,
        "tasks": rows,
        "errors": errors,
        "overloaded": full,
        "load": load.frame().to_dicts(),
    }
    if not given.timings:
        # Not of a machine that does other work at the same time.
        del content["load"]
        for row in rows.values():
            del row["ms"]
    write("triton", content, render(content))


def render(content: dict[str, Any]) -> list[str]:
    """The record as Markdown."""
    rows, full, loads = content["tasks"], content["overloaded"], content.get("load")
    columns = ["task", "objects", "boxes, pixels", "scores", "masks, 1 - IoU", "metric", "local", "HTTP", "gRPC",
               "shared memory", "compare"]  # fmt: skip
    cells = [
        [
            task, str(row["objects"]), f"{row['boxes']:.1e}", f"{row['scores']:.1e}", f"{row['masks']:.1e}",
            row["metric"], f"{row['local']:.4f}", *(f"{row[name]:.1e}" for name in ("http", "grpc", "shm", "compare")),
            *(f"{row['ms'][name]:.1f}" for name in ("local", "server") if loads),
        ]
        for task, row in rows.items()
    ]  # fmt: skip
    lines = [
        "# A Triton server against the local runner", "",
        f"`{content['provenance']['command']}`", "", line_of(content["provenance"]), "",
        "Server 2.51.0 (nvidia-pytriton 0.7.0), Python backend with ONNX Runtime; dynamic ONNX files at 320 (classify "
        f"64), {content['images']} images of `val`. Boxes (with keypoints and oriented boxes), scores, masks: largest "
        "difference between what the deployment folder's own client gets for encoded images and what the local runner "
        "predicts. HTTP, gRPC, shared memory: largest difference of any metric of `evaluate` by that protocol; "
        "compare: of the primary metrics of `compare`, the server a candidate. `predict` and `benchmark` ran too.", "",
        *table([*columns, *(("local, ms", "server, ms") if loads else ())], cells), "",
        "## A server that is wrong, missing or overloaded", "",
        *table(["what", "error"], [[what, sentence] for what, sentence in content["errors"].items()]), "",
        f"Overloaded: `load_test` with 12 clients and room for one waiting request; {full['requests']} requests were "
        f"answered, {full['refused']} refused.",
    ]  # fmt: skip
    if loads:
        names = ("images_per_s", "p50_ms", "p99_ms")
        numbers = [
            [str(row["batch"]), str(row["concurrency"]), *(f"{row[name]:.1f}" for name in names)] for row in loads
        ]
        lines += ["", "## Load", "", *table(["batch", "clients", "images/s", "p50, ms", "p99, ms"], numbers)]
    return lines


if __name__ == "__main__":
    main()

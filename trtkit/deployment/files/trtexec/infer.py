"""Build the plan with `build.sh` and run it with trtexec: `python infer.py IMAGE ...`.

Where trtexec is not installed, `check.py` takes the stored outputs of the sample images instead of the plan's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stored import open_stored
from yolo import Processor, read_image

HERE = Path(__file__).resolve().parent


def find_trtexec() -> str | None:
    """The path of trtexec, from TRTEXEC, PATH and the folders that NVIDIA's packages use."""
    names = (os.environ.get("TRTEXEC"), "trtexec", "/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
    return next((path for name in names if name and (path := shutil.which(name))), None)


class Plan:
    """A plan that trtexec runs.

    Args:
        path: The plan.
        shapes: Whether its shapes are open.
    """

    def __init__(self, path: Path, *, shapes: bool = False) -> None:
        trtexec = find_trtexec()
        if trtexec is None:
            raise SystemExit("trtexec was not found: name it with TRTEXEC=/path/to/trtexec")
        self.trtexec, self.path, self.shapes = trtexec, path, shapes

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a batch: inputs to outputs by name."""
        with tempfile.TemporaryDirectory() as temporary:
            files = {name: Path(temporary) / f"{number}.bin" for number, name in enumerate(inputs)}
            for name, values in inputs.items():
                files[name].write_bytes(np.ascontiguousarray(values, np.float32).tobytes())
            results = Path(temporary) / "outputs.json"
            command = [
                self.trtexec,
                f"--loadEngine={self.path}",
                f"--loadInputs={','.join(f'{name}:{file}' for name, file in files.items())}",
                f"--exportOutput={results}",
                *("--iterations=1", "--warmUp=0", "--duration=0"),
            ]
            if self.shapes:
                sizes = {name: "x".join(map(str, values.shape)) for name, values in inputs.items()}
                command.append(f"--shapes={','.join(f'{name}:{size}' for name, size in sizes.items())}")
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode or not results.exists():
                raise SystemExit(f"{done.stdout[-3000:]}\ntrtexec could not run {self.path.name}")
            return read_outputs(results.read_text(encoding="utf-8"))


def read_outputs(text: str) -> dict[str, np.ndarray]:
    """Arrays by name from what `trtexec --exportOutput` wrote, which is no JSON where a value is not finite."""
    entry = re.compile(r'"name"\s*:\s*"([^"]*)"\s*,\s*"dimensions"\s*:\s*"([^"]*)"\s*,\s*"values"\s*:\s*\[([^\]]*)\]')
    found = {}
    for name, sizes, values in entry.findall(text):
        numbers = np.array(re.split(r"[,\s]+", values.strip()), np.float32)
        found[name] = numbers.reshape([int(size) for size in sizes.split("x")])
    return found


def build(folder: Path, *options: str) -> None:
    """Run `build.sh`."""
    done = subprocess.run(
        ["bash", str(folder / "build.sh"), *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout[-3000:]}\nbuild.sh failed")


def open_model(folder: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from input to outputs by name; the plan is built first if it is missing."""
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    path, name = folder / "model.plan", model["input"]["name"]
    source = folder / model["file"]["name"]
    if not path.exists() or path.stat().st_mtime < source.stat().st_mtime:
        build(folder)
    plan = Plan(path, shapes=model["input"]["dynamic"])
    return lambda values: plan({name: values})


def open_predictor(folder: Path) -> Callable[[Sequence[np.ndarray]], list[dict[str, Any]]]:
    """Return a function from the sample images (BGR uint8) to their detections."""
    processor = Processor(folder)
    if find_trtexec() is None:
        print("trtexec was not found: the stored outputs of the sample images take the place of the plan's")
        model = open_stored(folder)
    else:
        model = open_model(folder)
    return lambda images: processor.predict(images, model)


def main() -> None:
    """Print the detections on the images named on the command line."""
    processor, model = Processor(HERE), open_model(HERE)
    images = [read_image(path) for path in sys.argv[1:]]
    for path, found in zip(sys.argv[1:], processor.predict(images, model), strict=True):
        print(path)
        print(processor.describe(found))


if __name__ == "__main__":
    main()

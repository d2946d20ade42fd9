"""Build `detect` with CMake and run it: `python infer.py IMAGE ...`.

Where TensorRT is not installed, `check.py` gives the program the stored outputs of the sample images instead of the
engine's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from yolo import Processor, decode_mask_runs, read_image, to_channels

HERE = Path(__file__).resolve().parent


def build(folder: Path) -> tuple[Path, bool]:
    """Build the program; its path, and whether it has TensorRT."""
    if shutil.which("cmake") is None:
        raise SystemExit("cmake was not found: install CMake 3.17 or newer and a C++17 compiler")
    built = folder / "build"
    log = ""
    for command in (["-S", str(folder), "-B", str(built)], ["--build", str(built), "--config", "Release"]):
        done = subprocess.run(["cmake", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        log += done.stdout
        if done.returncode:
            raise SystemExit(f"{log}\nthe program could not be built")
    program = next((path for path in (built / "detect", built / "Release" / "detect.exe") if path.exists()), None)
    if program is None:
        raise SystemExit(f"{log}\nthe program was built, but is not in {built}")
    return program, "TensorRT: not found" not in log


def run(program: Path, folder: Path, images: Sequence[np.ndarray], *options: str) -> list[dict[str, Any]]:
    """Run the program on images (BGR uint8)."""
    channels = json.loads((folder / "model.json").read_text(encoding="utf-8"))["preprocess"]["channels"]
    images = [to_channels(image, channels) for image in images]
    with tempfile.TemporaryDirectory() as temporary:
        paths = []
        for number, image in enumerate(images):
            paths.append(Path(temporary) / f"{number}.pam")
            write_pam(paths[-1], image)
        command = [str(program), "--json", "--model", str(folder), *options, *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{program.name} failed: {done.stderr.strip()}")
    return [
        read_detections(json.loads(line), image) for line, image in zip(done.stdout.splitlines(), images, strict=True)
    ]


def read_detections(found: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
    """Detections from JSON to what `Processor.postprocess` returns."""
    values: dict[str, Any] = {name: np.array(value, np.float32) for name, value in found.items() if name != "masks"}
    if "classes" in values:
        values["classes"] = values["classes"].astype(np.int64)
        values["boxes"] = values["boxes"].reshape(-1, 4)
    if "masks" in found:
        runs = [" ".join(map(str, mask)).encode() for mask in found["masks"]]
        values["masks"] = [decode_mask_runs(mask, image.shape[:2]) for mask in runs]
    if "keypoints" in values:
        points = json.loads((HERE / "model.json").read_text(encoding="utf-8"))["kpt_shape"]
        values["keypoints"] = values["keypoints"].reshape(-1, *points)
    return values


def write_pam(path: Path, image: np.ndarray) -> None:
    """Write an image (BGR if it has three channels) as PAM: a header and the pixels."""
    height, width, channels = image.shape
    pixels = image[..., ::-1] if channels == 3 else image
    header = f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH {channels}\nMAXVAL 255\nENDHDR\n"
    path.write_bytes(header.encode() + np.ascontiguousarray(pixels).tobytes())


def open_predictor(folder: Path) -> Callable[[Sequence[np.ndarray]], list[dict[str, Any]]]:
    """Return a function from the sample images (BGR uint8) to their detections."""
    program, has_tensorrt = build(folder)
    if has_tensorrt:
        return lambda images: run(program, folder, images)
    print("TensorRT was not found: the stored outputs of the sample images take the place of the engine's")

    def replay(images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "input.bin"
            found = run(program, folder, images, "--tensors", str(folder / "samples" / "tensors"), "--input", str(path))
            expected, _ = Processor(folder).preprocess(images)
            apart = np.abs(np.fromfile(path, np.float32).reshape(expected.shape) - expected)
        if apart.max() > 1e-6:
            raise SystemExit(f"the program's preprocessing differs from yolo.py's by up to {apart.max():.4f}")
        return found

    return replay


def main() -> None:
    """Print the detections on the images named on the command line."""
    program, has_tensorrt = build(HERE)
    if not has_tensorrt:
        raise SystemExit("TensorRT was not found: set TENSORRT_ROOT (cmake -S . -B build -DTENSORRT_ROOT=...)")
    processor, images = Processor(HERE), [read_image(path) for path in sys.argv[1:]]
    for path, found in zip(sys.argv[1:], run(program, HERE, images), strict=True):
        print(path)
        print(processor.describe(found))


if __name__ == "__main__":
    main()

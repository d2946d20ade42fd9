"""Run the engine with TensorRT and NumPy: `python infer.py IMAGE ...`."""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from yolo import Processor, read_image

HERE = Path(__file__).resolve().parent
TO_DEVICE, TO_HOST = 1, 2


class Cuda:
    """The few functions of the CUDA runtime that copying and waiting take, from the library TensorRT itself uses."""

    def __init__(self) -> None:
        self.library = self._find()
        self.library.cudaGetErrorString.restype = ctypes.c_char_p

    @staticmethod
    def _find() -> Any:
        names = [f"libcudart.so.{major}" for major in (13, 12)] + ["libcudart.so.11.0", "libcudart.so"]
        # Wheels keep it here; the loader finds those of an installed toolkit by name.
        folders = [folder for root in sys.path for folder in Path(root).glob("nvidia/*/lib")]
        for path in [*names, *(str(folder / name) for folder in folders for name in names)]:
            try:
                return ctypes.CDLL(path)
            except OSError:
                continue
        raise SystemExit("libcudart.so was not found: install the CUDA runtime (pip install nvidia-cuda-runtime-cu12)")

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function; end with CUDA's message if it fails."""
        code = getattr(self.library, function)(*arguments)
        if code:
            raise SystemExit(f"{function} failed: {self.library.cudaGetErrorString(code).decode()}")

    def allocate(self, size: int) -> int:
        """Allocate device memory, bytes."""
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size))
        return int(pointer.value or 0)


def read_backend(header: bytes) -> str:
    """What built the engine, "tensorrt" or "tensorrt_rtx"; "" if the header does not say it."""
    try:
        return str(json.loads(header)["trtkit"]["backend"])
    except (ValueError, KeyError, TypeError):
        return ""


def import_tensorrt(backend: str) -> Any:
    """The runtime that built the engine: TensorRT and TensorRT-RTX do not load each other's."""
    if backend != "tensorrt_rtx":
        try:
            import tensorrt

            return tensorrt
        except ImportError:
            if backend:
                raise SystemExit("TensorRT is not installed: pip install tensorrt") from None
    try:
        import tensorrt_rtx
    except ImportError:
        raise SystemExit("TensorRT-RTX is not installed: pip install tensorrt-rtx") from None
    return tensorrt_rtx


class Engine:
    """An engine file, deserialized.

    Args:
        path: The file; a header of JSON before the plan is skipped.
        host_code: Run the TensorRT runtime that a version-compatible engine brings.
    """

    def __init__(self, path: Path, *, host_code: bool = False) -> None:
        data = path.read_bytes()
        length = int.from_bytes(data[:4], "little")
        backend = ""
        if data[4:5] == b"{":
            backend, data = read_backend(data[4 : 4 + length]), data[4 + length :]
        trt = import_tensorrt(backend)
        self.cuda = Cuda()
        logger = trt.Logger(trt.Logger.WARNING)
        self.runtime = trt.Runtime(logger)
        if host_code:
            self.runtime.engine_host_code_allowed = True
        self.engine = self.runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise SystemExit(
                f"TensorRT {trt.__version__} can't read {path.name}: it must be the release that built it, on a GPU of "
                "the same compute capability (model.json, passport)"
            )
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise SystemExit(f"TensorRT has no memory for {path.name}")
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        is_input = {name: self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.input = next(name for name in names if is_input[name])
        self.outputs = [name for name in names if not is_input[name]]
        self.types = {name: np.dtype(trt.nptype(self.engine.get_tensor_dtype(name))) for name in names}
        self.buffers: dict[str, tuple[int, int]] = {}
        stream = ctypes.c_void_p()
        self.cuda.call("cudaStreamCreate", ctypes.byref(stream))
        self.stream = int(stream.value or 0)

    def _buffer(self, name: str, size: int) -> int:
        """Device memory of at least `size` bytes for a tensor, kept between runs."""
        pointer, room = self.buffers.get(name, (0, 0))
        if room < size:
            if pointer:
                self.cuda.call("cudaFree", ctypes.c_void_p(pointer))
            self.buffers[name] = pointer, _ = self.cuda.allocate(size), size
            self.context.set_tensor_address(name, pointer)
        return pointer

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        self.cuda.call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            ctypes.c_int(kind),
            ctypes.c_void_p(self.stream),
        )

    def __call__(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch: input to outputs by name."""
        values = np.ascontiguousarray(values, self.types[self.input])
        if not self.context.set_input_shape(self.input, values.shape):
            raise SystemExit(f"the engine does not take an input of shape {values.shape}")
        self._copy(self._buffer(self.input, values.nbytes), values.ctypes.data, values.nbytes, TO_DEVICE)
        results = {}
        for name in self.outputs:
            results[name] = np.empty(tuple(self.context.get_tensor_shape(name)), self.types[name])
            self._buffer(name, results[name].nbytes)
        if not self.context.execute_async_v3(self.stream):
            raise SystemExit("TensorRT could not run the engine")
        for name, array in results.items():
            self._copy(array.ctypes.data, self.buffers[name][0], array.nbytes, TO_HOST)
        self.cuda.call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))
        return {name: array.astype(np.float32) for name, array in results.items()}


def open_model(folder: Path) -> Engine:
    """The folder's engine, ready to run."""
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    is_compatible = (model["passport"] or {}).get("compatibility") == "version"
    return Engine(folder / model["file"]["name"], host_code=is_compatible)


def open_predictor(folder: Path) -> Callable[[Sequence[np.ndarray]], list[dict[str, Any]]]:
    """Return a function from images (BGR uint8) to their detections."""
    processor, model = Processor(folder), open_model(folder)
    return lambda images: processor.predict(images, model)


def main() -> None:
    """Print the detections on the images named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--conf", type=float, default=None, help="minimum score")
    arguments = parser.parse_args()
    processor, model = Processor(HERE), open_model(HERE)
    limits = {} if arguments.conf is None else {"conf": arguments.conf}
    images = [read_image(path) for path in arguments.images]
    for path, found in zip(arguments.images, processor.predict(images, model, **limits), strict=True):
        print(path)
        print(processor.describe(found))


if __name__ == "__main__":
    main()

"""C++: one header for preprocessing and postprocessing, and a program with TensorRT."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from trtkit.deployment.bundle import FILES, Bundle, Source
from trtkit.deployment.target import Target, register_target

__all__ = ["write_cpp"]

PROGRAM = ("yolo.hpp", "report.hpp", "engine.hpp", "main.cpp", "CMakeLists.txt", "infer.py")


def check_cpp(source: Source) -> None:
    """Check that the program loads the engine.

    Raises:
        RecipeError: It does not.
    """
    source.refuse_rtx("cpp")


def write_cpp(bundle: Bundle, folder: Path) -> Sequence[str]:
    """Write a C++17 program around the engine, and the outputs that its check takes where there is no TensorRT."""
    for name in PROGRAM:
        shutil.copyfile(FILES / "cpp" / name, folder / name)
    bundle.write_tensors(folder / "samples" / "tensors")
    passport = bundle.passport
    version = f" {passport.tensorrt} and a GPU of compute capability {passport.sm}" if passport else ""
    return (
        f"Needs a C++17 compiler, CMake 3.17 or newer, the CUDA toolkit and TensorRT{version}:",
        "",
        "    cmake -S . -B build -DTENSORRT_ROOT=/path/to/TensorRT && cmake --build build",
        "    build/detect IMAGE ...",
        "",
        "`yolo.hpp` holds preprocessing, postprocessing and the reader of `model.json`; it needs the standard library "
        "alone. `engine.hpp` runs the engine with TensorRT 8.6 to 11. `main.cpp` reads PGM, PPM and PAM images, and "
        "every format that OpenCV has where CMake finds it.",
        "",
        "    yolo::Processor processor(folder);",
        "    yolo::Engine engine(processor);",
        "    std::vector<float> values(3 * processor.height * processor.width);",
        "    const auto place = processor.preprocess({pixels, height, width, 3}, values.data());",
        "    auto outputs = engine.run(values, {1, 3, processor.height, processor.width});",
        "    const auto output = yolo::StoredTensors::slice(outputs.at(processor.main), 0);  // report.hpp",
        "    const auto detections = processor.postprocess(output, {}, place, processor.thresholds);",
        "",
        "`check.py` builds the program and runs it. Where TensorRT is not installed it gives the program the outputs "
        "in `samples/tensors`, so that preprocessing and postprocessing are checked and the engine is not.",
    )


register_target(
    Target(
        name="cpp",
        formats=("engine",),
        write=write_cpp,
        check=check_cpp,
        file_notes={
            "yolo.hpp": "preprocessing and postprocessing in C++17",
            "engine.hpp": "runs the engine with TensorRT",
            "report.hpp": "reads PGM, PPM and PAM images and prints detections as JSON",
            "main.cpp": "the program",
            "CMakeLists.txt": "builds the program",
            "infer.py": "builds the program and runs it: `python infer.py IMAGE ...`",
        },
    )
)

"""Run the SavedModel with TensorFlow: `python infer.py IMAGE ...`.

Where TensorFlow is not installed, or `convert.py` did not run yet, `check.py` takes the stored outputs of the sample
images instead of the model's.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stored import open_stored
from yolo import Processor, read_image

HERE = Path(__file__).resolve().parent


def open_model(folder: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from input (images, channels, height, width) to outputs by name."""
    import tensorflow as tf

    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    hash_file = folder / "saved_model" / "model.sha256"
    if not hash_file.exists() or hash_file.read_text(encoding="utf-8").strip() != model["file"]["sha256"]:
        raise SystemExit("saved_model/ is missing or of another model: run python convert.py")
    loaded = tf.saved_model.load(str(folder / "saved_model"))
    signature = loaded.signatures["serving_default"]
    entry = next(iter(signature.structured_input_signature[1]))

    def run(values: np.ndarray) -> dict[str, np.ndarray]:
        # onnx2tf puts channels last, and names outputs anew.
        given = signature(**{entry: tf.constant(np.ascontiguousarray(values.transpose(0, 2, 3, 1)))})
        found = [np.asarray(value) for value in given.values()]
        outputs = {}
        for spec in model["outputs"]["tensors"]:
            array = next(one for one in found if one.ndim == len(spec["shape"]))
            is_last = array.ndim == 4 and array.shape[1] != spec["shape"][1]
            outputs[spec["name"]] = array.transpose(0, 3, 1, 2) if is_last else array
        return outputs

    # The model is kept alive by its function.
    run.model = loaded  # type: ignore[attr-defined]
    return run


def open_processor(folder: Path) -> Processor:
    """The processor, for batches of the SavedModel's fixed size."""
    processor = Processor(folder)
    processor.model["input"] |= {"batch": processor.model["tensorflow"]["batch"], "dynamic": False}
    return processor


def open_predictor(folder: Path) -> Callable[[Sequence[np.ndarray]], list[dict[str, Any]]]:
    """Return a function from the sample images (BGR uint8) to their detections."""
    if (folder / "saved_model").exists() and importlib.util.find_spec("tensorflow") is not None:
        processor, model = open_processor(folder), open_model(folder)
    else:
        print("no saved_model/ or no TensorFlow: the stored outputs of the sample images take the place of the model's")
        processor, model = Processor(folder), open_stored(folder)
    return lambda images: processor.predict(images, model)


def main() -> None:
    """Print the detections on the images named on the command line."""
    processor, model = open_processor(HERE), open_model(HERE)
    images = [read_image(path) for path in sys.argv[1:]]
    for path, found in zip(sys.argv[1:], processor.predict(images, model), strict=True):
        print(path)
        print(processor.describe(found))


if __name__ == "__main__":
    main()

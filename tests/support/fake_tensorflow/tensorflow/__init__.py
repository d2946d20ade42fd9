"""A stand-in for TensorFlow's SavedModels: ONNX Runtime, with channels last and outputs in reverse."""

from types import SimpleNamespace

import numpy as np
import onnxruntime


def constant(values):
    return values


def load(folder):
    session = onnxruntime.InferenceSession(f"{folder}/saved_model.pb", providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    _, channels, height, width = entry.shape
    assert all(isinstance(size, int) for size in entry.shape), "a SavedModel has fixed sizes"

    class Signature:
        structured_input_signature = ((), {"images": None})

        def __call__(self, images):
            assert images.shape == (entry.shape[0], height, width, channels)
            found = session.run(None, {entry.name: np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
            last = [one.transpose(0, 2, 3, 1) if one.ndim == 4 else one for one in found]
            return {f"output_{number}": last[number] for number in reversed(range(len(last)))}

    return SimpleNamespace(signatures={"serving_default": Signature()})


saved_model = SimpleNamespace(load=load)

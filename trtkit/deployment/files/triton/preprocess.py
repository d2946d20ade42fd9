"""Triton, Python backend: encoded images (JPEG, PNG; NumPy files of other channels) to the model's input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from yolo import Processor, decode_image  # noqa: E402


class TritonPythonModel:
    """Decodes, resizes and normalizes images."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read `model.json`."""
        self.processor = Processor(HERE)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with one row per image."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        encoded = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        try:
            values, places = self.processor.preprocess([decode_image(data) for data in encoded])
        except (ValueError, SystemExit) as error:  # SystemExit would end the model
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        rows = [[*place["shape"], *place["resized"], *place["pad"]] for place in places]
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor("input", values),
                pb_utils.Tensor("place", np.array(rows, np.int32)),
            ]
        )

"""Triton, Python backend: the model itself, tensors in, tensors out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import infer  # noqa: E402


class TritonPythonModel:
    """Runs the file beside it with ONNX Runtime or TensorRT."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        provider = parameters.get("provider", {}).get("string_value", "")
        self.model = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
        self.run = infer.open_model(HERE, provider) if provider else infer.open_model(HERE)
        self.source = self.model["input"]["name"]
        self.most = self.model["input"]["batch"]
        self.fixed = bool(self.most) and not self.model["input"]["dynamic"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests as one batch, in parts no larger than the model takes."""
        arrays = [pb_utils.get_input_tensor_by_name(request, self.source).as_numpy() for request in requests]
        try:
            outputs = self._run_all(np.concatenate(arrays))
        except (Exception, SystemExit) as error:  # noqa: BLE001  Raised out of here, it would end the whole model.
            message = pb_utils.TritonError(f"{type(error).__name__}: {error}")
            return [pb_utils.InferenceResponse(error=message) for _ in requests]
        responses = []
        start = 0
        for array in arrays:
            rows = slice(start, start + len(array))
            start += len(array)
            tensors = [pb_utils.Tensor(name, values[rows]) for name, values in outputs.items()]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses

    def _run_all(self, values: np.ndarray) -> dict[str, np.ndarray]:
        parts = []
        size = self.most or len(values)
        for start in range(0, len(values), size):
            part = values[start : start + size]
            count = len(part)
            if self.fixed and count < size:
                part = np.concatenate((part, np.zeros((size - count, *part.shape[1:]), part.dtype)))
            parts.append({name: array[:count] for name, array in self.run(part).items()})
        return {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in parts[0]}

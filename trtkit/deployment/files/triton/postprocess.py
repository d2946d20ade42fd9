"""Triton, Python backend: the model's outputs to detections in pixels of the images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from yolo import Processor, encode_mask  # noqa: E402


class TritonPythonModel:
    """Decodes boxes and applies NMS; rows beyond the objects found are zero."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read `model.json`."""
        self.processor = Processor(HERE)
        model = self.processor.model
        self.names = [tensor["name"] for tensor in model["outputs"]["tensors"]]
        self.rows = int(model["thresholds"]["max_det"])
        config = json.loads(args["model_config"])
        self.wanted = {output["name"]: output["dims"] for output in config["output"]}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with one row per image."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        outputs = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.names}
        table = pb_utils.get_input_tensor_by_name(request, "place").as_numpy().tolist()
        places = [
            {"shape": row[:2], "resized": row[2:4], "pad": row[4:6], "size": self.processor.size} for row in table
        ]
        found = self.processor.postprocess(outputs, places)
        if self.processor.task == "classify":
            tensors = [pb_utils.Tensor("probabilities", np.stack([one["probabilities"] for one in found]))]
            return pb_utils.InferenceResponse(output_tensors=tensors)
        counts = np.array([[len(one["scores"])] for one in found], np.int32)
        tensors = [pb_utils.Tensor("count", counts)]
        for name, dims in self.wanted.items():
            if name == "count":
                continue
            values = np.zeros((len(found), *dims[-self._depth(name) :]), self._type(name))
            if name == "masks":
                values = np.full(values.shape, b"", object)
            for row, one in enumerate(found):
                part = [encode_mask(mask) for mask in one["masks"]] if name == "masks" else one[name]
                values[row, : len(part)] = part
            tensors.append(pb_utils.Tensor(name, values))
        return pb_utils.InferenceResponse(output_tensors=tensors)

    @staticmethod
    def _type(name: str) -> Any:
        return {"classes": np.int32, "masks": object}.get(name, np.float32)

    @staticmethod
    def _depth(name: str) -> int:
        """Axes of a tensor after the batch."""
        return {"scores": 1, "classes": 1, "masks": 1, "keypoints": 3}.get(name, 2)

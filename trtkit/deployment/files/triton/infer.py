"""Ask a Triton server that serves this folder's `models`: `python infer.py IMAGE ... [--url localhost:8001]`.

Needs `pip install tritonclient[grpc] numpy opencv-python-headless` (or Pillow).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException
from yolo import Processor, decode_mask_runs, encode_image, read_image

HERE = Path(__file__).resolve().parent
URL = os.environ.get("TRITON_URL", "localhost:8001")


def open_predictor(
    folder: Path, url: str = URL, timeout: float = 60.0
) -> Callable[[Sequence[np.ndarray]], list[dict[str, Any]]]:
    """Return a function from images (BGR uint8) to their detections, found by the server.

    Args:
        folder: The folder that holds `model.json`.
        url: Host and port of the server's gRPC endpoint.
        timeout: The longest wait for an answer, s.
    """
    processor = Processor(folder)
    name = processor.model["triton"]["ensemble"]
    client = triton.InferenceServerClient(url)
    try:
        if not client.is_server_ready(client_timeout=timeout):
            raise SystemExit(f"the Triton server at {url} is not ready")
        if not client.is_model_ready(name, client_timeout=timeout):
            raise SystemExit(f"the Triton server at {url} does not serve {name}: start it with this folder's models")
    except InferenceServerException as error:
        raise SystemExit(f"no Triton server answers at {url}: {error.message()}") from None
    batched = processor.model["triton"]["max_batch_size"] > 0

    def predict(images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        return [one for image in images for one in ask([image])]

    def ask(images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        data = np.array([encode_image(image) for image in images], object)
        data = data[:, None] if batched else data
        entry = triton.InferInput("image", data.shape, "BYTES")
        entry.set_data_from_numpy(data)
        try:
            answer = client.infer(name, [entry], client_timeout=timeout)
        except InferenceServerException as error:
            raise SystemExit(f"{name} at {url} did not answer: {error.message()}") from None
        if processor.task == "classify":
            return [{"probabilities": row} for row in answer.as_numpy("probabilities")]
        counts = answer.as_numpy("count").reshape(-1)
        found = []
        for row, (count, image) in enumerate(zip(counts, images, strict=True)):
            one = {}
            for output in ("boxes", "scores", "classes", "keypoints", "xywhr", "masks"):
                values = answer.as_numpy(output)
                if values is not None:
                    one[output] = values[row, :count]
            if "masks" in one:
                one["masks"] = [decode_mask_runs(runs, image.shape[:2]) for runs in one["masks"]]
            found.append(one)
        return found

    return predict


def main() -> None:
    """Print the detections on the images named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--url", default=URL, help="host and port of the server's gRPC endpoint")
    arguments = parser.parse_args()
    processor, predict = Processor(HERE), open_predictor(HERE, arguments.url)
    for path in arguments.images:
        print(path)
        print(processor.describe(predict([read_image(path)])[0]))


if __name__ == "__main__":
    main()

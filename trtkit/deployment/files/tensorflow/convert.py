"""Convert the model to `saved_model/` with onnx2tf: `python convert.py`.

onnx2tf pins the versions of what it needs, so give it an environment of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
# onnx2tf downloads this file into the working folder, if it is not there, to compare outputs on it.
SAMPLE_FILE = "calibration_image_sample_data_20x128x128x3_float32.npy"


def convert(folder: Path) -> None:
    """Write `saved_model/`, with the hash of the model it was converted from."""
    try:
        import onnx2tf
    except ImportError as error:
        raise SystemExit(
            f"{error}: onnx2tf converts the model; in an environment of its own, pip install onnx2tf==1.29.24"
        ) from None
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((folder / model["file"]["name"]).read_bytes()).hexdigest()
    if digest != model["file"]["sha256"]:
        raise SystemExit(f"{model['file']['name']} is not the file that this folder was written for")
    before = Path.cwd()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        # onnx2tf overwrites the file it reads with a simplified one.
        shutil.copyfile(folder / model["tensorflow"]["source"], Path(temporary) / "model.onnx")
        os.chdir(temporary)
        try:
            np.save(SAMPLE_FILE, np.random.default_rng(0).uniform(0, 1, (20, 128, 128, 3)).astype(np.float32))
            onnx2tf.convert(
                input_onnx_file_path="model.onnx",
                output_folder_path="saved_model",
                output_signaturedefs=True,
                non_verbose=True,
            )
        finally:
            os.chdir(before)
        written = Path(temporary) / "saved_model"
        if not (written / "saved_model.pb").exists():
            raise SystemExit("onnx2tf wrote no SavedModel")
        for path in written.glob("*.tflite"):
            path.unlink()
        (written / "model.sha256").write_text(digest + "\n", encoding="utf-8")
        shutil.rmtree(folder / "saved_model", ignore_errors=True)
        written.rename(folder / "saved_model")


if __name__ == "__main__":
    convert(HERE)

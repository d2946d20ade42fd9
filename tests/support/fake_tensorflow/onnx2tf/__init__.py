"""A stand-in for onnx2tf: the SavedModel is the ONNX file. It wants its sample file, so that it downloads nothing."""

import shutil
from pathlib import Path

import numpy as np


def convert(*, input_onnx_file_path, output_folder_path, output_signaturedefs, non_verbose):
    assert output_signaturedefs
    assert np.load("calibration_image_sample_data_20x128x128x3_float32.npy").shape == (20, 128, 128, 3)
    folder = Path(output_folder_path)
    folder.mkdir()
    shutil.copy(input_onnx_file_path, folder / "saved_model.pb")
    # As the real one does.
    Path(input_onnx_file_path).write_bytes(b"simplified")
    (folder / "model_float32.tflite").write_bytes(b"")

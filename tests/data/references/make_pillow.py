"""Make pillow.npz: noise resized by Pillow's bilinear filter. Run where Pillow is installed."""

from pathlib import Path

import numpy as np
from PIL import Image

references = {}
for before in [(40, 60), (61, 33), (150, 100), (24, 24), (9, 130)]:
    for after in [(24, 24), (32, 48)]:
        image = (np.random.default_rng(0).random((*before, 3)) * 256).astype(np.uint8)
        resized = Image.fromarray(image).resize((after[1], after[0]), Image.Resampling.BILINEAR)
        references[f"{before}-{after}".replace(" ", "")] = np.asarray(resized)
np.savez_compressed(Path(__file__).parent / "pillow.npz", **references)

"""Images as callers pass them: URLs, PIL images, arrays; and what is none."""

from __future__ import annotations

import http.server
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from raising import raises

from trtkit.data.image_arguments import list_image_arguments, read_image_argument
from trtkit.downloads import read_url
from trtkit.errors import DataError, DownloadError

RANDOM = np.random.default_rng(0)


def read_all(images: Any) -> list[np.ndarray]:
    return [read_image_argument(image, 3) for image in list_image_arguments(images)]


class Server(http.server.BaseHTTPRequestHandler):
    image = b""

    def do_GET(self) -> None:
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", f"{self.path.split('/')[2]}:///etc/hostname")
        elif self.path == "/missing.jpg":
            self.send_response(404)
        else:
            self.send_response(200)
            if self.path != "/":
                self.send_header("Content-Length", str(len(self.image) + (10 if self.path == "/cut.png" else 0)))
        self.end_headers()
        if self.path != "/":
            self.wfile.write(self.image)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.image = cv2.imencode(".png", RANDOM.integers(0, 256, (24, 40, 3), np.uint8))[1].tobytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_images_by_url(server: str) -> None:
    pixels = cv2.imdecode(np.frombuffer(Server.image, np.uint8), cv2.IMREAD_COLOR)
    for images in (f"{server}/a.png", [f"{server}/a.png?size=1"]):
        (read,) = read_all(images)
        assert np.array_equal(read, pixels)
    for path, code in (
        ("missing.jpg", "url-refused"),
        ("moved/file", "url-refused"),
        ("moved/ftp", "url-unreachable"),
        ("cut.png", "url-interrupted"),
    ):
        with raises(DownloadError, code):
            read_all(f"{server}/{path}")
    with raises(DataError, "image-empty"):
        read_all(f"{server}/")
    for other in ("http://", "https://[", "http://127.0.0.1:1/a.png", "http://a\0b/c.png"):
        with raises(DownloadError, "url-unreachable"):
            read_all(other)
    with raises(DownloadError, "url-too-large"):
        read_url(f"{server}/a.png", limit=100)
    with raises(DownloadError, "url-too-slow"):
        read_url(f"{server}/a.png", seconds=0.05, clock=iter([0.0, 1.0]).__next__)


@pytest.mark.parametrize("image", [None, 3, b"bytes", object(), ["a", "b"]])
def test_what_is_no_image(image: Any) -> None:
    with raises(DataError, "predict-image-type", type=type(image).__name__):
        read_all([image])
    if image is None:
        with raises(DataError, "predict-image-type", type="NoneType"):
            read_all(image)


class FakePil:
    """What trtkit uses of a PIL image; the real library is compared where it is installed."""

    def __init__(self, rgb: np.ndarray, size: tuple[int, int] | None = None) -> None:
        self.rgb, self.mode, self.size = rgb, "RGBA", size or (rgb.shape[1], rgb.shape[0])

    def convert(self, mode: str) -> np.ndarray:
        return {"RGB": self.rgb, "L": self.rgb[:, :, 0]}[mode]


@pytest.mark.parametrize("channels", [1, 3])
def test_pil_images_become_bgr(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", types.SimpleNamespace(Image=FakePil))
    rgb = RANDOM.integers(0, 256, (5, 7, 3), np.uint8)
    read = read_image_argument(FakePil(rgb), channels)
    assert np.array_equal(read, rgb[:, :, :1] if channels == 1 else rgb[:, :, ::-1])
    assert read.flags.c_contiguous
    for size in ((30_000, 30_000), (0, 5)):
        with raises(DataError, "predict-image-pil", size=size):
            read_image_argument(FakePil(rgb, size), channels)
    with raises(DataError, "predict-image-pil", channels=4):
        read_image_argument(FakePil(rgb), 4)


def test_pillow_itself() -> None:
    image = pytest.importorskip("PIL.Image")
    rgb = RANDOM.integers(0, 256, (5, 7, 3), np.uint8)
    for mode in ("RGB", "RGBA", "L", "P", "1", "LA", "CMYK", "I;16"):
        one = image.fromarray(rgb).convert("L" if mode == "I;16" else mode)
        assert read_image_argument(one.convert(mode), 3).shape == (5, 7, 3)
    assert np.array_equal(read_image_argument(image.fromarray(rgb), 3), rgb[:, :, ::-1])

"""Thumbnails of chosen data: the first images of each form of data, and nothing that breaks on broken ones."""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from trtkit import demo
from trtkit.recipe import Recipe
from trtkit.widgets.ui import thumbnails
from trtkit.widgets.ui.thumbnails import Thumbnails, find_first_images, render_thumbnails
from trtkit.widgets.wizard.wizard import wizard


def write_image(path: Path, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((side, side, 3), 120, np.uint8))
    return path


def claim_size(path: Path, width: int, height: int) -> None:
    """A PNG file of bytes whose header claims any size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IEND\xaeB`\x82")


@pytest.mark.parametrize("task", demo.EMBEDDED_TASKS)
def test_the_embedded_data_has_thumbnails(task: str) -> None:
    markup = render_thumbnails(str(demo.data_path(task)))
    assert markup.count("<img") == thumbnails.COUNT
    assert "can't be shown" not in markup
    assert len(markup) < 200_000


def test_of_class_folders_one_image_each_comes_first(tmp_path: Path) -> None:
    for name in ("train/cat/0.png", "train/cat/1.png", "train/dog/0.png", "val/cat/0.png"):
        write_image(tmp_path / name)
    found = [path.relative_to(tmp_path).as_posix() for path in find_first_images(str(tmp_path))]
    assert found == ["train/cat/0.png", "train/dog/0.png", "val/cat/0.png", "train/cat/1.png"]


def test_every_form_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write_image(tmp_path / "images" / "0.png")
    (tmp_path / "images" / "notes.md").write_text("no image")
    (tmp_path / "list.txt").write_text("images/0.png\n\n")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    monkeypatch.chdir(tmp_path)
    for data in ("images", "images/0.png", "list.txt", "data.yaml", "images/*", str(tmp_path / "**" / "*.png")):
        assert [path.resolve() for path in find_first_images(data)] == [one], data
    for data in ("", " ", "nowhere", "images/notes.md", "nowhere/*", "a\0b", "~nobody/x", "x" * 5000):
        assert list(find_first_images(data)) == [], data
        assert render_thumbnails(data) == ""


def test_broken_and_hostile_images_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    (tmp_path / "b.png").touch()
    claim_size(tmp_path / "c.png", 14000, 14000)
    os.mkfifo(tmp_path / "d.png")
    (tmp_path / "e.png").symlink_to(tmp_path / "gone.png")
    write_image(tmp_path / "<img src=x onerror=alert(1)>.png")
    write_image(tmp_path / "z.png")
    start = time.monotonic()
    markup = render_thumbnails(str(tmp_path))
    assert time.monotonic() - start < 5
    assert markup.count("<img") == 2
    assert "onerror=alert" not in markup.replace("&lt;img src=x onerror=alert(1)&gt;", "")
    assert "5 of the first 7 images can't be shown" in markup


def test_a_name_that_is_not_utf8_is_shown_with_escapes(tmp_path: Path) -> None:
    image = write_image(tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").unlink()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png")).write_bytes(image)
    markup = render_thumbnails(str(tmp_path))
    assert "\\udce9.png" in markup
    assert markup.encode()


def test_large_images_become_small_and_many_folders_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "0.png", side=2000)
    assert len(render_thumbnails(str(tmp_path))) < 20_000
    monkeypatch.setattr(thumbnails, "MOST_ENTRIES", 10)
    for number in range(30):
        write_image(tmp_path / f"folder{number:02}" / "0.png", side=1)
    # Of 31 entries ten are looked at, and those below them are beyond the budget.
    assert len(list(find_first_images(str(tmp_path)))) <= 1


def test_the_widget_shows_the_last_path_only(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png")
    widget = Thumbnails()
    widget.show(str(tmp_path))
    widget.wait()
    assert widget.value.count("<img") == 1
    widget.show("")
    widget.wait()
    assert widget.value == ""


def test_the_wizard_shows_the_images_that_it_is_given(tmp_path: Path) -> None:
    page = wizard(Recipe(model="x.pt", data=str(demo.data_path("pose")))).page("images")
    page.show(page.host.state)
    page.thumbnails.wait()
    assert page.thumbnails.value.count("<img") == thumbnails.COUNT

"""Pictures beside each other, each at one height, as a PNG with the colours the right way round."""

import cv2
import numpy as np

from trtkit.tasks.drawing import GAP, HEIGHT, WIDTH, sheet_of


def plain(height, width, colour):
    return np.full((height, width, 3), colour, np.uint8)


def test_pictures_of_any_size_stand_in_a_row_at_one_height():
    sheet = sheet_of([plain(HEIGHT * 2, 400, (255, 0, 0)), plain(HEIGHT // 2, 100, (0, 0, 255))])
    assert sheet.picture.shape == (HEIGHT, 200 + GAP + 200, 4)
    # BGR in, RGBA out: the first is blue, the second red, and nothing is between them.
    assert sheet.picture[5, 5].tolist() == [0, 0, 255, 255]
    assert sheet.picture[5, 200 + GAP + 5].tolist() == [255, 0, 0, 255]
    assert sheet.picture[5, 200 + GAP // 2].tolist() == [0, 0, 0, 0]


def test_a_full_row_begins_the_next():
    sheet = sheet_of([plain(HEIGHT, WIDTH // 2, 9)] * 3)
    assert sheet.picture.shape[0] == 3 * HEIGHT + 2 * GAP
    assert sheet_of([plain(HEIGHT, (WIDTH - GAP) // 2, 9)] * 3).picture.shape[0] == 2 * HEIGHT + GAP


def test_a_picture_wider_than_a_row_has_its_own():
    assert sheet_of([plain(HEIGHT, 2 * WIDTH, 9)]).picture.shape == (HEIGHT, 2 * WIDTH, 4)


def test_the_png_holds_the_picture(tmp_path):
    sheet = sheet_of([plain(HEIGHT, 50, (0, 128, 255))])
    read = cv2.imread(str(sheet.save(tmp_path / "sheet.png")), cv2.IMREAD_UNCHANGED)
    assert read[0, 0].tolist() == [0, 128, 255, 255]
    assert sheet._repr_png_() == (tmp_path / "sheet.png").read_bytes()
    assert repr(sheet) == f"Sheet(1 pictures, 50x{HEIGHT})"

"""Frames on a terminal and in a log; names with control characters."""

import argparse
import ast
import io
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import trtkit
from trtkit import cli
from trtkit.cli import main
from trtkit.cli.output import (
    ProgressBars,
    escape_controls,
    make_frame_table,
    make_table,
    print_error,
    print_table,
    print_text,
)
from trtkit.cli.predict_command import _name_drawn_images
from trtkit.errors import DataError
from trtkit.progress import Event

CLEAR = "\x1b[2J"
HOSTILE = f"{CLEAR}\r\x07\x9b31m\u202etxt\u2028[/x][red]:smile:\udcff"


def assert_harmless(text: str, lines: int | None = None) -> None:
    assert all(letter in "\n\t" or letter.isprintable() for letter in text), repr(text)
    if lines is not None:
        assert text.count("\n") == lines


def test_a_frame_is_printed_whole(capsys):
    frame = pl.DataFrame(
        {
            "node": [f"/model.{place}/conv/Conv" for place in range(40)],
            "sqnr": [21.123456] * 40,
            "metric": [None, *[0.79243] * 39],
            "chosen": [True, *[False] * 39],
            "keep": [["a", "b"], *[[]] * 39],
            "macs": [1179648] * 40,
        },
        schema_overrides={"keep": pl.List(pl.String)},
    )
    print_table(make_frame_table(frame))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 41
    assert lines[0].split() == frame.columns
    assert lines[1].split() == ["/model.0/conv/Conv", "21.12", "-", "yes", "2", "1179648"]
    assert lines[40].split() == ["/model.39/conv/Conv", "21.12", "0.7924", "no", "0", "1179648"]


@given(st.text(st.characters()))
def test_no_control_character_is_left_and_printable_text_stays(text):
    shown = escape_controls(text)
    assert not any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 for letter in shown)
    shown.encode()
    assert escape_controls(shown) == shown
    if text.isprintable():
        assert shown == text


def test_scripts_and_emoji_with_joiners_stay():
    for text in ("Straße ß", "می\u200cخواهم", "👩\u200d🔬", "犬 × 3", "a\u00a0b"):
        assert escape_controls(text) == text


@pytest.mark.parametrize(
    ("show", "lines"), [(print_text, 1), (print_error, 1), (lambda text: print_table(_table(text)), 2)]
)
def test_text_errors_and_tables_escape_names(show, lines, capsys):
    show(HOSTILE)
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert_harmless(shown, lines)
    assert r"\x1b[2J\r\x07\x9b31m\u202etxt\u2028[/x][red]:smile:\udcff" in shown


def _table(name):
    table = make_table("name")
    table.add_row(name)
    return table


def test_a_line_break_in_an_error_forges_no_second_message(capsys):
    print_error("no such file: a.pt\ntrtkit: done")
    assert capsys.readouterr().err == "no such file: a.pt\\ntrtkit: done\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_escapes_stages_and_messages(terminal, capsys):
    sink = io.StringIO()
    console = Console(file=sink, force_terminal=terminal, color_system=None, width=200)
    with ProgressBars(console, verbose=True) as bars:
        bars(Event(stage=HOSTILE, done=0, total=2, message=HOSTILE))
        bars(Event(stage=HOSTILE, done=2, total=2, message=HOSTILE))
    shown = sink.getvalue()
    assert CLEAR not in shown
    assert not {"\u202e", "\x07", "\x9b"} & set(shown)
    assert r"\x1b[2J" in shown


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("verbose", [True, False])
def test_log_lines_are_shown_if_asked_for_and_end_in_no_file_of_the_package(terminal, verbose):
    sink = io.StringIO()
    console = Console(file=sink, force_terminal=terminal, color_system=None, width=80)
    with ProgressBars(console, verbose=verbose) as bars:
        bars(Event(stage="build", done=0, total=2, message="wrote a.engine"))
    assert ("wrote a.engine" in sink.getvalue()) is verbose
    assert ".py" not in sink.getvalue()


def test_errors_warnings_and_wrong_words_of_the_command_line_are_escaped(capsys, monkeypatch):
    def fail(values, cancel):
        warnings.warn(f"note {HOSTILE}", UserWarning, stacklevel=1)
        raise DataError(f"read {HOSTILE}", "it is no image", "remove it", code="x")

    monkeypatch.setattr(cli, "parse_command", lambda words: (fail, argparse.Namespace()))
    assert main(["evaluate"]) == 2
    captured = capsys.readouterr().err
    assert_harmless(captured, lines=2)
    assert captured.count(r"\x1b[2J") == 2
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        main(["report", "a", HOSTILE])
    assert_harmless(capsys.readouterr().err)


def test_predict_shows_names_of_a_hostile_model_and_file(tmp_path, capsys):
    """The whole way: class names out of ONNX metadata, file names out of a folder."""
    path = tmp_path / "model.onnx"
    trtkit.export(trtkit.demo.model_path("classify"), format="onnx", output=path)
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == "names":
            names = ast.literal_eval(entry.value)
            entry.value = repr(dict.fromkeys(names, HOSTILE[:-1]))
    onnx.save(model, path)
    image = tmp_path / f"{CLEAR}a\n.png"
    image.write_bytes(_png())
    assert main(["predict", str(path), str(image), "--output", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert_harmless(captured.out)
    assert captured.out.count(r"\x1b[2J") == 2
    assert r"a\n.png" in captured.out


def _png() -> bytes:
    import cv2

    return cv2.imencode(".png", np.zeros((32, 32, 3), np.uint8))[1].tobytes()


def test_the_command_line_prints_through_its_output_module_only():
    folder = Path(cli.__file__).parent
    calls = [
        (path.name, node.lineno)
        for path in folder.glob("*.py")
        if path.name != "output.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and not all(isinstance(argument, ast.Constant) for argument in node.args)
    ]
    assert calls == []


@pytest.mark.parametrize("terminal", [True, False])
def test_no_line_of_a_table_ends_in_blanks(capsys, monkeypatch, terminal):
    """They fill the width of a notebook's output, and wrap where it is narrower than the longest cell."""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm")) if terminal else ():
        monkeypatch.setenv(name, value)
    table = make_table("fact", "value")
    for row in (("classes", "person, bicycle, car"), ("task", "detect"), ("batch", "")):
        table.add_row(*row)
    print_table(table)
    shown = capsys.readouterr().out
    assert ("\x1b[1m" in shown) == terminal
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert lines == ["fact     value", "classes  person, bicycle, car", "task     detect", "batch"]


def test_a_terminal_too_narrow_for_a_table_cuts_no_name(capsys, monkeypatch):
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "40")):
        monkeypatch.setenv(name, value)
    heads = ("mAP50-95(B)", "pycocotools/AP", "p50 ms/image", "engine MB")
    table = make_table("name", numbers=heads)
    table.add_row("a/very/long/name/of/one.layer", *["0.7612"] * len(heads))
    print_table(table)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 40
    assert [line for line in lines if line != line.rstrip()] == []
    shown = sorted("".join(lines).replace(" ", ""))
    expected = "".join(("name", *heads, "a/very/long/name/of/one.layer", "0.7612" * len(heads)))
    assert shown == sorted(expected.replace(" ", ""))


def test_drawn_images_have_names_of_their_own():
    paths = [Path(name) for name in ("a.jpg", "a.png", "a.jpg.png", "b.bmp", "c/a.jpg")]
    names = _name_drawn_images(paths)
    assert len(set(names.values())) == len(paths)
    assert str(_name_drawn_images([Path("b.bmp"), Path("c/a.jpg")])[Path("b.bmp")]) == "b.jpg"

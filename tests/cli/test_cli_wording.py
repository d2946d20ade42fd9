"""Messages of the package, written for Python, in the words of the command line."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trtkit
from trtkit.cli import COMMANDS, main
from trtkit.cli.options import OPTIONS
from trtkit.cli.wording import _NEGATED, describe_error, to_command_words
from trtkit.errors import RecipeError
from trtkit.recipe import Recipe

PACKAGE = Path(trtkit.__file__).parent


@pytest.mark.parametrize(
    ("python", "command"),
    [
        ("with half=True and int8=True: use int8=True alone.", "with --half and --int8: use --int8 alone."),
        ("use e.g. batch=1.", "use e.g. --batch 1."),
        ("pass workspace=2.5, or None to be free", "pass --workspace 2.5, or leave it out to be free"),
        ("pass None for TensorRT's default", "leave it out for TensorRT's default"),
        ("pass backend='tensorrt_rtx', device='sm89'", "pass --backend tensorrt_rtx, --device sm89"),
        ("imgsz=(480, 640) was passed", "--imgsz 480,640 was passed"),
        ("keep=['/model.23/*', 'b']", "--keep '/model.23/*' --keep b"),
        ("candidates={'qat': 'q.onnx'}", "--candidate qat=q.onnx"),
        ("export with calibration= and data=: no", "export with --calibration and --data: no"),
        ("trace it with dynamic=True, simplify=False", "trace it with --dynamic, --no-simplify"),
        ("with histograms (histograms=True, --histograms), or", "with histograms (--histograms), or"),
        ("pass samples= (--samples), images", "pass --samples, images"),
        ("weights='refittable' or 'stripped' (--weights).", "--weights refittable or 'stripped' (--weights)."),
        ("pass two engine files to trtkit.why_slow.", "pass two engine files to trtkit why-slow."),
        ("use the arguments of export().", "use the arguments of trtkit export."),
        ("runs/imgsz=640/a.pt is no file; batch=8.pt neither", "runs/imgsz=640/a.pt is no file; batch=8.pt neither"),
        ("take the other one (end2end=True)", "take the other one (--end2end)"),
        ("load a.pt with end2end=False: no", "load a.pt with no --end2end: no"),
    ],
)  # fmt: skip
def test_arguments_are_options(python, command):
    assert to_command_words(python) == command


@given(st.text())
def test_translation_ends_and_is_idempotent_on_text_without_arguments(text):
    once = to_command_words(text)
    if "=" not in text and "." not in text and "(" not in text and "None" not in text:
        assert once == text
    assert to_command_words(once) == once or "=" in once


def test_switches_with_a_no_form_are_those_whose_default_is_not_false():
    found = set()
    for name in trtkit.__all__:
        function = getattr(trtkit, name)
        if inspect.isfunction(function) and name.replace("_", "-") in COMMANDS:
            found |= {n for n, p in inspect.signature(function).parameters.items()
                      if n in OPTIONS and OPTIONS[n].switch and p.default is not False}  # fmt: skip
    assert found == set(_NEGATED)


def test_an_argument_out_of_range_is_an_option():
    with pytest.raises(RecipeError) as caught:
        Recipe(model="a.pt", opt_level=9)
    sentence = describe_error(caught.value)
    assert sentence == (
        "export with --opt-level 9: --opt-level must be a whole number from 0 to 5; use e.g. --opt-level 3."
    )


def templates():
    """The texts of every error and warning of the package, with 8 for what is filled in."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "widgets" in path.parts or "files" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and re.search(r"(\w+Error|\bwarn)$", ast.unparse(node.func)):
                for argument in node.args:
                    yield from ((path, text) for text in texts(argument))


def texts(node):
    if isinstance(node, ast.JoinedStr):
        yield "".join(value.value if isinstance(value, ast.Constant) else "8" for value in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, (ast.IfExp, ast.BinOp)):
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


PYTHON = re.compile(r"\b[a-z_]+=('|\"|True|False|None|\d|\(|\[|,|$|\s)|\(\)|\btk\.|\btrtkit\.(export|compare)\b")
PYTHON_ONLY = re.compile(r"\b(names|example|output_format|precision|task|model)=|trtkit\.load\b|\{|=8")
"""What only a caller in Python can pass or meet."""


def test_no_message_of_the_package_reads_like_python_on_the_command_line():
    bad = []
    for path, text in templates():
        shown = to_command_words(text)
        if PYTHON.search(shown) and not PYTHON_ONLY.search(shown):
            bad.append((path.name, shown))
    assert bad == []


def test_errors_on_the_command_line_name_options(capsys):
    assert main(["export", "a.pt", "--half", "--int8"]) == 2
    assert "--half and --int8" in capsys.readouterr().err
    assert main(["export", "a.pt", "--implicit"]) == 2
    assert "add --int8 and --format engine" in capsys.readouterr().err

"""Replay code: the Python and the command line that repeat a call."""

import shlex

from hypothesis import given
from hypothesis import strategies as st

from trtkit.cli import parse_command
from trtkit.codegen import TunedExport, non_default_arguments, render_command, render_python


def verb(
    model, data, precisions=("fp32", "int8"), *, batch=1, keep=(), simplify=True, overwrite=False, imgsz=None, scale=1.5
):
    """A stand-in for a verb of trtkit."""


def test_arguments_equal_to_the_defaults_are_left_out():
    values = {"model": "a.pt", "data": "d.yaml", "precisions": ["fp32", "int8"], "batch": [1], "keep": [], "scale": 1.5}
    assert non_default_arguments(verb, values) == {"model": "a.pt", "data": "d.yaml"}


def test_the_command_spells_flags_lists_and_odd_paths():
    values = {"model": "my model.pt", "data": "d.yaml", "batch": [1, 8], "keep": ["/head/*", "x"], "simplify": False,
              "overwrite": True, "imgsz": [480, 640]}  # fmt: skip
    assert shlex.split(render_command("verb", verb, values)) == [
        "trtkit", "verb", "--model=my model.pt", "--data=d.yaml", "--batch=1,8", "--keep=/head/*", "--keep=x",
        "--no-simplify", "--overwrite", "--imgsz=480,640",
    ]  # fmt: skip


@given(
    st.fixed_dictionaries(
        {"model": st.text(), "data": st.text()},
        optional={
            "batch": st.integers(1, 99) | st.lists(st.integers(1, 99), min_size=2, max_size=3),
            "keep": st.lists(st.text(), max_size=3),
            "simplify": st.booleans(),
            "scale": st.floats(allow_nan=False, allow_infinity=False),
        },
    )
)
def test_the_python_makes_the_same_call(values):
    calls = []
    code = render_python("verb", verb, values).replace("import trtkit as tk\n", "")
    tk = type("tk", (), {"verb": staticmethod(lambda **arguments: calls.append(arguments))})
    exec(code, {"tk": tk})
    assert non_default_arguments(verb, calls[0]) == non_default_arguments(verb, values)


def test_the_result_is_named():
    assert "\nartifact = tk.verb(\n" in render_python("verb", verb, {"model": "m"}, result="artifact")


def test_a_tuned_export_names_the_head():
    tuned = TunedExport(model="a.pt", settings={"data": "d.yaml"}, end2end=True)
    code = tuned.to_python()
    assert "tk.load('a.pt', end2end=True)" in code.split("tk.export")[0]
    assert "end2end=True" in code.split("tk.export")[1]
    for line in tuned.to_command().splitlines():
        _, values = parse_command(shlex.split(line)[1:])
        assert (values.model, values.end2end) == ("a.pt", True)
    other = TunedExport(model="a.pt", settings={"data": "d.yaml"})
    assert "end2end" not in other.to_python() + other.to_command()

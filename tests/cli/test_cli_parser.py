"""Suggestions, no abbreviations, help of any width, examples that parse, and completion scripts."""

import argparse
import re
import shlex
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkit.cli import COMMANDS, main, make_full_parser, parse_command
from trtkit.cli.examples import EXAMPLES, OVERVIEW
from trtkit.cli.parser import Parser, describe_choice, find_similar


def refusal(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_every_command_has_examples():
    assert set(EXAMPLES) == set(COMMANDS)
    assert set(OVERVIEW) <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_parses_and_is_shown(command, capsys):
    for line in EXAMPLES[command]:
        words = re.search(r"trtkit ([^>)\"]*)", line)[1]
        run, values = parse_command(shlex.split(words) if "--recipe" not in words else ["export", "a.pt"])
        assert callable(run)
        assert values.command == command
        assert len(line) <= 76
    shown = " ".join(EXAMPLES[command])
    words = [command, *([shlex.split(line)[2] for line in EXAMPLES[command]][:1] if command == "engine" else [])]
    with pytest.raises(SystemExit):
        parse_command([*words, "--help"])
    text = capsys.readouterr().out
    assert next(iter(EXAMPLES[command])) in text, shown


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["exprot"], "'export'"),
        (["why_slow"], "'why-slow'"),
        (["eval"], "'evaluate' or 'evaluate-int8'"),
        (["export", "a.pt", "--calib", "x"], "--calibration"),
        (["export", "a.pt", "--opt_level=3"], "--opt-level"),
        (["compare", "a.pt", "b.yaml", "--no-bild"], "--no-build"),
        (["export", "a.pt", "--format", "onx"], "'onnx'"),
        (["compare", "a.pt", "b.yaml", "--precisions", "fp16,int"], "'int8'"),
        (["calibrate", "a.pt", "--algorithm", "percentil"], "'percentile'"),
        (["deploy", "trito", "a.engine"], "'triton'"),
        (["engine", "strp", "a", "b"], "'strip'"),
        (["engine", "show", "a", "--layrs"], "--layers"),
    ],
)
def test_what_was_meant_is_suggested(words, meant, capsys):
    assert re.search(rf"did you mean ([^?]* or )?{meant}( or [^?]*)?\?", refusal(words, capsys))


def test_nothing_is_suggested_for_what_is_like_nothing(capsys):
    assert "did you mean" not in refusal(["export", "a.pt", "--zzz"], capsys)
    assert "choose from engine, onnx" in refusal(["export", "a.pt", "--format", "zzz"], capsys)
    assert "export" in refusal(["zzz"], capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_is_abbreviated(command, capsys):
    parser = make_full_parser()._subparsers._group_actions[0].choices[command]
    subparsers = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for each in [parser, *(one for action in subparsers for one in action.choices.values())]:
        assert not each.allow_abbrev
        assert isinstance(each, Parser)


def test_a_prefix_of_one_option_is_refused(capsys):
    assert "--workspace" in refusal(["export", "a.pt", "--works", "2"], capsys)


@given(st.text(max_size=12))
def test_suggestions_are_known_words(word):
    assert set(find_similar(word, COMMANDS)) <= set(COMMANDS)
    assert describe_choice(word, COMMANDS)


@given(st.sampled_from(sorted(COMMANDS)), st.data())
def test_a_command_with_two_letters_swapped_is_found(name, data):
    place = data.draw(st.integers(0, len(name) - 2))
    swapped = name[:place] + name[place + 1] + name[place] + name[place + 2 :]
    assert name in find_similar(swapped, COMMANDS) or len(name) < 5


@pytest.mark.parametrize("width", [50, 80, 120])
@pytest.mark.parametrize("command", ["", "export", "compare", "engine"])
def test_help_is_wrapped_at_the_terminal(command, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        main([*filter(None, [command]), "--help"])
    text = capsys.readouterr().out
    # An option stays in one line with its choices, and an example with its words.
    whole = re.compile(r"^  (-|trtkit )")
    assert [line for line in text.splitlines() if len(line) > width and not whole.match(line)] == []
    assert not re.search(r"\w-\n", text) or width < 80
    assert "0 ship, 1 don't ship, 3 can't tell" in " ".join(text.split()) or command not in ("", "compare")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in COMMANDS:
        assert command in script
    for option in ("--calibration-images", "--no-simplify", "--gate", "--json", "percentile", "int8", "deepstream"):
        assert option.removeprefix("--") in script
    program = shutil.which(shell)
    if program is None:
        return
    (tmp_path / "model.pt").touch()
    file = tmp_path / "script"
    file.write_text(script)
    assert subprocess.run([program, "-n", str(file)], capture_output=True, text=True).stderr == ""
    if shell == "bash":
        for words, expected in (
            ("trtkit ex", {"export", "examine"}),
            ("trtkit export --form", {"--format"}),
            ("trtkit export --format on", {"onnx"}),
            ("trtkit engine st", {"strip"}),
            ("trtkit export mod", {"model.pt"}),
        ):
            number = len(words.split()) - 1
            command = f"source {file}; COMP_WORDS=({words}); COMP_CWORD={number}; _shtab_trtkit; echo ${{COMPREPLY[@]}}"
            out = subprocess.run([program, "-c", command], capture_output=True, text=True, cwd=tmp_path).stdout
            assert expected == set(out.split()), words

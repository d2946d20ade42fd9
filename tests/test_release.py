"""The files that say what trtkit is: the README in two languages, llms.txt, the citation, Binder and Colab."""

import ast
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import llms_txt
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import trtkit

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def split_sections(text):
    """The text of each section, in order; headings are in different languages."""
    return re.split(r"^## .*$", text, flags=re.MULTILINE)


def read_commands(text):
    """The command lines without their comments, which are translated."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


def read_python(text):
    return [ast.dump(ast.parse(block)) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def remove_blocks(text):
    return re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)


def read_numbers(text):
    return sorted(re.findall(r"\d[\d.,]*\d|\d", re.sub(r"`[^`]*`|\]\([^)]*\)", "", remove_blocks(text))))


def read_names(text):
    """Words in code style: arguments, commands, files."""
    return sorted(" ".join(name.split()) for name in re.findall(r"`([^`]+)`", remove_blocks(text)))


def read_links(text):
    links = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    return sorted(path for pair in links for path in pair if path and "README" not in path)


def test_both_readmes_have_the_same_code():
    assert len(read_commands(ENGLISH)) > 6
    assert read_commands(CHINESE) == read_commands(ENGLISH)
    assert read_python(CHINESE) == read_python(ENGLISH) != []


@pytest.mark.parametrize("read", [read_numbers, read_names, read_links])
def test_both_readmes_have_the_same_numbers_names_and_links_in_each_section(read):
    english, chinese = map(split_sections, (ENGLISH, CHINESE))
    assert len(chinese) == len(english) > 7
    for mine, yours in zip(chinese, english, strict=True):
        assert read(mine) == read(yours)


def test_both_readmes_have_the_same_tables():
    tables = [[line.count("|") for line in text.splitlines() if line.startswith("|")] for text in (ENGLISH, CHINESE)]
    assert tables[0] == tables[1]


def test_each_readme_leads_to_the_other():
    assert "](README.zh-CN.md)" in ENGLISH
    assert "](README.md)" in CHINESE


def test_llms_txt_is_what_the_package_says():
    assert llms_txt.FILE.read_text(encoding="utf-8") == llms_txt.render(), "run python tools/llms_txt.py"


def test_llms_txt_names_every_verb_and_only_files_that_exist():
    text = llms_txt.render()
    verbs = {name for name in dir(trtkit) if inspect.isfunction(getattr(trtkit, name))}
    assert set(re.findall(r"^- `tk\.(\w+)`: \S", text, re.MULTILINE)) == verbs
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 12
    assert not [link for link in links if not (ROOT / link).is_file()]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == trtkit.__version__
    assert (citation["title"], citation["license"]) == (PROJECT["name"], PROJECT["license"])
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert citation["message"]


def test_the_changelog_begins_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", text, re.MULTILINE)[0] == trtkit.__version__


def test_classifiers_name_the_pythons_that_are_allowed():
    prefix = "Programming Language :: Python :: 3."
    minors = [int(text.removeprefix(prefix)) for text in PROJECT["classifiers"] if text.startswith(prefix)]
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert minors == [minor for minor in range(30) if allowed.contains(f"3.{minor}.0")]


def test_binder_installs_the_lock_and_the_extras_of_the_notebooks():
    lines = (ROOT / ".binder" / "requirements.txt").read_text().splitlines()
    (constraint,) = (line.removeprefix("-c ") for line in lines if line.startswith("-c "))
    assert (ROOT / ".binder" / constraint).resolve() == ROOT / "requirements.lock"
    (extras,) = (re.fullmatch(r"-e \.\[(.*)\]", line).group(1) for line in lines if line.startswith("-e "))
    assert set(extras.split(",")) == {"rtx", "notebook"} <= set(PROJECT["optional-dependencies"])
    python = (ROOT / ".binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")


@pytest.fixture(scope="module")
def colab():
    """The code of docs/colab.ipynb by the name of its cell."""
    cells = json.loads((ROOT / "docs" / "colab.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    return {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"}


@pytest.mark.parametrize(
    ("cuda", "tensorrt"), [("12.8", ["tensorrt-cu12"]), ("13.0", ["tensorrt-cu13"]), (None, [])], ids=str
)
def test_colab_installs_trtkit_and_the_tensorrt_of_the_runtime_s_cuda(colab, monkeypatch, cuda, tensorrt):
    torch = pytest.importorskip("torch")
    installed = []
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda words, check: installed.append(words))
    exec(colab["settings"] + "\n" + colab["install"], {})
    (words,) = installed
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    source, *more = words[5:]
    assert more == tensorrt
    assert source == f"trtkit-{trtkit.__version__}-py3-none-any.whl"
    assert all(Requirement(name) for name in more)


def test_colab_calls_verbs_with_arguments_that_they_have(colab):
    trees = [ast.parse(re.sub(r"^%.*$", "", text, flags=re.MULTILINE)) for text in colab.values()]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (compare,) = (call for call in calls if ast.unparse(call.func) == "tk.compare")
    assert {keyword.arg for keyword in compare.keywords} <= set(inspect.signature(trtkit.compare).parameters)
    for name in re.findall(r"comparison\.(\w+)", "\n".join(colab.values())):
        assert callable(getattr(trtkit.Comparison, name))

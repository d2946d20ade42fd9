"""The project's own files agree with each other, and importing the package costs nothing."""

import ast
import importlib.metadata
import inspect
import pickletools
import re
import subprocess
import sys
import zipfile
from pathlib import Path

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
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, TOOLS = PYPROJECT["project"], PYPROJECT["tool"]
# Extras whose packages fetch or pin far more than the rest can live with; the lock's header says so too.
UNLOCKED = {"tensorrt", "triton", "ultralytics"}
HEAVY = {"torch", "onnx", "onnxruntime", "plotly", "polars", "cv2", "numpy", "tensorrt", "tensorrt_rtx", "ipywidgets"}


def locked():
    """Pinned versions by package; a package may have one for each Python."""
    pins = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pins.setdefault(requirement.name.lower(), []).append(str(requirement.specifier).removeprefix("=="))
    return pins


def required():
    groups = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return [
        pytest.param(Requirement(text), id=f"{extra or 'always'}-{text}")
        for extra, texts in groups.items()
        if extra not in UNLOCKED
        for text in texts
    ]


@pytest.mark.parametrize("requirement", required())
def test_the_lock_holds_every_dependency_at_a_version_that_pyproject_allows(requirement):
    versions = locked()[requirement.name.lower()]
    assert versions
    assert all(requirement.specifier.contains(version) for version in versions)


def test_environment_yml_installs_the_same_extras_from_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip[0] == "-c requirements.lock"
    extras = re.fullmatch(r"-e \.\[(.*)\]", pip[1]).group(1).split(",")
    assert len(pip) == 2
    made = (ROOT / "Makefile").read_text()
    assert set(extras) == {"rtx", *re.search(r"rtx\$\(shell echo ,\)\)(\S+)", made).group(1).split(",")}
    assert set(extras) <= set(PROJECT["optional-dependencies"])


def test_environment_yml_takes_a_python_that_pyproject_allows():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (python,) = (
        entry for entry in environment["dependencies"] if isinstance(entry, str) and entry.startswith("python")
    )
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.partition("=")[2] + ".0")


def test_the_makefile_names_the_pythons_that_pyproject_allows():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert "(3, 10) <= sys.version_info < (3, 14)" in (ROOT / "Makefile").read_text()
    assert [minor for minor in range(8, 16) if allowed.contains(f"3.{minor}.0")] == [10, 11, 12, 13]


def test_the_license_is_apache_and_the_demo_has_its_own():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    embedded = (ROOT / "trtkit" / "demo" / "LICENSE").read_text()
    assert "*.pt" in embedded
    assert "Apache License 2.0" in embedded
    assert "CC BY 4.0" in embedded
    assert (ROOT / "trtkit" / "py.typed").exists()


@pytest.fixture(scope="module")
def shipped():
    """The files of the wheel and the sdist: what their rules include of the files that git does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    targets = TOOLS["hatch"]["build"]["targets"]
    assert set(targets) == {"wheel", "sdist"}
    folders = [*targets["wheel"]["only-include"], *(name.strip("/") for name in targets["sdist"]["include"])]
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *sorted(set(folders))]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert {ROOT / "trtkit" / "__init__.py", ROOT / "LICENSE", Path(__file__)} <= set(files)
    return files


def read_strings(checkpoint):
    """All strings of a checkpoint's pickle, in order, without unpickling it."""
    with zipfile.ZipFile(checkpoint) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        return [value for _, value, _ in pickletools.genops(archive.read(name)) if isinstance(value, str)]


def test_every_shipped_model_is_the_project_s_own_and_under_apache(shipped):
    weights = {".pt", ".pth", ".onnx", ".engine", ".plan", ".safetensors", ".torchscript", ".ckpt", ".tflite"}
    models = {path for path in shipped if path.suffix.lower() in weights}
    assert models == set((ROOT / "trtkit" / "demo").glob("*.pt"))
    assert len(models) == 6
    for path in models:
        strings = read_strings(path)
        assert strings[strings.index("license") + 1] == "Apache-2.0", path
        assert not [text for text in strings if "GPL" in text], path


def test_nothing_shipped_is_under_a_gpl(shipped):
    # How Ultralytics marks its files, and the head of the license itself.
    marks = [mark.encode() for mark in ("AGPL-3.0 " + "License -", "GNU AFFERO GENERAL" + " PUBLIC LICENSE")]
    marked = [path for path in shipped if any(mark in path.read_bytes() for mark in marks)]
    assert not marked
    assert not [line for line in (ROOT / "trtkit" / "demo" / "LICENSE").read_text().splitlines() if "GPL" in line]
    assert PROJECT["license"] == "Apache-2.0"
    assert not [text for text in PROJECT["dependencies"] if "ultralytics" in text]


def test_the_installed_version_is_the_package_s():
    assert importlib.metadata.version("trtkit") == trtkit.__version__


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_package_imports_nothing_heavy():
    names = python("import sys, trtkit; print(*{name.partition('.')[0] for name in sys.modules})")
    assert not HEAVY & set(names)


def test_every_public_name_is_there():
    for name in dir(trtkit):
        assert getattr(trtkit, name) is not None, name


def test_a_star_import_keeps_the_builtin_open():
    scope = {}
    exec("from trtkit import *", scope)
    assert "open" not in scope
    assert set(dir(trtkit)) - set(trtkit.__all__) == {"open"}
    assert set(trtkit.__all__) <= set(scope)
    assert trtkit.open is trtkit.backends.open


def test_names_for_type_checkers_are_those_that_are_fetched_lazily():
    tree = ast.parse(Path(trtkit.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.asname: statement.module for statement in block.body for alias in statement.names}
    assert typed == {name: home or "trtkit" for name, home in trtkit._HOMES.items()}


def test_verbs_are_functions_and_not_the_modules_they_live_in():
    for name in ("load", "export", "open", "calibrate", "evaluate", "benchmark", "compare"):
        assert inspect.isfunction(getattr(trtkit, name)), name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = trtkit.nonsense


def test_the_type_checker_sees_the_names_that_are_there():
    source = (ROOT / "trtkit" / "__init__.py").read_text()
    checked = set(re.findall(r"^    from \S+ import \w+ as (\w+)$", source, re.MULTILINE))
    assert checked == set(trtkit._HOMES)


def test_every_module_says_what_it_makes_public():
    for path in sorted((ROOT / "trtkit").rglob("*.py")):
        if (ROOT / "trtkit" / "deployment" / "files") in path.parents:
            continue  # programs that are copied, not modules
        says_something = len(ast.parse(path.read_text()).body) > 1
        if says_something and path.name != "__main__.py":
            assert "__all__ = [" in path.read_text(), path

"""The environment that the wheel is tried in: what it requires and nothing else."""

import importlib.metadata

import check_wheel
import pytest


def make_package(site, name, *requires, files=("__init__.py",)):
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        + "".join(f"Requires-Dist: {text}\n" for text in requires)
    )
    paths = [f"{name}/{file}" if "/" not in file else file for file in files]
    for path in paths:
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(name)
    (folder / "RECORD").write_text("".join(f"{path},,\n" for path in [*paths, f"{folder.name}/METADATA"]))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Installed packages: two that are required, one by the other, and one that is not."""
    folder = tmp_path / "here" / "lib" / "python3" / "site-packages"
    # Names that no real package has: the packages of the tests' own environment are seen too.
    shared = ("shared_folder/one.py", "../../../share/zz.json", "../../../bin/zz-one", "zz_one/bin/helper")
    make_package(folder, "zz_one", "zz_two>=1", "zz_old; python_version < '3'", files=shared)
    make_package(folder, "zz_two", "zz_drawing; extra == 'plot'", files=("shared_folder/two.py",))
    make_package(folder, "zz_other")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_requirements_are_those_of_the_chosen_extras_and_their_own(site):
    required = ["zz_one", "zz_other; extra == 'dev'", "zz_gpu; extra == 'rtx'"]
    assert set(check_wheel.list_requirements(required, ())) == {"zz-one", "zz-two"}
    assert set(check_wheel.list_requirements(required, ("dev",))) == {"zz-one", "zz-two", "zz-other"}


def test_a_requirement_that_is_missing_is_an_error(site):
    with pytest.raises(importlib.metadata.PackageNotFoundError, match="zz-drawing"):
        check_wheel.list_requirements(["zz_two[plot]"], ())
    with pytest.raises(importlib.metadata.PackageNotFoundError, match="zz-gpu"):
        check_wheel.list_requirements(["zz_gpu; extra == 'rtx'"], ("rtx",))


def test_files_are_linked_beside_each_other_and_commands_are_not(site, tmp_path):
    there = tmp_path / "there" / "lib" / "python3" / "site-packages"
    there.mkdir(parents=True)
    assert check_wheel.link_packages(check_wheel.list_requirements(["zz_one"], ()), there) == 6
    files = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    modules = {"shared_folder/one.py", "shared_folder/two.py", "zz_one/bin/helper"}
    assert files == {*modules, "zz_one-1.0.dist-info/METADATA", "zz_two-1.0.dist-info/METADATA"}
    assert (tmp_path / "there" / "share" / "zz.json").read_text() == "zz_one"
    assert not (tmp_path / "there" / "bin").exists()

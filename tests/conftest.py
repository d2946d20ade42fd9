"""What many tests stand on: the project's shared models and images, and the small set that comes with the package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from trtkit import demo

# How long an example takes says how busy the machine is, nothing about the code.
settings.register_profile("trtkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("trtkit")

ROOT = Path(__file__).resolve().parent.parent
EVAL_IMAGES = 40


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository (or TRTKIT_SHARED): models, scenes for all five tasks; read-only."""
    folder = Path(os.environ.get("TRTKIT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "scenes").is_dir():
        pytest.skip(f"the shared models and scenes are not at {folder.name}/ beside the repository")
    return folder


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The checkpoint that comes with the package."""
    return demo.model_path()


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data.yaml of the package's 64 training and first 40 evaluation images, for tests that take all there are."""
    return copy_few(tmp_path_factory.mktemp("demo") / "scenes")


@pytest.fixture(scope="session", autouse=True)
def stored_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Traces that all workers of this session share; a test of tracing itself puts `trace_store.trace_anew` back."""
    # Only where tests run: the process that hands them to workers needs no PyTorch.
    import trace_store

    from trtkit.graph import torch_export

    base = tmp_path_factory.getbasetemp()
    # A worker's folder is inside the session's.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traces"
    folder.mkdir(exist_ok=True)
    torch_export._trace = trace_store.stored_trace(folder)
    yield
    torch_export._trace = trace_store.trace_anew


@pytest.fixture
def demo_copy(tmp_path: Path) -> Path:
    """As `demo_data`, which a test may spoil."""
    return copy_few(tmp_path / "scenes")


def copy_few(folder: Path) -> Path:
    """Copy the package's data set for detect with the first 40 images of val; returns the data.yaml."""

    def find_rest(source: str, names: list[str]) -> list[str]:
        return sorted(names)[EVAL_IMAGES:] if Path(source).name == "val" else []

    shutil.copytree(demo.data_path().parent, folder, ignore=find_rest)
    return folder / demo.data_path().name

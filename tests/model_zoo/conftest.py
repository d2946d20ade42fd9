from __future__ import annotations

import pytest
from zoo_kit import Kit, make_kit


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Two tiny models and their data."""
    return make_kit(tmp_path_factory.mktemp("zoo-kit"))

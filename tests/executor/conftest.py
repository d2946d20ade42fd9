from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from distributed import Client


@pytest.fixture(scope="session")
def executor() -> Iterator[Client]:
    """Two worker processes."""
    pytest.importorskip("distributed")
    from dask_cluster import two_workers

    with two_workers() as client:
        yield client

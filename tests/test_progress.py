from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from trtkit.progress import available_cores, parallel_map


def test_results_are_in_the_order_of_the_items() -> None:
    def slow_when_even(item: int) -> int:
        time.sleep(0.02 if item % 2 == 0 else 0)
        return item * item

    assert list(parallel_map(slow_when_even, range(9), 3)) == [item * item for item in range(9)]
    assert available_cores() >= 1


def test_pending_results_are_limited() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = parallel_map(lambda item: item, items(), 2, max_pending=4)
    assert next(results) == 0
    assert len(taken) == 5
    results.close()  # type: ignore[attr-defined]
    assert len(taken) == 5


def test_an_error_is_raised_and_ends_the_threads() -> None:
    before = threading.active_count()

    def fail(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    results = parallel_map(fail, range(10), 2)
    with pytest.raises(ValueError, match="three"):
        list(results)
    assert threading.active_count() == before

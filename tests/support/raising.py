"""`pytest.raises` for trtkit's errors: by type, code and fields, so that messages can be reworded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from trtkit.errors import TrtkitError


@contextlib.contextmanager
def raises(kind: type[TrtkitError], code: str, **fields: Any) -> Iterator[pytest.ExceptionInfo[Any]]:
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code
    assert {name: caught.value.fields[name] for name in fields} == fields

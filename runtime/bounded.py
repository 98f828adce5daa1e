"""A cache in memory that keeps within a number of bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")  # what has `nbytes`, such as an array


class BoundedCache(Generic[Value]):
    """Values by key, up to `max_bytes`; the least recently used leave first, the newest never. Safe between threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: dict[Hashable, Any] = {}  # the newest last
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value kept for a key, or what `make` makes; two threads may both make it."""
        with self._lock:
            if key in self._values:
                value: Value = self._values.pop(key)
                self._values[key] = value
                return value
        value = make()
        with self._lock:
            self._values[key] = value
            while self.bytes > self._max_bytes and len(self._values) > 1:
                del self._values[next(iter(self._values))]
        return value

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return sum(value.nbytes for value in list(self._values.values()))

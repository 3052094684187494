"""Arrays that are computed once and shared: one per key, freed when nobody holds them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from weakref import WeakValueDictionary

from lowrank_core._typing import Array

# Every constant that is alive, whoever holds it. Two holders that ask for the same key share one array.
_alive: WeakValueDictionary[Hashable, Array] = WeakValueDictionary()
# Threads that step different matrices ask for the same basis. One constant may be built from another.
_lock = threading.RLock()


class Constants:
    """A holder of shared constants.

    Parameters
    ----------
    keep
        Number of constants held; the one used longest ago is let go first. ``None`` holds all of them
        for as long as this object lives.
    """

    def __init__(self, keep: int | None = None) -> None:
        self._keep = keep
        self._held: OrderedDict[Hashable, Array] = OrderedDict()

    def get(self, key: Hashable, build: Callable[[], Array]) -> Array:
        """Return the constant of ``key``, built by ``build()`` if no holder has it."""
        with _lock:
            value = self._held.get(key)
            if value is None:
                value = _alive.get(key)
                if value is None:
                    value = _alive[key] = build()
                self._held[key] = value
                if self._keep is not None and len(self._held) > self._keep:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
            return value

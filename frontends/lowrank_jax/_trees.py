"""What a tree of parameters shows of each of its leaves: its layer, and where a scan has stacked layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from lowrank_jax._rules import Leaf, is_table, is_vector, names_of, shortest, surplus_axes

# Flax holds a parameter as the value of an object.
_BOXED = ("value", "raw_value")
# Equinox's layers by the kind of their weight.
_LAYERS = {
    "Linear": "linear",
    "Embedding": "table",
    "LayerNorm": "norm",
    "RMSNorm": "norm",
    "GroupNorm": "norm",
    "BatchNorm": "norm",
    "Conv": "convolution",
    "ConvTranspose": "convolution",
    "GRUCell": "cell",
    "LSTMCell": "cell",
}
# A table of fewer rows is of positions or segments more often than a vocabulary.
_LEAST_VOCABULARY = 1000


def path_of(keys: Sequence[Any]) -> str:
    """Return the names of a leaf's path joined by ``/``, without what a box around the leaf adds to them."""
    if keys and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name in _BOXED:
        keys = keys[:-1]
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def leaves_with_place(tree: Any) -> list[tuple[str, Any, Leaf]]:
    """Return path, leaf and what is known of its place for every leaf of ``tree``, in their order."""
    found = []
    for keys, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_layer)[0]:
        for below, leaf in jax.tree_util.tree_flatten_with_path(node)[0]:
            place = Leaf(tuple(leaf.shape), leaf.dtype, *_layer_of(node))
            found.append(((*keys, *below), leaf, place))
    paths = [path_of(keys) for keys, *_ in found]
    places = dict(zip(paths, (place for *_, place in found), strict=True))
    named = {path: names_of(path) for path in places}
    vocabularies = frozenset(
        place.shape[0]
        for path, place in places.items()
        if place.ndim == 2 and place.shape[0] >= _LEAST_VOCABULARY and is_table(named[path], place)
    )
    scanned = dict(_scans([(names, path, places[path]) for path, names in named.items()], 0))
    return [
        (path, leaf, place._replace(scanned=scanned.get(path), vocabularies=vocabularies))
        for path, (_, leaf, place) in zip(paths, found, strict=True)
    ]


def _scans(rows: list[tuple[list[str], str, Leaf]], depth: int) -> Iterator[tuple[str, int]]:
    """Yield the path of every leaf that a scan has stacked, and along which axis.

    A scan gives each leaf of a module one axis more, of one length and at one place: the first in Flax, the second in
    MaxText. Nothing in a tree says so, hence it is so where all leaves below a node have such an axis and at least one
    of them cannot be what it is without. Equinox's layers say themselves how many axes they have.
    """
    axis = None if any(place.layer for *_, place in rows) else _stacked(rows)
    if axis is not None:
        yield from ((path, axis) for _, path, _ in rows)
        return
    if len(rows) < 2:
        return
    below: dict[str, list[tuple[list[str], str, Leaf]]] = {}
    for row in rows:
        if len(row[0]) > depth:
            below.setdefault(row[0][depth], []).append(row)
    for part in below.values():
        yield from _scans(part, depth + 1)


def _stacked(rows: list[tuple[list[str], str, Leaf]]) -> int | None:
    """Return the axis along which all of ``rows`` are stacked, ``None`` where they are not."""
    shapes = [place.shape for *_, place in rows]
    if min(map(len, shapes), default=0) < 2:
        return None
    if not any(surplus_axes(names, place) for names, _, place in rows):
        return None
    # Kernels have two axes without a scan; few leaves of a layer are vectors under names that nobody knows.
    flat = [row for row in rows if row[2].ndim == 2 and not is_vector(row[0], row[2])]
    if any(names[-1] in ("kernel", "w") for names, *_ in flat) or 4 * len(flat) > len(rows):
        return None
    shared = [axis for axis in (0, 1) if len({shape[axis] for shape in shapes}) == 1]
    return shortest(shapes[0], shared) if shared else None


def _is_layer(node: Any) -> bool:
    return bool(_layer_of(node)[0])


def _layer_of(node: Any) -> tuple[str, int]:
    """Return the kind of an Equinox layer and how many axes its weight has; Equinox is not imported for that."""
    for cls in type(node).__mro__:
        if cls.__module__.startswith("equinox.nn.") and cls.__name__ in _LAYERS:
            kind = _LAYERS[cls.__name__]
            if kind != "convolution":
                return kind, 2
            if node.groups > 1:
                kind = "convolution in groups"
            return kind, node.num_spatial_dims + 2
    return "", 2

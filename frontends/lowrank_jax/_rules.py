"""Which axes of a parameter make a matrix by its name, its module and its shape: one set of rules for all libraries.

Names of biases, gains, tables, heads and routers are those of `lowrank_core.roles`, as in PyTorch. What is written here
is what modules of PyTorch tell by their types and places and a tree of arrays does not.

In this order, the first that fits:

1. **vector** - the leaf has the name of a bias or a gain (``scale``, ``A_log``, ...) or one of `VECTORS`, or it is the
   gain of a norm, however many axes a scan has put before it: Adam.
2. **table** - an Equinox ``Embedding``, or a leaf with the name of a table (``embedding``, ``tok``, ...), or a kernel
   whose module's name ends in one: Adam.
3. **head** - the module has the name of a head; one of `HEADS_BY_PLACE` (``out``, ``fc``, ...) where it stands in no
   layer, for inside of one those are names of hidden layers; or it is the last part of such a module
   (``classifier/out_proj``); or, outside of all layers, it has the size of a vocabulary: Adam.
4. **router** - the module has the name of a router, such as ``gate``, and experts beside it or few outputs: Adam.
5. **kernel** - ``(inputs, outputs)``, or ``(outputs, inputs)`` where its name begins with ``weight``, as in Equinox and
   PyTorch. Attention's kernels of three axes and the kernels of convolutions are flattened to one matrix. What other
   axes there are stack matrices: layers under a scan, experts.
6. **size** - a matrix whose smaller side is below ``min_size``: Adam, for there is nothing to save.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from lowrank_core._checks import check_integer, check_kind
from lowrank_core.roles import (
    is_bias_name,
    is_gain_name,
    is_head_name,
    is_router,
    is_table_name,
)
from lowrank_jax._geometry import MatrixAxes, resolve_axes

#: Leaves that hold a number for each feature, beside what is called as a bias or a gain: Flax's and Haiku's words.
VECTORS = {"b", "beta", "d", "offset"}
# Of modules, names of tables of positions by themselves alone: as the end of another they are projections of positions.
_POSITIONS = {"pos", "position", "positions"}
# What a parameter looked up and a layer with a kernel are called alike.
_ALSO_LAYERS = {"latent", "latents", "prefix", "probe", "prompt", "prompts", "queries"}
#: Output heads unless they stand in a layer: PyTorch tells these by their being last.
HEADS_BY_PLACE = {"fc", "out", "summary"}
#: What the last part of a head is called.
_LAST_OF_HEAD = {"dense_out", "fc", "head", "logits", "out", "out_proj", "output", "proj"}
#: Attention's projections: of three axes, (inputs, heads, size of a head).
_QUERIES = re.compile(r"(query|key|value|qkv|kv|q|k|v|wq|wk|wv|wqkv)(_proj|_kernel)?$")
#: The projection that comes after them: of three axes, (heads, size of a head, outputs).
_OUTPUTS = re.compile(r"(out|output|o|wo)(_proj|_kernel)?$")
_ATTENTION = re.compile(r".*(att(n|ention)|mha)")
_LAYER = re.compile(
    r"\d+$|h_?\d|.*(layer|block|att(n|ention)|mha|mlp|ffn|feed_?forward|expert|moe)"
)
# Kinds of kernels that are a small matrix for each channel or group.
_NO_MATRICES = {"depthwise convolution", "convolution in groups"}
_EXPERTS = re.compile(r".*(expert|moe)")
_NORM = re.compile(r".*norm|(ln|bn|gn)(_?\w{1,2})?$|(input|post)_?ln")


class Leaf(NamedTuple):
    """What rules see of a parameter: its shape and dtype, and what its place in the tree says of it."""

    shape: tuple[int, ...]
    dtype: Any
    #: Kind of the Equinox layer that it belongs to, ``""`` where it belongs to none.
    layer: str = ""
    #: Axes that the layer's parameter has itself, without those that ``filter_vmap`` has put before them.
    layer_axes: int = 2
    #: The axis along which a scan has stacked layers, as its neighbours show it; ``None`` where they show none.
    scanned: int | None = None
    #: Rows of the tree's vocabularies: a matrix outside of all layers that has as many is a head.
    vocabularies: frozenset[int] = frozenset()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of numbers."""
        return math.prod(self.shape)


class Decision(NamedTuple):
    """What the rules say of a leaf."""

    axes: MatrixAxes | None
    #: The rule that said so, in words.
    reason: str


def axes_by_name(path: str, leaf: Any = None, *, min_size: int = 32) -> MatrixAxes | None:
    """Return the axes of a parameter that is a hidden matrix, ``None`` for every other one: the default rule.

    It knows the parameters of Flax (Linen and NNX), Equinox, Haiku and MaxText, scanned and vmapped layers among them.
    ``None`` is for vectors, tables, output heads and routers, which are told by name and place, for a matrix whose
    smaller side is below ``min_size``, and for depthwise convolutions.

    Parameters
    ----------
    path
        Names from the root of the tree to the leaf, joined by ``/``, e.g. ``"layers/0/mlp/kernel"``.
    leaf
        The parameter, or anything with its shape. What a function given as ``matrix_axes`` gets knows its place in the
        tree too, which this rule makes use of: hand that on as it is.
    min_size
        A matrix with fewer rows or columns than this is ``None``. ``functools.partial(axes_by_name, min_size=8)`` is a
        rule with another bound.

    Raises
    ------
    TypeError
        If there is no ``leaf``: so `optax.inject_hyperparams` calls what it takes for a schedule.
    """
    if leaf is None:
        raise TypeError(
            "leaf must be given: matrix_axes is called with path and leaf, and is no schedule. With "
            "optax.inject_hyperparams, give static_args=lowrank_jax.static_options(lowrank_jax.dct_adamw), or of "
            f"whichever function it is; got {path!r} alone"
        )
    check_kind("path", path, str, "names joined by '/'")
    check_integer("min_size", min_size, low=0)
    return decide(path, leaf, min_size=min_size).axes


def decide(path: str, leaf: Any, *, min_size: int = 32) -> Decision:
    """Return what the rules say of a leaf, and why."""
    names, known = names_of(path), _known(leaf)
    if known.ndim - (known.scanned is not None) < 2 or is_vector(names, known):
        return Decision(None, "vector")
    if is_table(names, known):
        return Decision(None, "table")
    axes, kind = _kernel_axes(names, known)
    if kind in _NO_MATRICES:
        return Decision(None, kind)
    outputs, inputs = resolve_axes(axes, known.shape, path).matrix_shape(known.shape)[-2:]
    if _is_head(names, known, (outputs, inputs)):
        return Decision(None, "output head")
    module = split_module(names)[1]
    if is_router(module, outputs, inputs, near_experts=_of_experts(names)):
        return Decision(None, "router")
    smaller = min(outputs, inputs)
    if smaller < min_size:
        return Decision(None, f"smaller side {smaller} is below min_size={min_size}")
    return Decision(axes, kind)


def layout_of(path: str, leaf: Any) -> MatrixAxes | None:
    """Return along which axes a leaf lies, whoever steps it; ``None`` where it has fewer than two.

    Those of outputs and inputs of a kernel; of all else, as in PyTorch, the first and all the rest.
    """
    names, known = names_of(path), _known(leaf)
    if known.ndim < 2:
        return None
    if is_vector(names, known) or is_table(names, known):
        return MatrixAxes(0, tuple(range(1, known.ndim)))
    return _kernel_axes(names, known)[0]


def _known(leaf: Any) -> Leaf:
    return leaf if isinstance(leaf, Leaf) else Leaf(tuple(leaf.shape), leaf.dtype)


def split_module(names: list[str]) -> tuple[list[str], str]:
    """Return the names above a leaf's module, and the module's; a leaf named itself is a module of its own."""
    if len(names) > 1 and (names[-1] in ("kernel", "w") or names[-1].startswith("weight")):
        return names[:-2], names[-2]
    return names[:-1], names[-1]


def is_vector(names: list[str], leaf: Leaf) -> bool:
    """Return whether a leaf holds a number for each feature (of each layer)."""
    last = names[-1]
    if is_bias_name(last) or is_gain_name(last) or last in VECTORS or leaf.layer == "norm":
        return True
    return last in ("weight", "w") and not leaf.layer and bool(_NORM.match(split_module(names)[1]))


def is_table(names: list[str], leaf: Leaf) -> bool:
    """Return whether a leaf is a table of rows, one of which is looked up."""
    if leaf.layer:
        return leaf.layer == "table"
    if is_convolution(names, leaf):
        return False
    above, module = split_module(names)
    if module == names[-1]:
        # A leaf by itself: the parameter of a table, or of a module that is called as one.
        return is_table_name(module) or (bool(above) and _is_table_module(above[-1]))
    return _is_table_module(module)


def _is_table_module(name: str) -> bool:
    """Return whether a module is a table: the last word of its name says so, as in ``tok_emb``, not in ``embed_in``."""
    last = re.sub(r"_?\d+$", "", name).rpartition("_")[2]
    if not is_table_name(last) or last in _ALSO_LAYERS or "patch" in name:
        return False
    return last not in _POSITIONS or name in _POSITIONS or "embed" in name


def is_convolution(names: list[str], leaf: Leaf) -> bool:
    """Return whether a leaf is a convolution's kernel, embeddings of patches among them."""
    space = [length for axis, length in enumerate(leaf.shape) if axis != leaf.scanned]
    module = split_module(names)[1]
    if len(space) < 3 or module == names[-1]:
        return False
    if any("conv" in name or "patch" in name for name in names):
        return True
    # Of any other name, two dimensions of space are told by how short they are.
    einsum = _QUERIES.match(module) or module.endswith("einsum") or _of_experts(names)
    return len(space) == 4 and names[-1] == "kernel" and max(space[:2]) < 32 and not einsum


def surplus_axes(names: list[str], leaf: Leaf) -> int:
    """Return how many axes a leaf certainly has more than it would outside of a scan."""
    above, module = split_module(names)
    if is_vector(names, leaf):
        # The bias of attention's queries has two axes of its own, (heads, size of a head).
        heads = "bias" in names[-1] and above and _QUERIES.match(above[-1])
        own = 2 if heads else 1
    elif is_convolution(names, leaf):
        own = 4
    elif _QUERIES.match(module) or _comes_from_heads(above, module):
        own = 4 if "kv" in module else 3
    else:
        own = 3 if _of_experts(names) else 2
    return max(0, leaf.ndim - own)


def in_layer(names: list[str], leaf: Leaf) -> bool:
    """Return whether a leaf stands in one of the layers of a model rather than before or after them."""
    return leaf.scanned is not None or any(map(_LAYER.match, split_module(names)[0]))


def shortest(shape: tuple[int, ...], axes: list[int]) -> int:
    """Return which of the first two ``axes`` more likely stacks layers: there are fewer of them than features."""
    return min(axes[:2], key=lambda axis: (shape[axis], axis))


def names_of(path: str) -> list[str]:
    """Return a path's names in lower case with their words apart: ``LayerNorm_0`` is ``layer_norm_0``."""
    return [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() for name in path.split("/")]


def _kernel_axes(names: list[str], leaf: Leaf) -> tuple[MatrixAxes, str]:
    """Return the axes of what is a kernel by name, and what kind it is."""
    axes = list(range(leaf.ndim))
    if leaf.layer:
        own = axes[leaf.ndim - leaf.layer_axes :]
        return MatrixAxes(own[0], own[1] if len(own) == 2 else tuple(own[1:])), leaf.layer
    if leaf.scanned is not None:
        axes.remove(leaf.scanned)
    weight = names[-1].startswith("weight")
    if is_convolution(names, leaf):
        outputs, inputs = (axes[0], axes[1:]) if weight else (axes[-1], [axes[-2], *axes[:-2]])
        kind = "depthwise convolution" if leaf.shape[inputs[0]] == 1 else "convolution"
        return MatrixAxes(outputs, tuple(inputs)), kind
    if not weight and len(axes) > 2:
        found = _attention_axes(names, axes, leaf.shape)
        if found is not None:
            return found, "attention"
    if len(axes) > 2 and _of_experts(names):
        axes.pop(0)
    while len(axes) > 2:
        axes.remove(shortest(leaf.shape, axes))
    kind = "kernel" if leaf.ndim == 2 else "stack of kernels"
    return (MatrixAxes(axes[0], axes[1]) if weight else MatrixAxes(axes[1], axes[0])), kind


def _attention_axes(names: list[str], axes: list[int], shape: tuple[int, ...]) -> MatrixAxes | None:
    """Return the axes of a projection to or from heads, ``None`` for one that has no axis of heads."""
    axes = list(axes)
    above, module = split_module(names)
    if _QUERIES.match(module):
        # Queries, keys and values in one kernel, (inputs, 3, heads, size of a head), are a matrix each.
        base = 4 if "kv" in module and len(axes) > 3 else 3
        while len(axes) > base:
            axes.remove(shortest(shape, axes))
        return MatrixAxes(tuple(axes[-2:]), axes[0])
    if _comes_from_heads(above, module):
        while len(axes) > 3:
            axes.remove(shortest(shape, axes))
        return MatrixAxes(axes[2], (axes[0], axes[1]))
    return None


def _comes_from_heads(above: list[str], module: str) -> bool:
    # Flax calls it `out`, under whatever name the attention has; the other names are also of feed-forward layers.
    if module == "out":
        return True
    return bool(_OUTPUTS.match(module)) and any(map(_ATTENTION.match, above))


def _of_experts(names: list[str]) -> bool:
    return any(map(_EXPERTS.match, names)) and not any("shared" in name for name in names)


def _is_head(names: list[str], leaf: Leaf, sides: tuple[int, int]) -> bool:
    """Return whether a matrix with these numbers of outputs and inputs is an output head."""
    above, module = split_module(names)
    inside = in_layer(names, leaf)
    if is_head_name(module, in_block=inside):
        return True
    if inside:
        return False
    if module in HEADS_BY_PLACE:
        return True
    around = above[-1] if above else ""
    if is_head_name(around) and (module in _LAST_OF_HEAD or module.isdigit()):
        return True
    # Outside of all layers, a matrix with as many outputs as a vocabulary has words gives their logits.
    return sides[0] != sides[1] and any(side in leaf.vocabularies for side in sides)

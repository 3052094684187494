"""Roles of a model's parameters: hidden matrices, tables, vectors, each with the rule that told it.

The rules, in their order; the first that applies decides:

1. the caller's ``overrides``;
2. what the model marks: a parameter with ``_no_weight_decay``, or named by ``no_weight_decay()`` or
   ``no_weight_decay_keywords()``, is not decayed, and is no matrix unless it is a layer's weight;
3. the type of its module: embeddings are tables, norms vectors, depthwise convolutions tables;
4. place and name: output heads and routers are tables; biases, gains and dynamics vectors; positions and tokens tables;
5. size: a matrix whose smaller side is below ``min_size`` gets AdamW.

What is left, of two and more dimensions, is a hidden matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, get_args

from torch import Tensor, nn

from lowrank_core._checks import check_choice, check_integer, check_kind
from lowrank_core.roles import (
    is_bias_name,
    is_gain_name,
    is_router,
    is_table_name,
    name_words,
)
from lowrank_torch._heads import find_heads
from lowrank_torch._layouts import Layout, is_depthwise, layout_of, smaller_side
from lowrank_torch._option_types import Role
from lowrank_torch._places import CONVOLUTIONS, Owner, Survey, is_linear, plain_path, survey
from lowrank_torch._sharding import is_flat

ROLES = get_args(Role)
#: Smallest side of a hidden matrix by default: below it there is nothing to save.
MIN_SIZE = 32

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NO_VOCABULARY = frozenset({"pos", "position", "positions", "positional", "wpe", "type", "segment"})


class ParameterRole(NamedTuple):
    """The role of one parameter, a row of `parameter_roles`."""

    #: Its name in the model.
    name: str
    #: Its shape.
    shape: tuple[int, ...]
    #: ``"matrix"`` (a hidden matrix), ``"table"`` (an embedding, a head, a router) or ``"vector"``.
    role: str
    #: Leading dimensions that stack independent matrices.
    batch_dims: int
    #: What told the role.
    reason: str
    #: Whether its matrices are kept as (in, out).
    transposed: bool = False
    #: Rows of the parts of a fused projection.
    split_sizes: tuple[int, ...] | None = None
    #: How many matrices of equal height its rows are cut into (the groups of a convolution).
    num_heads: int | None = None
    #: Whether it is decayed.
    decay: bool = True
    #: ``"adamw"`` for a matrix too small to save anything; empty for all others, whose role says it.
    algorithm: str = ""


def parameter_roles(
    model: nn.Module,
    *,
    overrides: Mapping[str, Role] | None = None,
    min_size: int = MIN_SIZE,
) -> list[ParameterRole]:
    """Return the role of every trainable parameter of ``model``, in the model's order.

    Roles are told by these rules, the first that applies:

    1. ``overrides``.
    2. Marks of the model: ``_no_weight_decay`` on a parameter, ``no_weight_decay()`` and
       ``no_weight_decay_keywords()`` of a module. What they name is not decayed, and is a table unless it is the weight
       of a layer.
    3. Module type: embeddings, and what shares memory with one, are tables; the parameters of norms and the gains of
       weight norm are vectors; depthwise convolutions are tables.
    4. Place and name, through the wrappers of ``torch.compile``, activation checkpointing, FSDP, DDP, PEFT and
       parametrizations: output heads and routers of experts are tables; biases of any shape, dynamics of state spaces,
       time mixes and gains are vectors; positions, tokens, bias tables and codebooks are tables.
    5. Size: a matrix whose smaller side is below ``min_size`` gets AdamW.

    All else of two and more dimensions is a hidden matrix. A convolution's weight is flattened to
    ``out x (in * kh * kw)``, or a stack of as many matrices as it has groups; any other weight of more than two
    dimensions is a stack of matrices along its leading ones. Parameters of fewer dimensions are vectors.

    Parameters
    ----------
    model
        The model; parameters that do not require a gradient are left out.
    overrides
        Roles by parameter name or shell-style pattern (``"blocks.*.router.weight": "table"``), the name with or without
        what wrappers put into it; the first that matches wins over everything else.
    min_size
        The smallest side that a hidden matrix may have, at least 1.

    Raises
    ------
    NotImplementedError
        If the model is in pieces that are no matrices, as FSDP1 and DeepSpeed make.
    TypeError, ValueError
        If an override names a role there is not, or matches no parameter, or ``min_size`` is no integer above 0.

    Examples
    --------
    >>> import torch, lowrank_torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(100, 64), torch.nn.Linear(64, 64))
    >>> [(row.name, row.role) for row in lowrank_torch.parameter_roles(model)]
    [('0.weight', 'table'), ('1.weight', 'matrix'), ('1.bias', 'vector')]
    """
    check_kind("model", model, nn.Module, "a module")
    check_kind("overrides", overrides or {}, Mapping, "a mapping of roles by name")
    overrides = dict(overrides or {})
    for pattern, given in overrides.items():
        check_choice(f"overrides[{pattern!r}]", given, ROLES)
    check_integer("min_size", min_size, low=1)
    found = survey(model)
    rules = _Rules(found)
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    check_patterns("overrides", overrides, names.values())
    rows = []
    for parameter, name in names.items():
        if is_flat(parameter):
            raise NotImplementedError(
                f"roles need parameters in their own shapes, got a flat shard for {name}, as FSDP1 and DeepSpeed make; "
                "shard with torch.distributed.fsdp.fully_shard (FSDP2)"
            )
        marked = rules.is_marked(parameter, name)
        role, reason = rules.role(parameter, name, marked)
        matched = first_match(overrides, name)
        if matched is not None:
            role, reason = overrides[matched], f"override {matched!r}"
        layout, algorithm = Layout(), ""
        if role == "matrix" and parameter.ndim >= 2:
            layout = layout_of(parameter, found.owners.get(parameter, []))
            side = smaller_side(parameter.shape, layout)
            # Whoever overrides a role has seen the size.
            if side < min_size and matched is None:
                reason += f"; smaller side {side} is below min_size={min_size}"
                algorithm = "adamw"
        decay = role != "vector" and not marked
        shape = tuple(parameter.shape)
        row = ParameterRole(name, shape, role, layout.batch_dims, reason, *layout[1:], decay)
        rows.append(row._replace(algorithm=algorithm))
    return rows


def role_table(roles: Sequence[ParameterRole]) -> str:
    """Return roles as a table to read, a line for each parameter and one for each role at the end.

    Parameters
    ----------
    roles
        What `parameter_roles` returned.

    Examples
    --------
    >>> import torch, lowrank_torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64))
    >>> print(lowrank_torch.role_table(lowrank_torch.parameter_roles(model)))
    0.weight  64 x 64  matrix  weight of Linear
    0.bias    64       vector  1-dimensional
    1.weight  64       vector  1-dimensional
    1.bias    64       vector  1-dimensional
    <BLANKLINE>
    matrix: 1 parameter, 4,096 numbers
    vector: 3 parameters, 192 numbers
    """
    check_kind("roles", roles, Sequence, "what parameter_roles returns")
    for row in roles:
        check_kind("roles", row, ParameterRole, "what parameter_roles returns")
    cells = [
        (row.name, " x ".join(map(str, row.shape)) or "()", _kind(row), row.reason) for row in roles
    ]
    widths = [max((len(line[place]) for line in cells), default=0) for place in range(3)]
    lines = [
        "  ".join(
            (*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3])
        )
        for line in cells
    ]
    lines.append("")
    for role in ROLES:
        own = [torch_numel(row.shape) for row in roles if row.role == role]
        if own:
            plural = "" if len(own) == 1 else "s"
            lines.append(f"{role}: {len(own)} parameter{plural}, {sum(own):,} numbers")
    return "\n".join(lines)


def torch_numel(shape: Iterable[int]) -> int:
    """Return how many numbers a shape holds."""
    number = 1
    for side in shape:
        number *= side
    return number


def first_match(patterns: Iterable[str], name: str) -> str | None:
    """Return the first pattern that matches a name, with or without what wrappers put into it."""
    plain = ".".join(plain_path(name))
    return next((p for p in patterns if fnmatchcase(name, p) or fnmatchcase(plain, p)), None)


def check_patterns(argument: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise ``ValueError`` if a pattern matches no name."""
    names = list(names)
    unused = [p for p in patterns if all(first_match([p], name) is None for name in names)]
    if unused:
        raise ValueError(f"{argument} must match parameters of the model, got {sorted(unused)!r}")


def _kind(row: ParameterRole) -> str:
    """Return a role with what else is said of it."""
    said = [
        f"stack of {torch_numel(row.shape[: row.batch_dims])}" if row.batch_dims else "",
        "transposed" if row.transposed else "",
        f"split {list(row.split_sizes)}" if row.split_sizes else "",
        f"{row.num_heads} groups" if row.num_heads else "",
        row.algorithm,
        "" if row.decay or row.role == "vector" else "no decay",
    ]
    return ", ".join([row.role, *filter(None, said)])


class _Rules:
    """The rules by type, place and name, for the parameters of one model."""

    def __init__(self, found: Survey) -> None:
        self._found = found
        tables = [
            (path, module) for path, module in found.modules if isinstance(module, _EMBEDDINGS)
        ]
        self._memory = {_memory(table.weight) for _, table in tables}
        # As many positions as a layer is wide say nothing of that layer.
        vocabularies = {
            table.num_embeddings
            for path, table in tables
            if not (path and name_words(path[-1]) & _NO_VOCABULARY)
        }
        self._heads = find_heads(found, vocabularies)
        self._undecayed, self._keywords = _marks(found)

    def is_marked(self, parameter: Tensor, name: str) -> bool:
        """Return whether the model says that a parameter is not to be decayed."""
        if getattr(parameter, "_no_weight_decay", False):
            return True
        plain = ".".join(plain_path(name))
        return any(fnmatchcase(plain, pattern) for pattern in self._undecayed) or any(
            word in plain for word in self._keywords
        )

    def role(self, parameter: Tensor, name: str, marked: bool) -> tuple[str, str]:
        """Return the role of a parameter but for its size, and the reason."""
        if parameter.ndim < 2:
            return "vector", f"{parameter.ndim}-dimensional"
        owners = self._found.owners.get(parameter, [])
        own = self._by_type(parameter, owners)
        if own is None and parameter in self._heads:
            own = "table", self._heads[parameter]
        for owner in owners:
            own = own or self._by_place(parameter, owner)
        if own is not None:
            return own
        if marked and not any(_is_weight(owner) for owner in owners):
            return "table", "marked by the model as not decayed"
        kinds = [_type_name(owner.module) for owner in owners]
        return "matrix", " and ".join(f"weight of {kind}" for kind in kinds)

    def _by_type(self, parameter: Tensor, owners: Sequence[Owner]) -> tuple[str, str] | None:
        for owner in owners:
            if isinstance(owner.module, _EMBEDDINGS):
                return "table", f"weight of {_type_name(owner.module)}"
        if _memory(parameter) in self._memory:
            return "table", "shares memory with an embedding"
        for owner in owners:
            kind = _type_name(owner.module)
            if owner.part == "original0" and _is_thin(parameter):
                return "vector", f"gain of weight norm in {kind}"
            if "Norm" in kind and not _is_weight(owner):
                return "vector", f"parameter of {kind}"
            if "Loss" in kind:
                return "table", f"classes of {kind}"
            if is_depthwise(owner.module):
                return "table", "depthwise convolution, a matrix for each channel"
        return None

    def _by_place(self, parameter: Tensor, owner: Owner) -> tuple[str, str] | None:
        if self._is_router(parameter, owner):
            return "table", f"router by name ({'.'.join(owner.path) or owner.attribute})"
        if _is_weight(owner):
            return None
        name = owner.path[-1] if owner.attribute in _UNNAMED and owner.path else owner.attribute
        if owner.attribute.endswith("_const") and _is_thin(parameter):
            return "vector", "one dimension above 1"
        # Positions in a list of parameters, or in a module of nothing else, are named by what holds them.
        if is_table_name(name) or (_holds_positions(owner) and not is_bias_name(name)):
            return "table", f"looked up or added by place, by name ({name})"
        if is_bias_name(owner.attribute):
            return "vector", f"bias by name ({owner.attribute})"
        if is_gain_name(name):
            return "vector", f"elementwise gain by name ({name})"
        if _is_thin(parameter):
            return "vector", "one dimension above 1"
        return None

    def _is_router(self, parameter: Tensor, owner: Owner) -> bool:
        """Return whether a weight chooses experts: (experts, inputs)."""
        kind = type(owner.module).__name__
        if parameter.ndim != 2:
            return False
        if "Router" in kind:
            return True
        parent = self._found.parents.get(id(owner.module))
        beside = [] if parent is None else [name for name, _ in parent.named_children()]
        beside += (
            [] if parent is None else [name for name, _ in parent.named_parameters(recurse=False)]
        )
        experts = any("expert" in name for name in beside)
        return any(
            is_router(part, *parameter.shape, near_experts=experts) for part in owner.path[-2:]
        )


# What says nothing of a parameter that the module's own name does not say better.
_UNNAMED = ("weight", "data", "value", "param")
_POSITIONS = ("pos_embed", "pos_emb", "position_embeddings", "positional_embedding")


def _is_weight(owner: Owner) -> bool:
    """Return whether a parameter is the weight of a layer of PyTorch's, or Transformers' `Conv1D`."""
    known = (*CONVOLUTIONS, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
    if not (is_linear(owner.module) or isinstance(owner.module, known)):
        return False
    return owner.attribute.startswith("weight") or owner.attribute.endswith("_weight")


def _holds_positions(owner: Owner) -> bool:
    """Return whether a module is a table of positions made of plain parameters, without layers of its own."""
    held = any(part in _POSITIONS for part in owner.path[-2:])
    return held and not any(True for _ in owner.module.children())


def _is_thin(parameter: Tensor) -> bool:
    """Return whether at most one dimension is above 1."""
    return sum(side > 1 for side in parameter.shape) <= 1


def _memory(parameter: Tensor) -> tuple[Any, int]:
    """Return where a parameter's numbers lie; unlike a data pointer, tensors without data have this too."""
    return parameter.untyped_storage()._cdata, int(parameter.storage_offset())


def _type_name(module: nn.Module) -> str:
    """Return the name of a module's type; of a parametrized one, of the type it had before."""
    kind = type(module)
    if hasattr(module, "parametrizations") and kind.__name__.startswith("Parametrized"):
        kind = kind.__mro__[1]
    return kind.__name__


def _marks(found: Survey) -> tuple[set[str], set[str]]:
    """Return the names, and the parts of names, of what the model does not want decayed."""
    names: set[str] = set()
    keywords: set[str] = set()
    for path, module in found.modules:
        for method, kept in (("no_weight_decay", names), ("no_weight_decay_keywords", keywords)):
            function = getattr(module, method, None)
            if not callable(function):
                continue
            given = function()
            if method == "no_weight_decay":
                kept.update(".".join((*path, name)) for name in given)
            else:
                kept.update(given)
    return names, keywords

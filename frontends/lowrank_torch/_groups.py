"""Splitting a model's parameters by their role: hidden matrices, tables, vectors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowrank_core._checks import check_choice
from lowrank_core.roles import HEADS
from lowrank_torch._sharding import is_flat

ROLES = ("matrix", "table", "vector")

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_VOCABULARY = 8192


class ParameterRole(NamedTuple):
    """The role of one parameter, a row of `parameter_roles`."""

    #: Its name in the model.
    name: str
    #: Its shape.
    shape: tuple[int, ...]
    #: ``"matrix"`` (a hidden matrix), ``"table"`` (an embedding or an output head) or ``"vector"``.
    role: str
    #: Leading dimensions that stack independent matrices.
    batch_dims: int
    #: What told the role.
    reason: str


def parameter_roles(
    model: nn.Module, *, overrides: Mapping[str, str] | None = None
) -> list[ParameterRole]:
    """Return the role of every trainable parameter of ``model``, in the model's order.

    Embeddings, and whatever shares their memory, are tables; so is a linear layer whose module is named as a head,
    and the last linear layer if its outputs are as many as an embedding's rows. Other parameters of two and more
    dimensions are hidden matrices: a convolution's weight is flattened to ``out x (in * kh * kw)``, any other
    weight of more than two dimensions is a stack of matrices along its leading ones. Parameters of fewer
    dimensions are vectors.

    Parameters
    ----------
    model
        The model.
    overrides
        Roles by parameter name or shell-style pattern (``"blocks.*.router.weight": "table"``); the first that
        matches wins over everything else.

    Raises
    ------
    NotImplementedError
        If the model is in pieces that are no matrices, as FSDP1 and DeepSpeed make.
    ValueError
        If an override names a role there is not, or matches no parameter.
    """
    overrides = dict(overrides or {})
    for pattern, role in overrides.items():
        check_choice(f"overrides[{pattern!r}]", role, ROLES)
    names: dict[nn.Parameter, str] = {
        parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    owners: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {parameter: [] for parameter in names}
    for module_name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if parameter in owners:
                owners[parameter].append((module_name, module))
    tables = [m for m in model.modules() if isinstance(m, _EMBEDDINGS)]
    vocabularies = {table.num_embeddings for table in tables}
    # Size alone tells nothing of the others: a byte-level model may be 256 wide throughout.
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    last = linear[-1] if linear and linear[-1].out_features in vocabularies else None
    memory = {_memory(table.weight) for table in tables}

    unused = set(overrides)
    roles = []
    for parameter, name in names.items():
        if is_flat(parameter):
            raise NotImplementedError(
                f"roles need parameters in their own shapes, got a flat shard for {name}, as FSDP1 and DeepSpeed make; "
                "shard with torch.distributed.fsdp.fully_shard (FSDP2)"
            )
        shape = tuple(parameter.shape)
        matched = [pattern for pattern in overrides if fnmatchcase(name, pattern)]
        unused.difference_update(matched)
        role, reason = _role(parameter, owners[parameter], last, memory)
        if matched:
            role, reason = overrides[matched[0]], f"override {matched[0]!r}"
        convolution = any(isinstance(module, _CONVOLUTIONS) for _, module in owners[parameter])
        batch_dims = max(0, parameter.ndim - 2) if role == "matrix" and not convolution else 0
        roles.append(ParameterRole(name, shape, role, batch_dims, reason))
    if unused:
        raise ValueError(f"overrides must match parameters of the model, got {sorted(unused)!r}")
    return roles


def matrix_groups(
    model: nn.Module,
    *,
    overrides: Mapping[str, str] | None = None,
    matrix: Mapping[str, Any] | None = None,
    other: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return parameter groups of ``model`` by role, for the optimizers of this package.

    Hidden matrices come first, one group for each number of stacking dimensions; then tables, with
    ``algorithm="adamw"``; then vectors, with ``algorithm="adamw"`` and no weight decay. Roles are those of
    `parameter_roles`, which also says why.

    Parameters
    ----------
    model
        The model; parameters that do not require a gradient are left out.
    overrides
        As in `parameter_roles`.
    matrix
        Options for the groups of hidden matrices (``rank``, ``lr``, ...).
    other
        Options for the other groups, over their own defaults.

    Returns
    -------
    list of dict
        Groups of named parameters; empty ones are left out.

    Warns
    -----
    UserWarning
        If a hidden matrix looks like a vocabulary's table by its shape.

    Examples
    --------
    >>> import torch, lowrank_torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(100, 8), torch.nn.Linear(8, 16))
    >>> [len(group["params"]) for group in lowrank_torch.matrix_groups(model)]
    [1, 1, 1]
    """
    roles = parameter_roles(model, overrides=overrides)
    parameters = dict(model.named_parameters())
    groups: list[dict[str, Any]] = []
    for batch_dims in sorted({row.batch_dims for row in roles if row.role == "matrix"}):
        rows = [row for row in roles if row.role == "matrix" and row.batch_dims == batch_dims]
        for row in rows:
            _warn_of_vocabulary(row)
        groups.append(_group(rows, parameters, {"batch_dims": batch_dims, **(matrix or {})}))
    adamw: dict[str, Any] = {"algorithm": "adamw"}
    for role, own in (("table", adamw), ("vector", {**adamw, "weight_decay": 0.0})):
        rows = [row for row in roles if row.role == role]
        if rows:
            groups.append(_group(rows, parameters, {**own, **(other or {})}))
    return groups


def _memory(parameter: Tensor) -> tuple[Any, int]:
    """Return where a parameter's numbers lie; unlike a data pointer, tensors without data have this too."""
    return parameter.untyped_storage()._cdata, int(parameter.storage_offset())


def _group(
    rows: list[ParameterRole], parameters: Mapping[str, nn.Parameter], options: Mapping[str, Any]
) -> dict[str, Any]:
    return {"params": [(row.name, parameters[row.name]) for row in rows], **options}


def _role(
    parameter: nn.Parameter,
    owners: list[tuple[str, nn.Module]],
    last: nn.Linear | None,
    memory: set[tuple[Any, int]],
) -> tuple[str, str]:
    if parameter.ndim < 2:
        return "vector", f"{parameter.ndim}-dimensional"
    for _, module in owners:
        if isinstance(module, _EMBEDDINGS):
            return "table", f"weight of {type(module).__name__}"
    if _memory(parameter) in memory:
        return "table", "shares memory with an embedding"
    for name, module in owners:
        if isinstance(module, nn.Linear):
            if name.rpartition(".")[2] in HEADS:
                return "table", f"output head by name ({name})"
            if module is last:
                return (
                    "table",
                    f"last layer, {module.out_features} outputs like an embedding's rows",
                )
    return "matrix", " and ".join(f"weight of {type(module).__name__}" for _, module in owners)


def _warn_of_vocabulary(row: ParameterRole) -> None:
    shape = row.shape[row.batch_dims :]
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    if max(rows, columns) >= max(_VOCABULARY, 8 * min(rows, columns)):
        warnings.warn(
            f"{row.name} of shape {row.shape} looks like a vocabulary's table but is treated as a hidden matrix "
            f"({row.reason}); overrides={{{row.name!r}: 'table'}} gives it full AdamW",
            stacklevel=3,
        )

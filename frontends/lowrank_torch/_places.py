"""Where the parameters of a model are: paths without wrappers, the modules that own them, repeated blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lowrank_core.roles import is_head_name

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
BACKWARD_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# What `torch.compile`, activation checkpointing, FSDP, PEFT and vmapped models put between a name and its module.
_WRAPPERS = frozenset(
    {
        "_orig_mod",
        "_checkpoint_wrapped_module",
        "_fsdp_wrapped_module",
        "base_layer",
        "_flax_module",
    }
)
# PEFT keeps its copy of a module under these and the adapter's name.
_COPIES = frozenset({"modules_to_save"})
# Lists of blocks, where one block alone does not tell that blocks repeat.
_BLOCKS = re.compile(r"^(blocks?|layers?|layer\d+|stages?|h|encoder|decoder|resblocks|groups?)\d*$")


class Owner(NamedTuple):
    """A module that has a parameter, and where."""

    #: The module; of a parametrized weight, the module whose weight it is.
    module: nn.Module
    #: The names on the way to the module, without those of wrappers.
    path: tuple[str, ...]
    #: What the module calls the parameter: ``"weight"``, for a parametrized one too.
    attribute: str
    #: Which part of a parametrized weight it is (``"original1"``), else empty.
    part: str
    #: Whether the module is inside a repeated block.
    in_block: bool


class Layer(NamedTuple):
    """A linear layer or a convolution, seen from its model."""

    module: nn.Module
    path: tuple[str, ...]
    in_block: bool
    outputs: int
    inputs: int


class Survey(NamedTuple):
    """What `survey` finds in a model."""

    #: The owners of each parameter, in the model's order.
    owners: dict[Tensor, list[Owner]]
    #: Its linear layers and convolutions, in order.
    layers: list[Layer]
    #: Every module with its path without wrappers, in order.
    modules: list[tuple[tuple[str, ...], nn.Module]]
    #: The module above each, by identity.
    parents: dict[int, nn.Module]


def plain_path(name: str) -> tuple[str, ...]:
    """Return the components of a name without those that wrappers put in.

    Examples
    --------
    >>> plain_path("base_model.model.classifier.modules_to_save.default.weight")
    ('classifier', 'weight')
    >>> plain_path("_orig_mod.lm_head._checkpoint_wrapped_module.weight")
    ('lm_head', 'weight')
    """
    components = [part for part in name.split(".") if part and part not in _WRAPPERS]
    if components[:2] == ["base_model", "model"]:
        components = components[2:]
    if components[:1] == ["module"]:
        components = components[1:]
    path: list[str] = []
    rest = iter(components)
    for part in rest:
        if part in _COPIES:
            next(rest, None)
        else:
            path.append(part)
    return tuple(path)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, Transformers' `Conv1D` with its weight (in, out) among them."""
    return isinstance(module, nn.Linear) or is_transposed_linear(module)


def is_transposed_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer whose weight is (in, out)."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__) and hasattr(module, "nf")


def survey(model: nn.Module) -> Survey:
    """Return the owners of all parameters of ``model``, its layers and their places."""
    owners: dict[Tensor, list[Owner]] = {}
    layers: list[Layer] = []
    modules: list[tuple[tuple[str, ...], nn.Module]] = []
    parents: dict[int, nn.Module] = {}
    named = dict(model.named_modules(remove_duplicate=False))
    blocks = _block_names(model)
    seen: set[int] = set()
    for name, module in named.items():
        if "parametrizations" in name.split("."):
            # Owned by the module whose weight is parametrized, below.
            continue
        path, in_block = plain_path(name), _is_in(name, blocks)
        parents.setdefault(id(module), named.get(name.rpartition(".")[0], model))
        if id(module) not in seen:
            seen.add(id(module))
            modules.append((path, module))
            layers += _layer(module, path, in_block)
        for parameter, attribute, part in _parameters(module):
            owner = Owner(module, path, attribute, part, in_block)
            owners.setdefault(parameter, []).append(owner)
    return Survey(owners, layers, modules, parents)


def _parameters(module: nn.Module) -> Iterator[tuple[Tensor, str, str]]:
    """Yield a module's own parameters, those of its parametrizations among them."""
    for attribute, parameter in module.named_parameters(recurse=False):
        # The older `weight_norm` and `spectral_norm` keep a weight's parts beside it.
        base, _, part = attribute.rpartition("_")
        parts = {"g": "original0", "v": "original1", "orig": "original"}
        if part in parts and base and hasattr(module, base):
            yield parameter, base, parts[part]
        else:
            yield parameter, attribute, ""
    parametrizations: Any = getattr(module, "parametrizations", None)
    if isinstance(parametrizations, nn.ModuleDict):
        for attribute, parametrized in parametrizations.items():
            for name, parameter in parametrized.named_parameters():
                yield parameter, attribute, name


def _layer(module: nn.Module, path: tuple[str, ...], in_block: bool) -> list[Layer]:
    if is_transposed_linear(module):
        rows, columns = module.nf, getattr(module, "nx", 0)
        return [Layer(module, path, in_block, int(rows), int(columns))]  # type: ignore[arg-type]
    if isinstance(module, nn.Linear):
        return [Layer(module, path, in_block, module.out_features, module.in_features)]
    if isinstance(module, CONVOLUTIONS):
        return [Layer(module, path, in_block, module.out_channels, module.in_channels)]
    return []


def _block_names(model: nn.Module) -> set[str]:
    """Return the names of modules that are repeated blocks: numbered children, alike, with modules of their own."""
    found = set()
    for name, module in model.named_modules():
        children: Mapping[str, nn.Module] = dict(module.named_children())
        own = plain_path(name)[-1:]
        if not children or not all(key.isdigit() for key in children):
            continue
        if own and is_head_name(own[0]):
            continue  # a list of heads, or a head of several layers
        composite = {
            key: type(_unwrapped(child))
            for key, child in children.items()
            if any(True for _ in _unwrapped(child).children())
        }
        kinds = list(composite.values())
        for key, kind in composite.items():
            listed = isinstance(module, nn.ModuleList) or (own and _BLOCKS.match(own[0]))
            if listed or kinds.count(kind) > 1:
                found.add(f"{name}.{key}" if name else key)
    return found


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside of wrappers."""
    while True:
        inner = [child for name, child in module.named_children() if name in _WRAPPERS]
        if len(inner) != 1:
            return module
        module = inner[0]


def _is_in(name: str, blocks: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:end]) in blocks for end in range(1, len(parts) + 1))

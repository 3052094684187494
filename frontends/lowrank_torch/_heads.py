"""Which parameters are output heads: declared by the model, told by name, by the number of outputs, by place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from lowrank_core.roles import LAST_LAYERS, is_head_name
from lowrank_torch._places import CONVOLUTIONS, Layer, Survey, is_linear

# What configurations and models call their numbers of outputs.
_OUTPUTS = (
    *("num_labels", "num_classes", "vocab_size", "n_classes", "nb_classes"),
    *("prediction_length", "num_targets", "codebook_size", "audio_vocab_size"),
)
_SIDE_OF_PATCHES = ("patch_size", "encoder_stride")


def find_heads(found: Survey, vocabularies: set[int]) -> dict[Tensor, str]:
    """Return the weights that are output heads, each with the reason.

    Parameters
    ----------
    found
        The model, by `survey`.
    vocabularies
        Rows of its embeddings: a last layer with as many outputs is a head.
    """
    numbers, patches = _numbers(found)
    heads: dict[Tensor, str] = {}
    for layer, reason in (
        *_declared(found),
        *_named(found, numbers),
        *_counted(found, numbers),
        *_last(found, vocabularies | numbers | patches),
    ):
        for parameter in _weights(layer):
            heads.setdefault(parameter, reason)
    return heads


def _weights(layer: nn.Module) -> Iterator[Tensor]:
    """Yield a layer's own weights, of a parametrized one its parts, and of PEFT's pairs nothing."""
    for name, parameter in layer.named_parameters():
        if parameter.ndim > 1 and "lora_" not in name:
            yield parameter


def _declared(found: Survey) -> Iterator[tuple[nn.Module, str]]:
    """Yield what models return as their heads: Transformers' and timm's have methods for it."""
    for path, module in found.modules:
        for method in ("get_output_embeddings", "get_classifier"):
            function = getattr(module, method, None)
            if not callable(function):
                continue
            try:
                head = function()
            except (AttributeError, NotImplementedError, TypeError):
                continue  # models inherit the method whether they have a head or not
            for one in head if isinstance(head, (tuple, list)) else [head]:
                layers = [m for m in one.modules() if is_layer(m)] if is_module(one) else []
                if layers:
                    where = ".".join(path) or "the model"
                    yield layers[-1], f"output head by {method}() of {where}"


def _named(found: Survey, numbers: set[int]) -> Iterator[tuple[nn.Module, str]]:
    """Yield heads by name: layers called as one, and the last layer of a module called as one."""
    modules = dict(found.modules)
    containers: dict[tuple[str, ...], list[Layer]] = {}
    for layer in found.layers:
        if layer.path and is_head_name(layer.path[-1], in_block=layer.in_block):
            yield layer.module, f"output head by name ({'.'.join(layer.path)})"
            continue
        if not layer.in_block:
            container = _container(layer.path, modules)
            if container:
                containers.setdefault(container, []).append(layer)
    for container, layers in containers.items():
        nested = any(
            layer.path[: len(container)] == container
            and any(is_head_name(part) for part in layer.path[len(container) :])
            for layer in found.layers
        )
        module = modules.get(container)
        if nested or module is None or _has_attention(module):
            continue
        counted = [layer for layer in layers if layer.outputs in numbers]
        if counted:
            last = counted[-1]
        elif numbers or layers[-1].outputs == layers[-1].inputs:
            # Where the numbers of outputs are known, another last layer is a transform before a tied table; a
            # square one is hidden too.
            continue
        else:
            last = layers[-1]
        yield last.module, f"last layer of an output head by name ({'.'.join(container)})"


def _container(
    path: tuple[str, ...], modules: dict[tuple[str, ...], nn.Module]
) -> tuple[str, ...] | None:
    """Return the path of the innermost module called as a head that a layer is in; an entry of a list of heads."""
    for end in range(len(path) - 1, 0, -1):
        if is_head_name(path[end - 1]):
            listed = isinstance(modules.get(path[:end]), nn.ModuleList)
            return path[: end + 1] if listed else path[:end]
    return None


def _counted(found: Survey, numbers: set[int]) -> Iterator[tuple[nn.Module, str]]:
    """Yield layers outside of blocks with as many outputs as there are labels, classes or words."""
    for layer in found.layers:
        if layer.in_block or layer.outputs not in numbers or layer.outputs == layer.inputs:
            continue
        if is_linear(layer.module) or _is_pointwise(layer.module):
            yield layer.module, f"{layer.outputs} outputs, a number of labels or words of the model"


def _last(found: Survey, numbers: set[int]) -> Iterator[tuple[nn.Module, str]]:
    """Yield the last layer if it has one of the ``numbers`` of outputs, or a name that says nothing else."""
    layers = [one for one in found.layers if is_linear(one.module) or _is_pointwise(one.module)]
    if not layers or (not layers[-1].path and len(found.layers) == 1):
        return
    last = layers[-1]
    modules = dict(found.modules)
    around = [type(modules.get(last.path[:end])).__name__ for end in range(1, len(last.path))]
    if any("pool" in kind.lower() for kind in around):
        return  # pooling by attention ends a network that has no head
    if last.outputs in numbers and not last.in_block:
        yield last.module, f"last layer, {last.outputs} outputs like an embedding's rows"
    elif (
        not last.in_block
        and len(found.layers) > 1
        and last.path[-1].lower() in LAST_LAYERS
        and last.outputs != last.inputs
    ):
        yield last.module, f"last layer by name ({'.'.join(last.path)})"


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is a linear layer or a convolution."""
    return is_linear(module) or isinstance(module, CONVOLUTIONS)


def is_module(value: object) -> bool:
    """Return whether ``value`` is a module."""
    return isinstance(value, nn.Module)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and all(size == 1 for size in module.kernel_size)


def _has_attention(module: nn.Module) -> bool:
    """Return whether a module called as a head is a network of its own, such as a pooling by attention."""
    return any(
        isinstance(one, nn.MultiheadAttention) or "attention" in type(one).__name__.lower()
        for one in module.modules()
    )


def _numbers(found: Survey) -> tuple[set[int], set[int]]:
    """Return the numbers of outputs that the model and its configurations tell, and those of whole patches."""
    numbers: set[int] = set()
    patches: set[int] = set()
    for _, module in found.modules:
        if isinstance(module, nn.Embedding):
            continue
        for source in _sources(module):
            numbers.update(_integers(source, _OUTPUTS))
            channels = next(iter(_integers(source, ("num_channels", "in_chans"))), 3)
            patches.update(side * side * channels for side in _integers(source, _SIDE_OF_PATCHES))
    return numbers, patches


def _sources(module: nn.Module) -> Iterator[Any]:
    yield module
    config = getattr(module, "config", None)
    if config is not None and not isinstance(config, dict):
        yield config


def _integers(source: Any, names: Iterable[str]) -> Iterator[int]:
    for name in names:
        value = getattr(source, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield value

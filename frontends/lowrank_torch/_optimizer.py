"""What both optimizers share: groups and their checks, state, the step over all parameters, loading."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowrank_core import LowRankUpdate, ops_for_namespace, state_bytes
from lowrank_core._checks import check_choice, check_number
from lowrank_core.constants import Constants
from lowrank_core.layout import resolve_axis, resolve_rank
from lowrank_core.ops import Ops
from lowrank_torch._adamw import adamw_step
from lowrank_torch._apply import Dither, apply_update
from lowrank_torch._loading import check_loadable, check_shapes, parameter_name
from lowrank_torch._matrices import (
    SHAPE_OPTIONS,
    as_matrices,
    check_shape_options,
    matrix_shapes,
    matrix_views,
)
from lowrank_torch._treatment import Treatment

#: Keys of a group that are no options: what PyTorch and its schedulers keep there.
_BOOKKEEPING = {"params", "param_names", "name", "initial_lr"}


class LowRankOptimizer(Optimizer):
    """An optimizer that steps hidden matrices by a rule of the core and everything else by AdamW.

    Subclasses name the rule: its configuration, its state and its two functions.
    """

    algorithm: ClassVar[str]
    _config_type: ClassVar[type[Any]]
    _state_type: ClassVar[type[Any]]
    _init: ClassVar[Callable[..., Any]]
    #: Whether the rule draws random numbers, and so wants to know which parameter it is at.
    _draws: ClassVar[bool] = False
    _step: ClassVar[Callable[..., tuple[LowRankUpdate, Any]]]

    def __init__(self, params: Any, options: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Check ``options`` (fields of the configuration) and ``own`` (of the frontend), and add the groups."""
        fields = {field.name: field for field in dataclasses.fields(self._config_type)}
        defaults = {name: field.default for name, field in fields.items()}
        defaults |= {"algorithm": self.algorithm, **SHAPE_OPTIONS}
        defaults |= {"maximize": False, "stochastic_rounding": False, **own}
        _check_known(options, defaults, type(self).__name__)
        self._ops = _operations()
        super().__init__(params, defaults | dict(options))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled optimizer; what it computes with is made anew."""
        super().__setstate__(state)
        self._ops = _operations()

    # -- groups --------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking every option of it, and that its parameters can be stepped with them."""
        if isinstance(param_group, dict):
            _check_known(param_group, self.defaults, "a parameter group", extra=_BOOKKEEPING)
            self.check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            self._check_parameters(self.param_groups[-1], len(self.param_groups) - 1)
        except (NotImplementedError, ValueError):
            self.param_groups.pop()
            raise

    def _check_parameters(self, group: Mapping[str, Any], place: int) -> None:
        """Raise unless every parameter of a group can be stepped as its options say."""
        config = self.check_options(group)
        for index, parameter in enumerate(group["params"]):
            if self._treat(parameter, group, config)[0]:
                continue
            if _is_sharded(parameter):
                raise NotImplementedError(
                    f"low-rank steps need parameters that are whole, got a DTensor for "
                    f'{parameter_name(group, place, index)}; algorithm="adamw" in its group gives it full AdamW'
                )
            for shape in matrix_shapes(parameter.shape, group):
                self._fitted(config, shape).layout(shape)

    def check_options(self, group: Mapping[str, Any]) -> Any:
        """Return the core's configuration of a group, every option checked."""
        check_choice("algorithm", group["algorithm"], (self.algorithm, "adamw"))
        check_choice("maximize", group["maximize"], (False, True))
        _check_rate(group["lr"])
        check_number("weight_decay", group["weight_decay"], low=0)
        check_choice("stochastic_rounding", group["stochastic_rounding"], (False, True))
        check_shape_options(group)
        names = (field.name for field in dataclasses.fields(self._config_type))
        return self._config_type(**{name: group[name] for name in names})

    def _reason_for_adamw(self, shape: tuple[int, ...], config: Any) -> str:
        """Return why matrices of ``shape`` in a low-rank group get AdamW, or nothing where they do not."""
        size = shape[resolve_axis(shape, config.side)]
        rank = resolve_rank(config.rank, size)
        return f"rank {rank} is not below the transformed size {size}" if rank >= size else ""

    def _fitted(self, config: Any, shape: tuple[int, ...]) -> Any:
        """Return the configuration for matrices of ``shape``, whose rank is at most the transformed size."""
        size = shape[resolve_axis(shape, config.side)]
        if resolve_rank(config.rank, size) <= size:
            return config
        return dataclasses.replace(config, rank=size)

    def _treat(self, parameter: Tensor, group: Mapping[str, Any], config: Any) -> tuple[bool, str]:
        """Return whether a parameter gets AdamW, and why where its group says otherwise."""
        if group["algorithm"] == "adamw":
            return True, ""
        single = parameter.ndim - group["batch_dims"]
        if single < 2:
            return True, f"{max(0, single)}-dimensional, not a matrix"
        shapes = matrix_shapes(parameter.shape, group)
        reasons = [self._reason_for_adamw(shape, config) for shape in shapes]
        return all(reasons), reasons[0]

    def summary(self) -> list[Treatment]:
        """Return how every parameter is stepped, in the order of the groups."""
        return [
            self._treatment(parameter, group, parameter_name(group, place, index))
            for place, group in enumerate(self.param_groups)
            for index, parameter in enumerate(group["params"])
        ]

    def _treatment(self, parameter: Tensor, group: Mapping[str, Any], name: str) -> Treatment:
        config, shape = self.check_options(group), tuple(parameter.shape)
        full, reason = self._treat(parameter, group, config)
        dtype = "float64" if parameter.dtype == torch.float64 else "float32"
        if full:
            size = 2 * parameter.numel() * (8 if dtype == "float64" else 4)
            return Treatment(name, shape, "adamw", None, None, size, reason)
        shapes = matrix_shapes(shape, group)
        fitted = [self._fitted(config, block) for block in shapes]
        size = sum(map(partial(state_bytes, dtype=dtype), shapes, fitted))
        layout = fitted[0].layout(shapes[0])
        return Treatment(name, shape, self.algorithm, layout.rank, layout.axis, size, "")

    # -- stepping ------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step on every parameter that has a gradient; gradients are read, never written.

        Parameters
        ----------
        closure
            Evaluates the model again and returns the loss, as in every PyTorch optimizer.

        Returns
        -------
        Any
            What ``closure`` returned, or ``None``.

        Raises
        ------
        TypeError, ValueError
            For a sparse or complex gradient, an option that has become invalid or a state that no longer fits
            the options; nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        configs = [self.check_options(group) for group in self.param_groups]
        for place, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                name = parameter_name(group, place, index)
                _check_gradient(parameter.grad, name)
                state = self.state.get(parameter)
                if state:
                    wanted = self.state_shapes(parameter, group)
                    check_shapes("the optimizer's state", state, wanted, name)
        first = 0
        for group, config in zip(self.param_groups, configs, strict=True):
            self._step_group(group, config, first)
            first += len(group["params"])
        return loss

    def _step_group(self, group: dict[str, Any], config: Any, first: int) -> None:
        """Step the parameters of a group, the ``first`` of which has that number among all of them."""
        rest, streams = [], []
        for stream, parameter in enumerate(group["params"], start=first):
            if parameter.grad is None:
                continue
            if self._treat(parameter, group, config)[0]:
                rest.append(parameter)
                streams.append(stream)
            else:
                self._step_matrices(parameter, group, config, stream)
        if rest:
            adamw_step(rest, [self.state[p] for p in rest], group, streams, self._ops)

    def _step_matrices(
        self, parameter: Tensor, group: dict[str, Any], config: Any, stream: int
    ) -> None:
        """Step the matrices of one parameter."""
        gradient: Any = parameter.grad
        gradients = matrix_views(as_matrices(gradient, group["batch_dims"]).contiguous(), group)
        # A parameter whose memory is not laid out as matrices (a channels-last convolution) is stepped as a copy.
        whole = as_matrices(parameter, group["batch_dims"])
        state, rate, decay = self.state[parameter], group["lr"], group["weight_decay"]
        if group["maximize"]:
            # Every rule is odd in the gradient, so going up is going down with the sign turned.
            rate, decay = -rate, -decay
        only_state = not state and _is_no_step(gradient, rate)
        after: dict[str, Any] = {}
        for block, (target, part) in enumerate(
            zip(matrix_views(whole, group), gradients, strict=True)
        ):
            fitted = self._fitted(config, tuple(part.shape))
            before = self._state_of(state, part, fitted, block, gradients, stream)
            kept = before
            if not only_state:
                update, kept = type(self)._step(part, before, fitted, ops=self._ops)
                dither = (
                    Dither(stream, kept.step, block << 24) if group["stochastic_rounding"] else None
                )
                apply_update(target, update, rate=rate, decay=decay, dither=dither, ops=self._ops)
            after["step"] = kept.step
            for name, value in kept._asdict().items():
                if value is not None and name != "step":
                    after[_key(name, block, gradients)] = value
        if whole is not parameter:
            # Costs nothing where the matrices are a view: PyTorch copies no tensor onto itself.
            parameter.copy_(whole.view(parameter.shape))
        state.update(after)

    def _state_of(
        self,
        state: Mapping[str, Any],
        part: Tensor,
        config: Any,
        block: int,
        blocks: Sequence[object],
        stream: int,
    ) -> Any:
        """Return the core's state of one block of matrices, made anew before the first step."""
        if not state:
            place = {"stream": (stream << 8) + block} if self._draws else {}
            return type(self)._init(
                tuple(part.shape), config, xp=torch, dtype=part.dtype, device=part.device, **place
            )
        names = self._state_type._fields
        own = {name: state.get(_key(name, block, blocks)) for name in names if name != "step"}
        return self._state_type(step=state["step"], **own)

    # -- loading -------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict after checking that it fits; every tensor keeps the dtype it was saved in.

        Raises
        ------
        ValueError
            If it has other groups, or an option or a shape of state that differs; nothing has changed then.
        """
        loaded: dict[str, Any] = {}

        def check(_: Optimizer, given: dict[str, Any]) -> None:
            check_loadable(self, given)
            loaded.update(given)

        def keep_dtypes(_: Optimizer) -> None:
            # PyTorch casts state to the parameter's dtype, which would make floats of indices and halve the
            # precision of moments.
            saved_ids = [id_ for group in loaded["param_groups"] for id_ in group["params"]]
            own = [parameter for group in self.param_groups for parameter in group["params"]]
            for id_, parameter in zip(saved_ids, own, strict=True):
                for name, value in loaded["state"].get(id_, {}).items():
                    if isinstance(value, Tensor):
                        device = value.device if name == "step" else parameter.device
                        self.state[parameter][name] = value.to(device, copy=True)

        # Last among the hooks before and first among those after, so that the user's own see and make whole
        # state dicts.
        handles = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(keep_dtypes, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def structural_options(self) -> Iterable[str]:
        """Return the options that a state is made for, as opposed to numbers that may change in a run."""
        own = ("algorithm", *SHAPE_OPTIONS)
        numbers = {"betas", "eps", "momentum", "method"}
        names = (field.name for field in dataclasses.fields(self._config_type))
        return (*own, *(name for name in names if name not in numbers))

    def state_shapes(
        self, parameter: Tensor, group: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        """Return the shape of every entry of a parameter's state."""
        config = self.check_options(group)
        shapes: dict[str, tuple[int, ...]] = {"step": ()}
        if self._treat(parameter, group, config)[0]:
            return shapes | dict.fromkeys(("exp_avg", "exp_avg_sq"), tuple(parameter.shape))
        blocks = matrix_shapes(parameter.shape, group)
        for block, shape in enumerate(blocks):
            spec = self._fitted(config, shape).state_spec(shape)
            shapes |= {_key(name, block, blocks): spec[name].shape for name in spec}
        return shapes


def _operations() -> Ops:
    """Return PyTorch's operations with constants of their own, freed with the optimizer."""
    return ops_for_namespace(torch).holding(Constants())


def _check_known(
    given: Iterable[str], known: Iterable[str], where: str, extra: Iterable[str] = ()
) -> None:
    allowed = set(known)
    for option in given:
        if option not in allowed and option not in set(extra):
            listed = ", ".join(sorted(allowed))
            raise TypeError(f"options of {where} must be among {listed}; got {option!r}")


def _key(name: str, block: int, blocks: Sequence[object]) -> str:
    """Return the name of an entry of state, numbered where a parameter has several blocks of matrices."""
    return name if len(blocks) == 1 else f"{name}.{block}"


def _check_rate(rate: float | Tensor) -> None:
    check_number("lr", rate, low=0)
    if isinstance(rate, Tensor):
        if rate.numel() != 1:
            raise ValueError(f"lr must be one number, got a tensor of shape {tuple(rate.shape)}")
        # Reading a device's number would wait for the device, and a traced or fake one has none.
        if type(rate) is Tensor and rate.device.type == "cpu" and not torch.compiler.is_compiling():
            check_number("lr", rate.item(), low=0)


def _is_no_step(gradient: Tensor, rate: float | Tensor) -> bool:
    """Return whether neither rate nor gradient is other than zero.

    `torch.distributed.checkpoint` does such a step to have state. Counted, it would choose the columns to keep until
    the next refresh by a gradient of zero.
    """
    readable = type(gradient) is Tensor and gradient.device.type != "meta"
    if torch.compiler.is_compiling() or not readable:
        return False
    if isinstance(rate, Tensor) and (type(rate) is not Tensor or rate.device.type != "cpu"):
        return False
    return bool(rate == 0) and not bool(gradient.any())


def _is_sharded(parameter: Tensor) -> bool:
    # Whoever has a DTensor has imported its module; importing it for everybody takes long.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(parameter, module.DTensor)


def _check_gradient(gradient: Tensor, name: str) -> None:
    if gradient.layout != torch.strided:
        raise TypeError(f"the gradient of {name} must be dense, got layout {gradient.layout}")
    if not gradient.is_floating_point():
        raise TypeError(
            f"the gradient of {name} must be of a real floating-point dtype, got {gradient.dtype}"
        )

"""What both optimizers share: groups and their checks, state, the step over all parameters, loading."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowrank_core import LowRankUpdate, ops_for_namespace, state_bytes
from lowrank_core._checks import check_choice, check_integer, check_number
from lowrank_core.constants import Constants
from lowrank_core.layout import resolve_axis, resolve_rank
from lowrank_core.ops import Ops
from lowrank_torch._adamw import adamw_step
from lowrank_torch._apply import apply_update, as_matrices

#: Keys of a group that are no options: what PyTorch and its schedulers keep there.
_BOOKKEEPING = {"params", "param_names", "name", "initial_lr"}


class Treatment(NamedTuple):
    """How one parameter is stepped, a row of :meth:`LowRankOptimizer.summary`."""

    #: The parameter's name, or its place among the groups.
    name: str
    #: Its shape.
    shape: tuple[int, ...]
    #: ``"dct_adamw"``, ``"trion"`` or ``"adamw"``.
    algorithm: str
    #: Basis vectors kept; ``None`` for ``"adamw"``.
    rank: int | None
    #: The transformed axis of the parameter as a matrix, -1 or -2; ``None`` for ``"adamw"``.
    axis: int | None
    #: Bytes of its optimizer state.
    state_bytes: int
    #: Why, where a parameter of a low-rank group gets ``"adamw"``; empty otherwise.
    reason: str


class LowRankOptimizer(Optimizer):
    """An optimizer that steps hidden matrices by a rule of the core and everything else by AdamW.

    Subclasses name the rule: its configuration, its state and its two functions.
    """

    algorithm: ClassVar[str]
    _config_type: ClassVar[type[Any]]
    _state_type: ClassVar[type[Any]]
    _init: ClassVar[Callable[..., Any]]
    _step: ClassVar[Callable[..., tuple[LowRankUpdate, Any]]]

    def __init__(self, params: Any, options: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Check ``options`` (fields of the configuration) and ``own`` (of the frontend), and add the groups."""
        fields = {field.name: field for field in dataclasses.fields(self._config_type)}
        defaults = {name: field.default for name, field in fields.items()}
        defaults |= {"algorithm": self.algorithm, "batch_dims": 0, "maximize": False, **own}
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
            self._config({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            self._check_parameters(self.param_groups[-1], len(self.param_groups) - 1)
        except (NotImplementedError, ValueError):
            self.param_groups.pop()
            raise

    def _check_parameters(self, group: Mapping[str, Any], place: int) -> None:
        """Raise unless every parameter of a group can be stepped as its options say."""
        config = self._config(group)
        for index, parameter in enumerate(group["params"]):
            if self._treat(parameter, group, config)[0]:
                continue
            if _is_sharded(parameter):
                raise NotImplementedError(
                    f"low-rank steps need parameters that are whole, got a DTensor for "
                    f'{_name(group, place, index)}; algorithm="adamw" in its group gives it full AdamW'
                )
            config.layout(matrix_shape(parameter, group["batch_dims"]))

    def _config(self, group: Mapping[str, Any]) -> Any:
        """Return the core's configuration of a group, every option checked."""
        check_choice("algorithm", group["algorithm"], (self.algorithm, "adamw"))
        check_choice("maximize", group["maximize"], (False, True))
        _check_rate(group["lr"])
        check_number("weight_decay", group["weight_decay"], low=0)
        check_integer("batch_dims", group["batch_dims"], low=0)
        names = (field.name for field in dataclasses.fields(self._config_type))
        return self._config_type(**{name: group[name] for name in names})

    def _reason_for_adamw(self, shape: tuple[int, ...], config: Any) -> str:
        """Return why a parameter of a low-rank group gets AdamW, or nothing where it does not."""
        if len(shape) < 2:
            return f"{len(shape)}-dimensional, not a matrix"
        size = shape[resolve_axis(shape, config.side)]
        rank = resolve_rank(config.rank, size)
        return f"rank {rank} is not below the transformed size {size}" if rank >= size else ""

    def _treat(self, parameter: Tensor, group: Mapping[str, Any], config: Any) -> tuple[bool, str]:
        """Return whether a parameter gets AdamW, and why where its group says otherwise."""
        if group["algorithm"] == "adamw":
            return True, ""
        if parameter.ndim - group["batch_dims"] < 2:
            reason = self._reason_for_adamw(tuple(parameter.shape[group["batch_dims"] :]), config)
        else:
            shape = matrix_shape(parameter, group["batch_dims"])
            reason = self._reason_for_adamw(shape[group["batch_dims"] :], config)
        return bool(reason), reason

    def summary(self) -> list[Treatment]:
        """Return how every parameter is stepped, in the order of the groups."""
        rows = []
        for place, group in enumerate(self.param_groups):
            config = self._config(group)
            for index, parameter in enumerate(group["params"]):
                full, reason = self._treat(parameter, group, config)
                name = _name(group, place, index)
                shape = tuple(parameter.shape)
                dtype = "float64" if parameter.dtype == torch.float64 else "float32"
                if full:
                    size = 2 * parameter.numel() * (8 if dtype == "float64" else 4)
                    rows.append(Treatment(name, shape, "adamw", None, None, size, reason))
                else:
                    layout = config.layout(matrix_shape(parameter, group["batch_dims"]))
                    size = state_bytes(layout.shape, config, dtype=dtype)
                    rows.append(
                        Treatment(name, shape, self.algorithm, layout.rank, layout.axis, size, "")
                    )
        return rows

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
        configs = [self._config(group) for group in self.param_groups]
        for place, (group, config) in enumerate(zip(self.param_groups, configs, strict=True)):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                name = _name(group, place, index)
                _check_gradient(parameter.grad, name)
                state = self.state.get(parameter)
                if state:
                    self._check_shapes(
                        "the optimizer's state", parameter, state, group, config, name
                    )
        for group, config in zip(self.param_groups, configs, strict=True):
            self._step_group(group, config)
        return loss

    def _step_group(self, group: dict[str, Any], config: Any) -> None:
        rest = []
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if self._treat(parameter, group, config)[0]:
                rest.append(parameter)
            else:
                self._step_matrix(parameter, group, config)
        if rest:
            adamw_step(rest, [self.state[parameter] for parameter in rest], group)

    def _step_matrix(self, parameter: Tensor, group: dict[str, Any], config: Any) -> None:
        gradient = as_matrices(parameter.grad, group["batch_dims"])  # type: ignore[arg-type]
        state = self.state[parameter]
        before = (
            self._state_type(**state)
            if state
            else type(self)._init(
                tuple(gradient.shape),
                config,
                xp=torch,
                dtype=gradient.dtype,
                device=gradient.device,
            )
        )
        update, after = type(self)._step(gradient, before, config, ops=self._ops)
        rate = group["lr"]
        apply_update(
            parameter,
            update,
            # Every rule is odd in the gradient, so going up is going down with the sign turned.
            rate=-rate if group["maximize"] else rate,
            decay=-group["weight_decay"] if group["maximize"] else group["weight_decay"],
            batch_dims=group["batch_dims"],
            ops=self._ops,
        )
        state.update((name, value) for name, value in after._asdict().items() if value is not None)

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
            self._check_loadable(given)
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

    def _check_loadable(self, state_dict: Mapping[str, Any]) -> None:
        saved_groups = state_dict["param_groups"]
        if len(saved_groups) != len(self.param_groups):
            raise ValueError(
                f"state_dict must have {len(self.param_groups)} parameter groups, got {len(saved_groups)}"
            )
        for place, (group, saved) in enumerate(zip(self.param_groups, saved_groups, strict=True)):
            if len(saved["params"]) != len(group["params"]):
                raise ValueError(
                    f"state_dict must have {len(group['params'])} parameters in group {place}, "
                    f"got {len(saved['params'])}"
                )
            # PyTorch adds an option of its own to the defaults of a copied optimizer.
            for option in self.defaults:
                if option not in saved and option != "differentiable":
                    raise ValueError(
                        f"state_dict must have every option of group {place}, got none for {option!r}"
                    )
            for option in self._structural_options():
                if saved.get(option) != group[option]:
                    raise ValueError(
                        f"state_dict must have been made with {option}={group[option]!r} in group {place}, "
                        f"got {saved.get(option)!r}"
                    )
            config = self._config({**group, **saved, "params": group["params"]})
            for index, (parameter, id_) in enumerate(
                zip(group["params"], saved["params"], strict=True)
            ):
                state = state_dict["state"].get(id_)
                if state:
                    name = _name(group, place, index)
                    self._check_shapes("state_dict", parameter, state, group, config, name)

    def _structural_options(self) -> Iterable[str]:
        """Return the options that a state is made for, as opposed to numbers that may change in a run."""
        own = ("algorithm", "batch_dims")
        numbers = {"betas", "eps", "momentum", "method"}
        names = (field.name for field in dataclasses.fields(self._config_type))
        return (*own, *(name for name in names if name not in numbers))

    def _check_shapes(
        self,
        what: str,
        parameter: Tensor,
        state: Mapping[str, Any],
        group: Mapping[str, Any],
        config: Any,
        name: str,
    ) -> None:
        wanted: dict[str, tuple[int, ...]]
        if self._treat(parameter, group, config)[0]:
            wanted = dict.fromkeys(("exp_avg", "exp_avg_sq"), tuple(parameter.shape)) | {"step": ()}
        else:
            spec = config.state_spec(matrix_shape(parameter, group["batch_dims"]))
            wanted = {key: array.shape for key, array in spec.items()} | {"step": ()}
        found = {
            key: tuple(value.shape) if isinstance(value, Tensor) else ()
            for key, value in state.items()
        }
        for key in sorted(wanted.keys() | found.keys()):
            if wanted.get(key) != found.get(key):
                raise ValueError(
                    f"{what} must fit the model and its options: {key} of {name} is of shape "
                    f"{wanted.get(key, 'absent')} by these, got {found.get(key, 'absent')}"
                )


def matrix_shape(parameter: Tensor, batch_dims: int) -> tuple[int, ...]:
    """Return the shape of ``parameter`` as a stack of matrices (see `as_matrices`)."""
    shape = tuple(parameter.shape)
    rest = 1
    for length in shape[batch_dims + 1 :]:
        rest *= length
    return (*shape[: batch_dims + 1], rest)


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


def _name(group: Mapping[str, Any], place: int, index: int) -> str:
    if "param_names" in group:
        return str(group["param_names"][index])
    return f"parameter {index} of group {place}"


def _check_rate(rate: float | Tensor) -> None:
    check_number("lr", rate, low=0)
    if isinstance(rate, Tensor):
        if rate.numel() != 1:
            raise ValueError(f"lr must be one number, got a tensor of shape {tuple(rate.shape)}")
        # Reading a device's number would wait for the device, and a traced or fake one has none.
        if type(rate) is Tensor and rate.device.type == "cpu" and not torch.compiler.is_compiling():
            check_number("lr", rate.item(), low=0)


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

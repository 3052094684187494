"""What both optimizers share: groups and their checks, state, the step over all parameters, loading."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Container, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowrank_core import ops_for_namespace, state_bytes
from lowrank_core._checks import check_choice, check_known, check_number
from lowrank_core.constants import Constants
from lowrank_core.portable import Names
from lowrank_torch._adamw import adamw_step, make_adamw_state, place_adamw_state
from lowrank_torch._exchange import Exchange, Traffic
from lowrank_torch._for_model import for_model
from lowrank_torch._group_keys import check_group_keys, warn_of_unnamed
from lowrank_torch._input import check_gradient, check_not_flat, check_rate, is_no_rate
from lowrank_torch._jobs import Job, run_here
from lowrank_torch._loading import as_saved, check_shapes, check_whole, parameter_name
from lowrank_torch._matrices import SHAPE_OPTIONS, check_shape_options
from lowrank_torch._plan import Member, Plan, plan_for
from lowrank_torch._portable import load_state, save_state
from lowrank_torch._sharding import Spread, is_sharded, slab_of
from lowrank_torch._slabs import gather_rows
from lowrank_torch._stacks import (
    Rule,
    held_bytes,
    is_small,
    make_state,
    place_state,
    project_blocks,
    stacks_of,
    step_stack,
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
    _rule: ClassVar[Rule]
    #: Whether a step holds its largest temporary to the end, so that keeping its memory for the next raises no peak.
    _reuses_memory: ClassVar[bool] = False
    #: Whether the rule also takes matrices with no more basis vectors than its rank.
    _whole_ranks: ClassVar[bool] = False
    #: Bytes of copies and coefficients that sharded steps may hold while they wait for a collective. With more, what is
    #: waiting is sent, and is on its way while further steps begin.
    window_bytes: int = 2**29

    def __init__(
        self,
        params: Any,
        options: Mapping[str, Any],
        own: Mapping[str, Any],
        process_group: Any = None,
    ) -> None:
        """Check ``options`` (fields of the configuration) and ``own`` (of the frontend), and add the groups."""
        fields = dataclasses.fields(self._config_type)
        defaults = {field.name: field.default for field in fields}
        defaults |= {"algorithm": self.algorithm, **SHAPE_OPTIONS}
        defaults |= dict.fromkeys(("maximize", "stochastic_rounding"), False)
        defaults |= {"foreach": True, **own}
        check_known(type(self).__name__, options, defaults)
        self._process_group = process_group
        self._forget()
        super().__init__(params, defaults | dict(options))
        warn_of_unnamed(self.param_groups)

    @classmethod
    def for_model(cls, model: nn.Module, **settings: Any) -> Self:
        """Return an optimizer for ``model``, its parameters grouped by role; log who gets what in one line.

        Parameters
        ----------
        model
            The model.
        **settings
            Arguments of `matrix_groups` (``overrides``, ``options``, ``matrix``, ``other``, ``min_size``) and of the
            optimizer (``lr``, ``rank``, ...).

        Raises
        ------
        NotImplementedError, TypeError, ValueError
            As `matrix_groups` and the optimizer's constructor.
        """
        return for_model(cls, model, **settings)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled optimizer; what it computes with is made anew."""
        super().__setstate__(state)
        # Loading a state dict comes here too and leaves the group; it belongs to a process and goes into no copy.
        self._process_group = self.__dict__.get("_process_group")
        self._forget()

    def _forget(self) -> None:
        """Drop what is made from groups and state, to be made anew when it is needed."""
        # Constants of its own, so that they are freed with the optimizer.
        self._ops = ops_for_namespace(torch).holding(Constants(), reuse=self._reuses_memory)
        self._plans: dict[Tensor, tuple[Any, Plan]] = {}
        self._projected: dict[Tensor, list[Tensor]] = {}
        self._slabs: dict[str, Spread | None] = {}
        self._exchange = Exchange(self.window_bytes)

    # -- groups --------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking every option of it, and that its parameters can be stepped with them."""
        if isinstance(param_group, dict):
            check_group_keys(param_group.keys() - _BOOKKEEPING, self.defaults)
            self.check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            self._check_parameters(self.param_groups[-1])
        except (NotImplementedError, ValueError):
            self.param_groups.pop()
            raise

    def _check_parameters(self, group: Mapping[str, Any]) -> None:
        """Raise unless every parameter of a group can be stepped as its options say."""
        config = self.check_options(group)
        for parameter in group["params"]:
            plan = self._plan(parameter, group, config)
            for block, shape in enumerate(plan.blocks):
                plan.fitted(config, block).layout(shape)
            if group["algorithm"] != "adamw":
                check_not_flat(parameter, partial(self._name_of, parameter))

    def check_options(self, group: Mapping[str, Any]) -> Any:
        """Return the core's configuration of a group, every option checked."""
        check_choice("algorithm", group["algorithm"], (self.algorithm, "adamw"))
        check_choice("maximize", group["maximize"], (False, True))
        check_rate(group["lr"])
        check_number("weight_decay", group["weight_decay"], low=0)
        check_choice("stochastic_rounding", group["stochastic_rounding"], (False, True))
        check_choice("foreach", group["foreach"], (False, True))
        check_shape_options(group)
        return self._config_type(**{name: group[name] for name in self._config_names})

    def _plan(self, parameter: Tensor, group: Mapping[str, Any], config: Any) -> Plan:
        """Return how a parameter is stepped, the state it has being checked when that changes.

        Raises
        ------
        ValueError
            If the parameter's state does not fit.
        """
        structure = tuple(group[option] for option in self.structural_options)
        known = self._plans.get(parameter)
        if known is not None and known[0] == structure:
            return known[1]
        slab = self._slab(parameter)
        try:
            plan = plan_for(parameter, group, config, whole_ranks=self._whole_ranks, slab=slab)
        except (NotImplementedError, ValueError) as error:
            if slab is None and not is_sharded(parameter):
                raise
            raise type(error)(f"{self._name_of(parameter)}: {error}") from error
        state = self.state.get(parameter)
        if state:
            wanted = plan.state_shapes(parameter.shape, config)
            check_shapes("the optimizer's state", state, wanted, self._name_of(parameter))
            if plan.spread is None and not is_sharded(parameter):
                check_whole(state, self._name_of(parameter))
            self._plans[parameter] = structure, plan
        return plan

    def _slab(self, parameter: Tensor) -> Spread | None:
        """Return how a parameter that every rank has is shared out."""
        if self._process_group is None or parameter.ndim < 2 or is_sharded(parameter):
            return None
        kind = parameter.device.type
        if kind not in self._slabs:
            from torch.distributed.device_mesh import DeviceMesh

            self._slabs[kind] = slab_of(DeviceMesh.from_group(self._process_group, kind))
        return self._slabs[kind]

    def _name_of(self, parameter: Tensor) -> str:
        """Return a parameter's name, or its place."""
        return next(
            parameter_name(group, place, index)
            for place, group in enumerate(self.param_groups)
            for index, other in enumerate(group["params"])
            if other is parameter
        )

    def summary(self) -> list[Treatment]:
        """Return how every parameter is stepped, in the order of the groups."""
        return [
            self._treatment(parameter, group, parameter_name(group, place, index))
            for place, group in enumerate(self.param_groups)
            for index, parameter in enumerate(group["params"])
        ]

    def _treatment(self, parameter: Tensor, group: Mapping[str, Any], name: str) -> Treatment:
        config, shape = self.check_options(group), tuple(parameter.shape)
        plan = self._plan(parameter, group, config)
        dtype = "float64" if parameter.dtype == torch.float64 else "float32"
        if plan.full:
            size = 2 * parameter.numel() * (8 if dtype == "float64" else 4)
            return Treatment(name, shape, "adamw", None, None, size, plan.reason)
        fitted = [plan.fitted(config, block) for block in range(len(plan.blocks))]
        size = sum(map(partial(state_bytes, dtype=dtype), plan.blocks, fitted))
        layout = fitted[0].layout(plan.blocks[0])
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
        self.step_only(None)
        self._projected.clear()
        return loss

    @torch.no_grad()
    def step_only(self, chosen: Container[Tensor] | None) -> None:
        """Step the ``chosen`` parameters, or all, that have a gradient: what `step` does without its hooks."""
        configs = [self.check_options(group) for group in self.param_groups]
        stepped = []
        first = 0
        for group, config in zip(self.param_groups, configs, strict=True):
            stepped.append(self._members(group, config, first, chosen))
            first += len(group["params"])
        jobs: list[Job] = []
        for group, config, members in zip(self.param_groups, configs, stepped, strict=True):
            ready = self._with_state(members, group, config)
            for plan, stack in stacks_of(
                [one for one in ready if not one[1].full], group, config, self._rule
            ):
                arguments = (stack, plan, self._rule, config, group, self._ops, self._exchange)
                work = partial(step_stack, *arguments)
                jobs.append(Job(held_bytes(stack, plan), work, is_small(stack)))
            jobs += self._adamw_jobs([one for one in ready if one[1].full], group)
        if any(plan.spread for members in stepped for _, plan in members):
            self._exchange.run(jobs)
        else:
            run_here(jobs, self._ops)
        self._exchange.ledger.close()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those that were kept projected among them."""
        super().zero_grad(set_to_none)
        self._projected.clear()

    def projected(self) -> Mapping[Tensor, Sequence[Tensor]]:
        """Return what is kept of gradients as coefficients on the current columns (see `accumulate_projected`)."""
        return self._projected

    @torch.no_grad()
    def keep_projected(self, parameter: Tensor) -> bool:
        """Keep only the coefficients of a parameter's gradient; do nothing, ``False``, if the step needs it whole."""
        for group in self.param_groups:
            if any(parameter is other for other in group["params"]):
                break
        else:
            raise ValueError("parameter must be one of the optimizer's")
        config, state = self.check_options(group), self.state.get(parameter)
        plan = self._plan(parameter, group, config)
        if plan.full or plan.spread or not state or self._rule.project is None:
            return False
        if not config.projects or config.refreshes(state["step"] + 1):
            return False
        member = Member(parameter, state, stream=0)
        parts = project_blocks(member, plan, self._rule, config, group, self._ops)
        kept = self._projected.get(parameter)
        self._projected[parameter] = (
            parts if kept is None else [a.add_(b) for a, b in zip(kept, parts, strict=True)]
        )
        parameter.grad = None
        return True

    def _adamw_jobs(
        self, members: list[tuple[Member, Plan]], group: Mapping[str, Any]
    ) -> list[Job]:
        """Return the work of stepping the members of a group that get AdamW, of which some may be shared out."""
        jobs = []
        for spread in {plan.spread: None for _, plan in members}:
            own = [member for member, plan in members if plan.spread == spread]
            jobs.append(Job(0, partial(adamw_step, own, group, self._ops, spread)))
            if spread is not None:
                jobs += [
                    Job(p.nbytes, partial(gather_rows, p, spread, self._exchange))
                    for p in (member.parameter for member in own)
                ]
        return jobs

    def communication_report(self) -> dict[str, Traffic]:
        """Return what the optimizer's collectives moved in the last step, by their kind.

        Returns
        -------
        dict
            For each of ``"all_reduce"``, ``"all_gather"`` and ``"all_to_all"`` that were issued, their number and the
            bytes of their results on this rank. What FSDP or DDP move by themselves is not in it.
        """
        return dict(self._exchange.ledger.last)

    def _with_state(
        self, members: list[tuple[Member, Plan]], group: Mapping[str, Any], config: Any
    ) -> list[tuple[Member, Plan]]:
        """Make the state of those that have none yet; return all but those whose step is to have state alone."""
        ready, new = [], []
        for member, plan in members:
            if not member.state:
                member = member._replace(state=self.state[member.parameter])
                if plan.full:
                    make_adamw_state(member, plan.spread)
                else:
                    make_state(member, plan, self._rule, config, group["batch_dims"])
                new.append(member.parameter)
            ready.append((member, plan))
        idle = self._exchange.idle(new) if new and is_no_rate(group["lr"]) else []
        return [one for one in ready if not any(one[0].parameter is p for p in idle)]

    def _members(
        self, group: dict[str, Any], config: Any, first: int, chosen: Container[Tensor] | None
    ) -> list[tuple[Member, Plan]]:
        """Return the parameters of a group to step, each with its plan.

        The first of the group is number ``first`` among all. Nothing is changed before all have been checked.
        """
        members = []
        for stream, parameter in enumerate(group["params"], start=first):
            projected = self._projected.get(parameter)
            unasked = chosen is not None and parameter not in chosen
            if unasked or (parameter.grad is None and projected is None):
                continue
            name = partial(self._name_of, parameter)
            if projected is None:
                check_gradient(parameter.grad, name)
            elif parameter.grad is not None:
                raise ValueError(
                    f"{name()} must have its gradient whole or projected, got both: was it accumulated before "
                    "projection was turned off?"
                )
            plan = self._plan(parameter, group, config)
            member = Member(parameter, self.state.get(parameter, {}), stream, projected)
            members.append((member, plan))
        return members

    # -- loading -------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict after checking that it fits; every tensor keeps the dtype it was saved in.

        Raises
        ------
        ValueError
            If it has other groups, or an option or a shape of state that differs; nothing has changed then.
        """
        with as_saved(self, self._place_state):
            super().load_state_dict(state_dict)

    def _place_state(self) -> None:
        """Lay loaded state out as its parameters are."""
        for group in self.param_groups:
            config = self.check_options(group)
            for parameter in group["params"]:
                state = self.state.get(parameter)
                if not state:
                    continue
                plan = self._plan(parameter, group, config)
                if not plan.full:
                    place_state(state, plan, config, group["batch_dims"])
                    continue
                place_adamw_state(state, parameter, plan.spread)

    def save_state(self, path: str | os.PathLike[str], names: Names = None) -> None:
        """Write the state to a file that `lowrank_jax.load_state` and `load_state` go on from.

        In it are arrays, step counts and the options that state depends on; rates, groups and schedules are not.

        Parameters
        ----------
        path
            The file, in the safetensors format; one that is there is replaced at the end, as a whole.
        names
            What a parameter is called in the file: a function of its name as `summary` gives it, or a mapping of those
            that are called otherwise. By default their own names; so give the optimizer named parameters.

        Raises
        ------
        ImportError
            If safetensors is not installed.
        NotImplementedError
            For a sharded parameter.
        TypeError, ValueError
            If ``names`` do not fit, or the state no longer fits the options; nothing has been written then.
        """
        self._check_portable()
        save_state(self, path, names)

    @torch.no_grad()
    def load_state(self, path: str | os.PathLike[str], names: Names = None) -> int:
        """Go on from the state in a file of `save_state` or `lowrank_jax.save_state`.

        The rate and other numbers stay those of this optimizer. A scheduler is the caller's to set.

        Parameters
        ----------
        path
            The file.
        names
            As in `save_state`.

        Returns
        -------
        int
            Steps done.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        ImportError
            If safetensors is not installed.
        NotImplementedError
            For a sharded parameter.
        TypeError, ValueError
            If ``names`` do not fit, or the file is damaged, or of another version, model or way to step it; the message
            names the first difference. Nothing has changed then.
        """
        self._check_portable()
        return load_state(self, path, names)

    def _check_portable(self) -> None:
        if self._process_group is not None:
            raise NotImplementedError(
                "save_state and load_state need state that is whole, which with process_group it is not; "
                "torch.distributed.checkpoint saves sharded state"
            )

    @cached_property
    def _config_names(self) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(self._config_type))

    @cached_property
    def structural_options(self) -> tuple[str, ...]:
        """The options that a state is made for, as opposed to numbers that may change in a run."""
        own = ("algorithm", *SHAPE_OPTIONS)
        numbers = {"betas", "eps", "momentum", "method"}
        return (*own, *(name for name in self._config_names if name not in numbers))

    def state_shapes(
        self, parameter: Tensor, group: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        """Return the shape of every entry of a parameter's state."""
        config = self.check_options(group)
        return self._plan(parameter, group, config).state_shapes(parameter.shape, config)

"""What both optimizers share: groups and their checks, state, the step over all parameters, loading."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from lowrank_core import ops_for_namespace
from lowrank_core._checks import check_integer, check_known
from lowrank_core.ops.constants import Constants
from lowrank_core.rules.diagnostics import MatrixDiagnostics
from lowrank_core.rules.portable import Names
from lowrank_core.rules.presets import with_preset
from lowrank_core.rules.rule import Rule
from lowrank_core.rules.state import ArraySpec
from lowrank_torch._adamw import adamw_step, make_adamw_state, place_adamw_state
from lowrank_torch._advice import (
    check_parameters_given,
    of_checkpoint,
    warn_of_lost_updates,
    warn_of_nothing_saved,
)
from lowrank_torch._capturable import check_capture, check_placed, check_whole, recount
from lowrank_torch._collectives import CollectiveScheduler, Traffic
from lowrank_torch._diagnostics import Recorder
from lowrank_torch._for_model import brief, describe
from lowrank_torch._group_keys import check_group_keys, warn_of_unnamed
from lowrank_torch._index import ParameterIndex
from lowrank_torch._input import check_gradient, check_not_flat, is_zero_lr
from lowrank_torch._loading import as_saved
from lowrank_torch._names import name_alike, parameter_name
from lowrank_torch._nonfinite import PROPAGATE, are_finite
from lowrank_torch._options import BOOKKEEPING, LATER_OPTIONS, GroupOptions
from lowrank_torch._plan import Member, Place, Plan
from lowrank_torch._planner import Planner
from lowrank_torch._portable import load_state, save_state
from lowrank_torch._projected import ProjectedGradient, keep
from lowrank_torch._redistribute import gather_rows
from lowrank_torch._report import Summary, summarize
from lowrank_torch._schedule import Schedule
from lowrank_torch._sharding import local_of
from lowrank_torch._state import chooses_next, make_state, place_state
from lowrank_torch._step import Projection, step_here, step_sharded

_logger = logging.getLogger("lowrank_torch")

#: Parameters, by their places: for each of some groups, its place and the places of parameters in it.
Chosen: TypeAlias = tuple[tuple[int, range], ...]


class LowRankOptimizer(Optimizer):
    """An optimizer that steps hidden matrices by a rule of the core and everything else by AdamW.

    Subclasses name the rule: its configuration, its state and its two functions.
    """

    #: The rule that steps hidden matrices.
    rule: ClassVar[Rule]
    #: Whether a step holds its largest temporaries to the end, so that keeping their memory raises no peak.
    _reuses_memory: ClassVar[bool] = False
    #: Whether the rule also takes matrices with no more basis vectors than its rank.
    _whole_ranks: ClassVar[bool] = False
    #: Options that groups have and ``defaults`` has not: `OneCycleLR` and `CyclicLR` move ``betas`` if they find it in
    #: there, even where ``momentum`` is what steps the matrices.
    _beside_defaults: ClassVar[tuple[str, ...]] = ()
    #: Bytes of copies and coefficients that sharded steps may hold while they wait for a collective. With more, what is
    #: waiting is sent, and is on its way while further steps begin.
    window_bytes: int = 2**29
    #: Steps of this object that were skipped because a gradient was not finite (see the option ``nonfinite``); with
    #: steps in backward those of each parameter.
    skipped_steps: int = 0
    #: Measures steps where it is asked to.
    _recorder: Recorder | None = None

    def __init__(
        self,
        params: Any,
        options: Mapping[str, Any],
        own: Mapping[str, Any],
        preset: str | None,
        process_group: Any = None,
    ) -> None:
        """Check ``options`` (fields of the configuration, over those of ``preset``) and ``own`` (of the frontend).

        Then add the groups.
        """
        options = with_preset(preset, options, self.rule.presets)
        self._preset = preset
        self._process_group = process_group
        self._forget()
        defaults = {**self._options.defaults(), **own}
        check_known(type(self).__name__, options, defaults)
        check_parameters_given(type(self).__name__, params)
        defaults |= options
        self._beside = {name: defaults.pop(name) for name in self._beside_defaults}
        try:
            super().__init__(params, defaults)
        except ValueError as error:
            if "empty parameter list" in str(error):
                error.add_note(
                    "Either all parameters are frozen, or a generator was used up before."
                )
            raise
        warn_of_unnamed(self.param_groups)
        warn_of_lost_updates(self.param_groups)
        logs = _logger.isEnabledFor(logging.INFO)
        rows = self.summary() if logs or not self._whole_ranks else Summary()
        if not self._whole_ranks:
            warn_of_nothing_saved(rows, self.param_groups)
        if logs:
            _logger.info("%s", describe(self, rows))

    def __repr__(self) -> str:
        """Return one line: what steps how many parameters in each group, at which rate and rank."""
        return f"{type(self).__name__}({', '.join(map(brief, self.param_groups))})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of."""
        return {**super().__getstate__(), "_beside": self._beside, "_preset": self._preset}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled optimizer; what it computes with is made anew."""
        super().__setstate__(state)
        for group in self.param_groups:
            for option in LATER_OPTIONS.keys() & GroupOptions(self.rule).defaults():
                group.setdefault(option, LATER_OPTIONS[option])
        # Loading a state dict comes here too and leaves the group; it belongs to a process and goes into no copy.
        self._process_group = self.__dict__.get("_process_group")
        self._preset = self.__dict__.get("_preset")
        self._forget()

    def _forget(self) -> None:
        """Drop what is made from groups and state, to be made anew when it is needed."""
        # Constants of its own, so that they are freed with the optimizer.
        ops = ops_for_namespace(torch)
        self._ops = ops.with_constants(Constants(), reuse_memory=self._reuses_memory)
        self._options = GroupOptions(self.rule, self._preset)
        self._decided: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        self._planner = Planner(self._options, self._whole_ranks, self._process_group, self._ops)
        self._schedules: dict[Chosen, Schedule] = {}
        self._index = ParameterIndex()
        self._scheduler = CollectiveScheduler(self.window_bytes)

    # -- groups --------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking every option of it, and that its parameters can be stepped with them.

        Groups with names and without may stand side by side: parameters without get names made of their places.
        """
        named: list[dict[str, Any]] = []
        count = len(self.param_groups)
        if isinstance(param_group, dict):
            for option, value in self._beside.items():
                param_group.setdefault(option, value)
            check_group_keys(param_group.keys() - BOOKKEEPING, {**self.defaults, **self._beside})
            self.check_options({**self.defaults, **param_group})
            named = name_alike(self.param_groups, param_group)
        try:
            super().add_param_group(param_group)
            self._options.make_plain(self.param_groups[-1])
            self._check_parameters(self.param_groups[-1])
        except (NotImplementedError, TypeError, ValueError):
            del self.param_groups[count:]
            for group in named:
                del group["param_names"]
            raise

    def _check_parameters(self, group: Mapping[str, Any]) -> None:
        """Raise unless every parameter of a group can be stepped as its options say."""
        config = self.check_options(group)
        for parameter in group["params"]:
            if group["batch_dims"] > parameter.ndim:
                raise ValueError(
                    f"batch_dims must be at most the dimensions of {self.name_of(parameter)}, which has "
                    f"{parameter.ndim}, got {group['batch_dims']}"
                )
            plan = self.plan_of(parameter, group, config)
            for number, shape in enumerate(plan.matrices):
                plan.fitted(config, number).layout(shape)
            if group["capturable"]:
                name = partial(self.name_of, parameter)
                check_whole(parameter, plan.sharding is not None, name)
                check_placed(parameter, group, name)
            if group["algorithm"] != "adamw":
                check_not_flat(parameter, partial(self.name_of, parameter))

    def check_options(self, group: Mapping[str, Any]) -> Any:
        """Return the core's configuration of a group, every option checked."""
        return self._options.check(group)

    def plan_of(self, parameter: Tensor, group: Mapping[str, Any], config: Any) -> Plan:
        """Return how a parameter is stepped, the state it has being checked when that changes.

        Raises
        ------
        ValueError
            If the parameter's state does not fit.
        """
        name = partial(self.name_of, parameter)
        return self._planner.plan(parameter, group, config, self.state.get(parameter), name)

    def name_of(self, parameter: Tensor) -> str:
        """Return a parameter's name, or its place."""
        place, index = self.place_of(parameter)
        return parameter_name(self.param_groups[place], place, index)

    def summary(self) -> Summary:
        """Return how every parameter is stepped, in the order of the groups; ``print`` shows a table with totals."""
        rows = Summary()
        for place, group in enumerate(self.param_groups):
            config = self.check_options(group)
            for index, parameter in enumerate(group["params"]):
                plan, name = (
                    self.plan_of(parameter, group, config),
                    parameter_name(group, place, index),
                )
                rows.append(summarize(parameter, plan, config, self.rule.name, name))
        return rows

    def record_diagnostics(self, every: int = 100) -> None:
        """Measure from now on what one step in ``every`` does to each matrix, for `diagnostics`; 0 measures none.

        A matrix is measured at its next step that chooses columns, and again at the first such step at least ``every``
        later. Sharded parameters, gradients kept as coefficients, groups with ``capturable=True`` and compiled steps
        are not measured.

        Parameters
        ----------
        every
            Steps between two measurements. One takes about as long as a step, those between no longer.

        Raises
        ------
        TypeError, ValueError
            If ``every`` is not an integer of at least 0.
        """
        every = check_integer("every", every, low=0)
        self._recorder = Recorder(every) if every else None

    def diagnostics(self) -> list[MatrixDiagnostics]:
        """Return what was measured last of each matrix that is stepped at low rank; none before `record_diagnostics`.

        Reads the numbers from their device, and so waits for it.

        Examples
        --------
        >>> import torch, lowrank_torch
        >>> layer = torch.nn.Linear(64, 64)
        >>> optimizer = lowrank_torch.DCTAdamW(layer.named_parameters(), rank=16)
        >>> optimizer.record_diagnostics()
        >>> layer(torch.ones(2, 64)).sum().backward()
        >>> optimizer.step()
        >>> (row,) = optimizer.diagnostics()
        >>> row.name, row.step, round(row.captured, 2)
        ('weight', 1, 1.0)
        """
        if self._recorder is None:
            return []
        everything = [p for group in self.param_groups for p in group["params"]]
        return self._recorder.rows(everything, self.name_of)

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
        RuntimeError
            If it is captured in a CUDA graph whose replays would do something else; nothing has changed then.
        TypeError, ValueError
            For a sparse or complex gradient, or one that is not finite where ``nonfinite`` says so, an option that has
            become invalid or a state that no longer fits the options; nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        everything = (range(len(group["params"])) for group in self.param_groups)
        self._step_some(tuple(enumerate(everything)))
        return loss

    @torch.no_grad()
    def step_one(self, parameter: Tensor) -> None:
        """Step one parameter of the optimizer's, if it has a gradient: what `step` does, without its hooks."""
        place, index = self.place_of(parameter)
        self._step_some(((place, range(index, index + 1)),))

    def _step_some(self, chosen: Chosen) -> None:
        """Step the chosen parameters that have a gradient."""
        configs, members, key = self._members(chosen)
        check_capture(members.values(), self.name_of)
        watched = any(self.param_groups[n]["nonfinite"] != PROPAGATE for n, _ in chosen)
        if watched and not are_finite(members.values(), self._scheduler, self.name_of):
            self.skipped_steps += 1
            return
        schedule = None if torch.compiler.is_compiling() else self._schedules.get(chosen)
        if schedule is None or schedule.key != key:
            schedule = self._scheduled(chosen, configs, members, key)
        recorder = None if torch.compiler.is_compiling() else self._recorder
        seen = None if recorder is None else recorder.begin(schedule, members)
        if schedule.is_sharded:
            self._step_sharded(schedule, members)
        else:
            self._step_here(schedule, members)
        if recorder is not None and seen is not None:
            recorder.end(schedule, members, seen)
        if self._scheduler.last or self._scheduler.counted:
            self._scheduler.close()

    def _step_here(self, schedule: Schedule, members: Mapping[Place, Member]) -> None:
        """Step parameters that need no other process, small stacks of them side by side."""
        ops, stacks, small = self._ops, list(schedule.stacks_of(members)), []
        if schedule.small > 1 and 2 * schedule.small > ops.num_threads():
            # Or most threads would have nothing to do: then better that each step is divided.
            small = [stack for stack in stacks if stack.is_small]
            stacks = [stack for stack in stacks if not stack.is_small]
        for stack in stacks:
            step_here(stack, ops)
        if small:
            ops.for_each(lambda stack: step_here(stack, ops), small)
        for group, places, _ in schedule.adamw:
            adamw_step([members[place] for place in places], group, ops)

    def _step_sharded(self, schedule: Schedule, members: Mapping[Place, Member]) -> None:
        """Step parameters, some of which are shared out among ranks, their collectives issued together."""
        stacks = schedule.stacks_of(members)
        steps = [(stack.held_bytes, step_sharded(stack, self._ops)) for stack in stacks]
        for group, places, sharding in schedule.adamw:
            own = [members[place] for place in places]
            adamw_step(own, group, self._ops, sharding)
            if sharding is not None:
                steps += [(m.parameter.nbytes, gather_rows(m.parameter, sharding)) for m in own]
        self._scheduler.run(steps)

    def place_of(self, parameter: Tensor) -> tuple[int, int]:
        """Return the place of a parameter's group and its place in the group, in a time that no others add to.

        Raises
        ------
        ValueError
            If it is not one of the optimizer's.
        """
        return self._index.find(self.param_groups, parameter)

    def projected(self) -> Mapping[Tensor, Sequence[Tensor]]:
        """Return what is kept of gradients as coefficients on the current columns (see `accumulate_projected`)."""
        return {
            parameter: parameter.grad.parts
            for group in self.param_groups
            for parameter in group["params"]
            if isinstance(parameter.grad, ProjectedGradient)
        }

    @torch.no_grad()
    def keep_projected(self, parameter: Tensor) -> None:
        """Keep only the coefficients of a parameter's gradient; do nothing if the step needs it whole."""
        if isinstance(parameter.grad, ProjectedGradient):
            return
        place, index = self.place_of(parameter)
        group = self.param_groups[place]
        config, state = self._options.config_of(group), self.state.get(parameter)
        plan = self.plan_of(parameter, group, config)
        if plan.uses_adamw or plan.sharding or not state or self.rule.project is None:
            return
        if group["capturable"] or not config.projects:
            return
        if self.chooses_next(parameter, group, config):
            return
        bound = self._planner.bound(plan, config, parameter.device)
        project = Projection(state, plan, bound, self.rule)
        keep(parameter, project, parameter_name(group, place, index))

    def chooses_next(self, parameter: Tensor, group: Mapping[str, Any], config: Any) -> bool:
        """Return whether the next step of a parameter that has state chooses columns, and needs its whole gradient."""
        state = self.state[parameter]
        step: int = state["step"]
        if config.refreshes(step + 1):
            return True
        if self._decided.get(parameter, step + 1) <= step:
            return False
        plan = self.plan_of(parameter, group, config)
        matrices = self._planner.bound(plan, config, parameter.device)
        if chooses_next(state, matrices, self.rule):
            return True
        # Known from now on, so that a device is not waited for at every step.
        self._decided[parameter] = step
        return False

    def drop_projected(self) -> None:
        """Forget what is kept of gradients as coefficients: it has been used, or the columns are others now."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if isinstance(parameter.grad, ProjectedGradient):
                    parameter.grad = None

    def communication_report(self) -> dict[str, Traffic]:
        """Return what the optimizer's collectives moved in the last step, by their kind.

        Returns
        -------
        dict
            For each of ``"all_reduce"``, ``"all_gather"`` and ``"all_to_all"`` that were issued, their number and the
            bytes of their results on this rank. What FSDP or DDP move by themselves is not in it.
        """
        return dict(self._scheduler.last)

    def count_traffic(self, kind: str, result: Tensor) -> None:
        """Count a collective that was issued for this optimizer by other means than its step."""
        self._scheduler.count(kind, result)

    def _members(self, chosen: Chosen) -> tuple[list[Any], dict[Place, Member], list[Any]]:
        """Return the configurations of groups and the chosen parameters that have a gradient.

        And what a schedule for them depends on.
        """
        configs: list[Any] = []
        members: dict[Place, Member] = {}
        key: list[Any] = []
        begun: int | None = None
        for number, indices in chosen:
            group = self.param_groups[number]
            configs.append(self._options.config_of(group))
            key += [id(group), id(configs[-1])]
            for index in indices:
                parameter = group["params"][index]
                gradient = parameter.grad
                if gradient is None:
                    continue
                projected = gradient.parts if type(gradient) is ProjectedGradient else None
                if projected is None:
                    check_gradient(parameter, self.name_of)
                state = self.state.get(parameter, {})
                place = number, index
                members[place] = Member(parameter, state, group, place, projected)
                kinds = parameter.shape, parameter.dtype, parameter.device, gradient.dtype
                key += [place, id(parameter), id(state), not state, kinds, type(gradient)]
                if isinstance(count := state.get("step"), int):
                    # How much later than the first it began: a stack has one count.
                    begun = count if begun is None else begun
                    key.append(count - begun)
        return configs, members, key

    def _scheduled(
        self,
        chosen: Chosen,
        configs: Sequence[Any],
        members: dict[Place, Member],
        key: list[Any],
    ) -> Schedule:
        """Return the schedule of a step, the state made of those that have none yet; keep it for steps like this one.

        Nothing is changed before all parameters have been checked.
        """
        schedule = Schedule(key, self.rule)
        had_state = all(member.state for member in members.values())
        config_of = {number: config for (number, _), config in zip(chosen, configs, strict=True)}
        planned: dict[int, list[tuple[Member, Plan]]] = {number: [] for number in config_of}
        for (number, _), member in members.items():
            plan = self.plan_of(member.parameter, member.group, config_of[number])
            planned[number].append((member, plan))
        only_state = self._only_makes_state(chosen, members)
        for number, config in config_of.items():
            ready = self._with_state(planned[number], config)
            members.update((member.place, member) for member, _ in ready)
            own = [] if only_state else ready
            schedule.add(own, self.param_groups[number], config, self._planner)
        projects = any(member.projected is not None for member in members.values())
        if had_state and not projects and not torch.compiler.is_compiling():
            self._schedules[chosen] = schedule
        return schedule

    def _only_makes_state(self, chosen: Chosen, members: Mapping[Place, Member]) -> bool:
        """Return whether a step is there to have state alone: it is the first, of rate 0, and all gradients are zero.

        It is counted for all parameters or for none, so that a run has one count.
        """
        new = [member.parameter for member in members.values() if not member.state]
        count = sum(len(group["params"]) for group in self.param_groups)
        if sum(len(indices) for _, indices in chosen) < count or len(new) < len(members):
            return False
        if not new or not all(is_zero_lr(self.param_groups[place]["lr"]) for place, _ in chosen):
            return False
        return len(self._scheduler.idle(new)) == len(new)

    def _with_state(
        self, members: Sequence[tuple[Member, Plan]], config: Any
    ) -> list[tuple[Member, Plan]]:
        """Return the members, the state made of those that have none yet."""
        ready = []
        for member, plan in members:
            if not member.state:
                member = member._replace(state=self.state[member.parameter])
                if plan.uses_adamw:
                    make_adamw_state(member, plan.sharding)
                else:
                    bound = self._planner.bound(plan, config, member.parameter.device)
                    make_state(member, plan, bound, self.rule)
            else:
                device = local_of(member.parameter).device
                recount(member.state, member.group, device, full=plan.uses_adamw)
            ready.append((member, plan))
        return ready

    # -- loading -------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict after checking that it fits; state of parameters of another precision is cast to theirs.

        The option ``capturable`` stays the optimizer's own. State is new tensors, as in PyTorch's optimizers: CUDA
        graphs that were captured before have to be captured again.

        Raises
        ------
        ValueError
            If it has other groups, an option or a shape of state that differs, or numbers that state cannot have;
            nothing has changed then.
        """
        try:
            with as_saved(self, self._place_state):
                super().load_state_dict(state_dict)
        except ValueError as error:
            if note := of_checkpoint(state_dict, self.rule.name):
                error.add_note(note)
            raise

    def _place_state(self) -> None:
        """Lay loaded state out as its parameters are."""
        self.drop_projected()
        for group in self.param_groups:
            config = self.check_options(group)
            for parameter in group["params"]:
                state = self.state.get(parameter)
                if not state:
                    continue
                plan = self.plan_of(parameter, group, config)
                if plan.uses_adamw:
                    place_adamw_state(state, parameter, plan.sharding)
                else:
                    place_state(state, plan, self._planner.bound(plan, config, parameter.device))

    def save_state(self, path: str | os.PathLike[str], names: Names = None) -> None:
        """Write the state to a file that `lowrank_jax.load_state` and `load_state` go on from.

        In it are arrays, step counts and the options that state depends on; rates, groups and schedules are not.

        Parameters
        ----------
        path
            The file, in the safetensors format; one that is there is replaced at the end, as a whole.
        names
            What a parameter is called in the file: a function of its name as `summary` gives it, or a mapping of those
            that are called otherwise. By default their own names; of one without, its place, by which only
            an optimizer without names finds it: better give it named parameters.

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

        The rate and other numbers stay those of this optimizer. A scheduler is the caller's to set. CUDA graphs that
        were captured before have to be captured again.

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
        steps = load_state(self, path, names)
        self.drop_projected()
        return steps

    def _check_portable(self) -> None:
        if self._process_group is not None:
            raise NotImplementedError(
                "save_state and load_state need state that is whole, which with process_group it is not; "
                "torch.distributed.checkpoint saves sharded state"
            )

    @property
    def structural_options(self) -> tuple[str, ...]:
        """The options that a state is made for, as opposed to numbers that may change in a run."""
        return self._options.structural

    def state_specs(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, ArraySpec]:
        """Return shape, dtype and law of every entry of a parameter's state."""
        config = self.check_options(group)
        return self.plan_of(parameter, group, config).state_specs(parameter, config)

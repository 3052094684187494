"""Plans of an optimizer's parameters, kept beside what their steps are bound to until options change."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lowrank_core.ops.standard import Ops
from lowrank_torch._loading import check_shapes, check_whole
from lowrank_torch._options import GroupOptions
from lowrank_torch._plan import BoundMatrices, Plan, plan_for
from lowrank_torch._sharding import Sharding, is_sharded, replica_sharding


class Planner:
    """Makes and remembers how each parameter of an optimizer is stepped.

    Parameters
    ----------
    options
        The options that its groups have.
    whole_ranks
        Whether the rule also takes matrices with no more basis vectors than its rank.
    process_group
        Replicas among whom whole parameters are shared out, or ``None``.
    ops
        The operations that steps are bound to.
    """

    def __init__(
        self, options: GroupOptions, whole_ranks: bool, process_group: Any, ops: Ops
    ) -> None:
        self._options, self._whole_ranks, self.ops = options, whole_ranks, ops
        self._process_group = process_group
        # By ids, so that a parameter that is replaced is freed.
        self._plans: dict[int, tuple[weakref.ref[Tensor], Any, Plan]] = {}
        self._bound: dict[Any, tuple[Any, tuple[BoundMatrices, ...]]] = {}
        self._replicas: dict[str, Sharding | None] = {}

    def plan(
        self,
        parameter: Tensor,
        group: Mapping[str, Any],
        config: Any,
        state: Mapping[str, Any] | None,
        name: Callable[[], str],
    ) -> Plan:
        """Return how a parameter is stepped, the ``state`` it has being checked when that changes.

        Raises
        ------
        NotImplementedError, ValueError
            If it cannot be stepped as the options say, or its state does not fit.
        """
        # Whoever gives a parameter other data may give it another shape.
        structure = (parameter.shape, *self._options.structure(group))
        known = self._plans.get(id(parameter))
        if known is not None and known[0]() is parameter and known[1] == structure:
            return known[2]
        replicas = self._replicas_of(parameter)
        try:
            plan = plan_for(
                parameter, group, config, whole_ranks=self._whole_ranks, replicas=replicas
            )
        except (NotImplementedError, ValueError) as error:
            if replicas is None and not is_sharded(parameter):
                raise
            raise type(error)(f"{name()}: {error}") from error
        if state:
            wanted = plan.state_specs(parameter, config)
            check_shapes("the optimizer's state", state, wanted, name())
            if plan.sharding is None and not is_sharded(parameter):
                check_whole(state, name())
            self._remember(parameter, structure, plan)
        return plan

    def _remember(self, parameter: Tensor, structure: Any, plan: Plan) -> None:
        plans, key = self._plans, id(parameter)

        def forget(ref: weakref.ref[Tensor]) -> None:
            # Another parameter may have the id by now.
            if key in plans and plans[key][0] is ref:
                del plans[key]

        plans[key] = weakref.ref(parameter, forget), structure, plan

    def bound(self, plan: Plan, config: Any, device: torch.device) -> tuple[BoundMatrices, ...]:
        """Return what the steps of a plan on a device are bound to under a configuration."""
        known = self._bound.get((plan, device))
        # A configuration that is the same object has the same values; other ones may hold tensors.
        if known is not None and known[0] is config:
            return known[1]
        matrices = plan.bind(config, self.ops, device)
        self._bound[plan, device] = config, matrices
        return matrices

    def _replicas_of(self, parameter: Tensor) -> Sharding | None:
        """Return how a parameter that every rank has is shared out."""
        if self._process_group is None or parameter.ndim < 2 or is_sharded(parameter):
            return None
        kind = parameter.device.type
        if kind not in self._replicas:
            from torch.distributed.device_mesh import DeviceMesh

            mesh = DeviceMesh.from_group(self._process_group, kind)
            self._replicas[kind] = replica_sharding(mesh)
        return self._replicas[kind]

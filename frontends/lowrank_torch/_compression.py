"""Gradients averaged over replicas on the columns that are kept alone: the mean of projections is that of the mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lowrank_core import lift, project
from lowrank_core.subspace.empty import columns_of
from lowrank_torch._matrices import as_matrices, matrix_views
from lowrank_torch._wrapped import unwrapped

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

    from lowrank_torch._optimizer import LowRankOptimizer


def compressed_gradients(model: DistributedDataParallel, optimizer: Any) -> None:
    """Have a model's gradients averaged on the columns its optimizer keeps, at steps that keep them.

    Between refreshes the columns of a fixed basis are the same on every replica, and the step uses a gradient's
    coefficients on them alone. So replicas exchange these, ``m x r`` numbers of an ``m x n`` gradient; whole gradients
    at steps that choose columns. `torch.nn.parallel.DistributedDataParallel` then leaves in ``grad`` the mean gradient
    projected on the columns: what is clipped is its norm, and the trajectory is otherwise that without compression.
    Gradients accumulated under ``no_sync`` are projected when they are averaged.

    What is compressed is said by the options of each parameter's group, under ``preset=None``: ``residual="discard"``,
    ``refresh_every`` above 1 and a fixed basis. Everything else is averaged whole.

    Parameters
    ----------
    model
        A model in `torch.nn.parallel.DistributedDataParallel` that has no communication hook yet.
    optimizer
        A `DCTAdamW` of its parameters, or what wraps one, as Accelerate's and Lightning's optimizers do.

    Raises
    ------
    TypeError
        If ``optimizer`` is another.
    ValueError
        If the options of no group allow it.
    """
    optimizer = unwrapped(optimizer)
    if not any(
        _may_project(optimizer.check_options(group), group) for group in optimizer.param_groups
    ):
        raise ValueError(
            "compressed_gradients needs preset=None and a group with residual='discard', refresh_every above 1 and a "
            "fixed basis, got none: other steps need whole gradients"
        )
    state = _Averaging(optimizer, model.process_group)
    # DDP looks at annotations, and takes them for wrong where they are strings.
    model.register_comm_hook(state, lambda state, bucket: _average(state, bucket))  # noqa: PLW0108


def _may_project(config: Any, group: dict[str, Any]) -> bool:
    return (
        group["algorithm"] != "adamw"
        and not group["capturable"]
        and getattr(config, "projects", False)
        and not getattr(config, "stored", True)
    )


class _Way(NamedTuple):
    """From the gradient of one parameter to its coefficients on the columns kept at the next step, and back."""

    #: The shapes of its stacks of matrices, of which each has its functions.
    matrices: Sequence[tuple[int, ...]]
    batch_dims: int
    transposed: bool
    project: Sequence[Callable[[Any], Any]]
    lift: Sequence[Callable[[Any], Any]]

    def views(self, gradient: Tensor) -> list[Tensor]:
        """Return the stacks of matrices, views of ``gradient`` where its memory allows."""
        own = as_matrices(gradient, self.batch_dims, transposed=self.transposed)
        return matrix_views(own, self.matrices, self.batch_dims)


def _ways(optimizer: LowRankOptimizer, parameters: Sequence[Tensor]) -> list[_Way | None]:
    """Return how each gradient is compressed; ``None`` for those that are not."""
    # One that has never been stepped need not be the optimizer's.
    return [
        _way(optimizer, parameter) if optimizer.state.get(parameter) else None
        for parameter in parameters
    ]


def _way(optimizer: LowRankOptimizer, parameter: Tensor) -> _Way | None:
    place, _ = optimizer.place_of(parameter)
    group, state = optimizer.param_groups[place], optimizer.state[parameter]
    config = optimizer.check_options(group)
    if not _may_project(config, group):
        return None
    plan = optimizer.plan_of(parameter, group, config)
    if plan.uses_adamw or optimizer.chooses_next(parameter, group, config):
        return None
    to_columns, back = [], []
    for number, shape in enumerate(plan.matrices):
        layout = plan.fitted(config, number).layout(shape)
        indices: Any = columns_of(state[plan.key("indices", number)], layout.size)
        how = {"axis": layout.axis, "basis": config.basis, "method": config.method}
        to_columns.append(partial(_on, project, indices, **how))
        back.append(partial(_on, lift, indices, size=layout.size, **how))
    return _Way(plan.matrices, plan.batch_dims, plan.transposed, to_columns, back)


def _on(function: Callable[..., Any], indices: Tensor, x: Tensor, **how: Any) -> Tensor:
    result: Tensor = function(x, indices, **how)
    return result


class _Averaging(NamedTuple):
    optimizer: LowRankOptimizer
    group: Any


@torch.no_grad()
def _average(state: _Averaging, bucket: Any) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients."""
    ways = _ways(state.optimizer, bucket.parameters())
    gradients, buffer = bucket.gradients(), bucket.buffer()
    sent: list[Tensor] = []
    for gradient, way in zip(gradients, ways, strict=True):
        if way is None:
            sent.append(gradient)
        else:
            views = way.views(gradient)
            sent += [project(view) for project, view in zip(way.project, views, strict=True)]
    compressed = any(way is not None for way in ways)
    flat = torch.cat([x.reshape(-1) for x in sent]) if compressed else buffer
    flat.div_(state.group.size())
    state.optimizer.count_traffic("all_reduce", flat)
    work = dist.all_reduce(flat, group=state.group, async_op=True)

    @torch.no_grad()
    def back(_: Any) -> Tensor:
        if compressed:
            pieces = torch.split(flat, [x.numel() for x in sent])
            received = iter([p.view(x.shape) for p, x in zip(pieces, sent, strict=True)])
            for gradient, way in zip(gradients, ways, strict=True):
                if way is None:
                    gradient.copy_(next(received))
                else:
                    lifted = [lift(next(received)).flatten(way.batch_dims, -2) for lift in way.lift]
                    whole = torch.cat(lifted, way.batch_dims)
                    gradient.copy_((whole.mT if way.transposed else whole).reshape(gradient.shape))
        return buffer

    answer: torch.futures.Future[Tensor] = work.get_future().then(back)
    return answer

"""Gradients that do not outlive their layer: stepped, or projected and added up, as backward makes them."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from lowrank_core._checks import check_number
from lowrank_torch._optimizer import LowRankOptimizer


class GradientHooks:
    """What is done with every gradient as soon as backward has made it; also a context that ends that."""

    def __init__(self, optimizer: LowRankOptimizer, work: Callable[[Tensor], None]) -> None:
        if not isinstance(optimizer, LowRankOptimizer):
            raise TypeError(f"optimizer must be one of this package, got {optimizer!r}")
        self._handles = [
            parameter.register_post_accumulate_grad_hook(work)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
        ]

    def remove(self) -> None:
        """Leave gradients alone from now on."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def step_in_backward(optimizer: LowRankOptimizer) -> GradientHooks:
    """Step every parameter during backward, as soon as its gradient is there, and free the gradient.

    Memory then holds the gradients of one layer at a time. The training loop stays as it is: schedulers change the
    optimizer's one set of ``param_groups``, and ``optimizer.step()`` steps what is left, which is nothing. So its step
    hooks see no gradients, and what needs all gradients at once cannot be had: clipping by the norm of all,
    `GradScaler`, and more than one backward pass a step; for the last see `accumulate_projected`.

    Parameters
    ----------
    optimizer
        A `DCTAdamW` or `Trion`. Parameters it is given later are not stepped so.

    Returns
    -------
    GradientHooks
        ``remove()`` ends it.

    Raises
    ------
    TypeError
        If ``optimizer`` is another.
    """

    def work(parameter: Tensor) -> None:
        optimizer.step_only({parameter})
        parameter.grad = None

    return GradientHooks(optimizer, work)


class ProjectedAccumulation(GradientHooks):
    """Sums of projected gradients, and their norm."""

    def __init__(self, optimizer: LowRankOptimizer) -> None:
        super().__init__(optimizer, self._keep)
        self._optimizer = optimizer

    def _keep(self, parameter: Tensor) -> None:
        self._optimizer.keep_projected(parameter)

    def _parts(self) -> list[Tensor]:
        projected = self._optimizer.projected()
        parts: list[Tensor] = []
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parts += projected.get(parameter, ())
                if parameter.grad is not None:
                    parts.append(parameter.grad)
        return parts

    @torch.no_grad()
    def clip_norm_(self, max_norm: float) -> Tensor:
        """Scale all gradients, projected and whole, so that their norm together is at most ``max_norm``.

        Of a projected gradient only what lies in its columns is known, and only that is stepped on: between refreshes
        the norm is smaller than that of the whole gradients, never larger.

        Parameters
        ----------
        max_norm
            The largest norm allowed, above 0, in the units of the gradients.

        Returns
        -------
        Tensor
            The norm before, 0-d.

        Raises
        ------
        TypeError, ValueError
            If ``max_norm`` is not such a number.
        """
        check_number("max_norm", max_norm, low=0, include_low=False)
        parts = self._parts()
        norm = torch.nn.utils.get_total_norm(parts)
        scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for part in parts:
            part.mul_(scale.to(part.device))
        return norm


def accumulate_projected(optimizer: LowRankOptimizer) -> ProjectedAccumulation:
    """Between refreshes, keep of every hidden matrix's gradient only its coefficients on the current columns.

    Projection is linear, and between two choices of columns the columns are fixed: the coefficients of micro-batches
    add up, in ``m x r`` numbers instead of ``m x n``, and the step on them is the step on the sum of the whole
    gradients. A gradient is projected and freed as soon as backward has made it. On steps that choose columns, and for
    parameters that get AdamW, gradients accumulate whole as ever.

    ::

        accumulation = lowrank_torch.accumulate_projected(optimizer)
        for batch in batches:
            for part in batch:
                loss(model, part).backward()
            accumulation.clip_norm_(1.0)
            optimizer.step()
            optimizer.zero_grad()

    Parameters
    ----------
    optimizer
        A `DCTAdamW` with a group of ``residual="discard"`` and ``refresh_every > 1``; in other groups, and for
        parameters it is given later, gradients accumulate whole.

    Returns
    -------
    ProjectedAccumulation
        ``clip_norm_`` clips what has been accumulated, ``remove()`` ends it.

    Raises
    ------
    TypeError, ValueError
        If ``optimizer`` is another, or has no such group.
    """
    accumulation = ProjectedAccumulation(optimizer)
    configs = [optimizer.check_options(group) for group in optimizer.param_groups]
    if not any(getattr(config, "projects", False) for config in configs):
        accumulation.remove()
        raise ValueError(
            "optimizer must be a DCTAdamW with a group of residual='discard' and refresh_every > 1, got "
            f"{optimizer!r}"
        )
    return accumulation

"""Gradients that do not outlive their layer: stepped, or projected and added up, as backward makes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from lowrank_core._checks import check_number
from lowrank_torch._optimizer import LowRankOptimizer
from lowrank_torch._projected import ProjectedGradient
from lowrank_torch._wrapped import refuse_late_averaging, unwrapped


class GradientHooks:
    """What is done with every gradient as soon as backward has made it; also a context that ends that."""

    def __init__(
        self,
        optimizer: LowRankOptimizer,
        function: str,
        work: Callable[[LowRankOptimizer, Tensor], None],
        after: Callable[..., None],
    ) -> None:
        """Do ``work`` with gradients and ``after`` at the end of each step; ``function`` is what messages name."""
        parameters = [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
        ]
        self._handles = [refuse_late_averaging(parameters, function)]
        self._optimizer = optimizer
        # They hold the optimizer, and PyTorch shows Python's garbage collector no such hooks: without `remove` the two
        # and the parameters stay.
        hook = partial(work, optimizer)
        self._handles += [p.register_post_accumulate_grad_hook(hook) for p in parameters]
        self._handles.append(optimizer.register_step_post_hook(after))

    def remove(self) -> None:
        """Leave gradients alone from now on, and let go of the optimizer."""
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


def step_in_backward(optimizer: Any) -> GradientHooks:
    """Step every parameter during backward, as soon as its gradient is there, and free the gradient.

    Memory then holds the gradients of one layer at a time. The training loop stays as it is: schedulers change the
    optimizer's one set of ``param_groups``, and ``optimizer.step()`` after each backward pass steps what is left, which
    is nothing. So its step hooks see no gradients, and what needs all gradients at once cannot be had: clipping by the
    norm of all finds nothing to clip, `GradScaler` refuses, and a second backward pass without a step between is an
    error; for that one see `accumulate_projected`. So is a model in `DistributedDataParallel`, which averages gradients
    when all are there.

    Parameters
    ----------
    optimizer
        A `DCTAdamW` or `Trion`, or what wraps one, as Accelerate's and Lightning's optimizers do. Parameters it is
        given later are not stepped so.

    Returns
    -------
    GradientHooks
        ``remove()`` ends it.

    Raises
    ------
    NotImplementedError
        If a model in `DistributedDataParallel` or FSDP1 has the parameters, also if it is made later.
    TypeError
        If ``optimizer`` is another.
    """
    once = _StepOnce()
    return GradientHooks(unwrapped(optimizer), "step_in_backward", once, once.begin)


class _StepOnce:
    """Steps parameters as their gradients come, each once until the optimizer's own step."""

    def __init__(self) -> None:
        self._stepped: set[int] = set()

    def begin(self, *_: Any) -> None:
        """Let every parameter be stepped again."""
        self._stepped.clear()

    def __call__(self, optimizer: LowRankOptimizer, parameter: Tensor) -> None:
        """Step a parameter and free its gradient."""
        if id(parameter) in self._stepped:
            name = optimizer.name_of(parameter)
            raise RuntimeError(
                f"step_in_backward has stepped {name} since the last optimizer.step(), and backward made a second "
                "gradient of it: call optimizer.step() after every backward pass, and do not accumulate over several "
                "(gradient_accumulation_steps=1, accumulate_grad_batches=1; clipping, by max_grad_norm or "
                "gradient_clip_val, has no effect either). accumulate_projected accumulates at little memory"
            )
        optimizer.step_one(parameter)
        parameter.grad = None
        self._stepped.add(id(parameter))


class ProjectedAccumulation(GradientHooks):
    """Sums of projected gradients, and their norm."""

    def __init__(self, optimizer: LowRankOptimizer) -> None:
        super().__init__(
            optimizer, "accumulate_projected", LowRankOptimizer.keep_projected, _drop_used
        )

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
        gradients = [
            parameter.grad
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        parts: list[Tensor] = []
        for gradient in gradients:
            parts += gradient.parts if isinstance(gradient, ProjectedGradient) else [gradient]
        norm = torch.nn.utils.get_total_norm(parts)
        scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.device))
        return norm


def _drop_used(optimizer: Any, *_: Any) -> None:
    """Forget gradients after a step on them; the columns may be others from now on."""
    unwrapped(optimizer).drop_projected()


def accumulate_projected(optimizer: Any) -> ProjectedAccumulation:
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

    What is kept is in ``.grad``, where a `GradScaler`, ``model.zero_grad()`` and code that looks for NaN find it. The
    norm of a sum of gradients cannot be told from their coefficients: `torch.nn.utils.clip_grad_norm_` works with one
    backward pass a step, and is an error with several.

    Parameters
    ----------
    optimizer
        A `DCTAdamW`, or what wraps one, of ``preset=None``, with a group of ``residual="discard"`` and
        ``refresh_every > 1``; in other groups, and for parameters it is given later, gradients accumulate whole.

    Returns
    -------
    ProjectedAccumulation
        ``clip_norm_`` clips what has been accumulated, ``remove()`` ends it.

    Raises
    ------
    NotImplementedError
        If a model in `DistributedDataParallel` or FSDP1 has the parameters, also if it is made later; there
        `compressed_gradients` averages coefficients.
    TypeError, ValueError
        If ``optimizer`` is another, or has no such group.
    """
    own = unwrapped(optimizer)
    fit = [
        getattr(own.check_options(group), "projects", False) and not group["capturable"]
        for group in own.param_groups
    ]
    if not any(fit):
        raise ValueError(
            "optimizer must be a DCTAdamW of preset=None, with a group of residual='discard', refresh_every > 1 and "
            f"capturable=False, got none in {len(fit)} groups of {type(own).__name__}"
        )
    return ProjectedAccumulation(own)

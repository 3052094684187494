"""Other optimizers of little state, as plain as their papers: what the study compares with.

Each steps a matrix at a time and keeps for it what its paper keeps. `Rival` has what they share.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

EPS = 1e-8


class Rival(Optimizer):
    """Steps groups with `algorithm="adamw"` as AdamW does, and the matrices of the others by `direction`."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], **options: Any) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "algorithm": "", **options})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Step all parameters."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                by = adam if group["algorithm"] == "adamw" else self.direction
                parameter.sub_(by(parameter.grad, state, group), alpha=group["lr"])
        return loss

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """What a matrix moves by at rate one."""
        raise NotImplementedError


def moments(g: Tensor, state: dict[str, Any], betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Adam's moments of `g`, corrected for their start at zero."""
    corrected = []
    for name, beta, entry in zip(("first", "second"), betas, (g, g * g), strict=True):
        kept = state.setdefault(name, torch.zeros_like(g)).lerp_(entry, 1 - beta)
        corrected.append(kept / (1 - beta ** state["step"]))
    return corrected[0], corrected[1]


def adam(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Adam's direction."""
    first, second = moments(gradient, state, group["betas"])
    return first / (second.sqrt() + EPS)


class Foam(Rival):
    """Means of blocks of four neighbours have moments; what is left of this gradient joins both.

    Z. Wen et al., "FOAM: blocked state folding for memory-efficient LLM training", arXiv 2512.07112.
    """

    block = 4

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Moments of the block means, unfolded, with the residual."""
        folded = gradient.unflatten(-1, (-1, self.block)).mean(-1)

        def unfold(x: Tensor) -> Tensor:
            return x.repeat_interleave(self.block, -1)

        first, second = moments(folded, state, group["betas"])
        rest = gradient - unfold(folded)
        return (unfold(first) + rest) / ((unfold(second) + rest * rest).sqrt() + EPS)


class Apollo(Rival):
    """The gradient, each column (or row) scaled as Adam scales it in a random projection of rank `n / 4`.

    H. Zhu et al., "APOLLO: SGD-like memory, AdamW-level performance", arXiv 2412.05270, algorithm 1: a projection
    of a new seed every 200 steps, growth of the update's norm limited to 1 % a step.
    """

    share, refresh, limit = 4, 200, 1.01

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The gradient with its channels scaled."""
        wide = gradient.shape[0] <= gradient.shape[1]
        g = gradient if wide else gradient.T
        rank = max(1, g.shape[0] // self.share)
        generator = torch.Generator().manual_seed(state["step"] // self.refresh)
        projection = torch.randn(rank, g.shape[0], generator=generator) / math.sqrt(rank)
        low = projection @ g
        first, second = moments(low, state, group["betas"])
        scaled = first / (second.sqrt() + EPS)
        ratios = scaled.norm(dim=0) / (low.norm(dim=0) + EPS)
        update = g * ratios
        norm = float(update.norm())
        most = self.limit * state.get("norm", math.inf)
        if norm > most:
            update, norm = update * (most / norm), most
        state["norm"] = norm
        return update if wide else update.T


class Scale(Rival):
    """Each column of the gradient divided by its norm: no state for hidden matrices.

    A. Glentis et al., "Scalable parameter and memory efficient pretraining for LLM" (SCALE), arXiv 2506.16659. Its
    momentum for the last layer is AdamW's here, as for every method.
    """

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The gradient with columns of unit norm."""
        return gradient / (gradient.norm(dim=0, keepdim=True) + EPS)

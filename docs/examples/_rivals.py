"""Other optimizers, as plain as their papers: what the study compares with.

Each steps a matrix at a time and keeps for it what its paper keeps. `Rival` has what they share.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

EPS = 1e-8
Direction = Callable[[Any, dict[str, Any], dict[str, Any]], Tensor]


class Rival(Optimizer):
    """Steps groups with `algorithm="adamw"` as AdamW does, and the matrices of the others by `direction`."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], **options: Any) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "algorithm": "", **options})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Step all parameters."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            if group["algorithm"] == "adamw":
                self.move(group, adam)
            else:
                self.step_matrices(group)
        return loss

    def step_matrices(self, group: dict[str, Any]) -> None:
        """Step the hidden matrices of a group."""
        self.move(group, self.direction)

    def move(self, group: dict[str, Any], direction: Direction) -> None:
        """Move the parameters of a group by a direction times its rate."""
        for parameter in group["params"]:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            parameter.sub_(direction(parameter.grad, state, group), alpha=group["lr"])

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


def limited(update: Tensor, state: dict[str, Any], most: float = 1.01) -> Tensor:
    """`update`, its norm at most that of the last one times `most`: the limiter of Fira, APOLLO and RACS."""
    norm = float(update.norm())
    largest = most * state.get("norm", math.inf)
    state["norm"] = min(norm, largest)
    return update * (largest / norm) if norm > largest else update


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

    share, refresh = 4, 200

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The gradient with its channels scaled."""
        wide = gradient.shape[0] <= gradient.shape[1]
        g = gradient if wide else gradient.T
        rank = max(1, g.shape[0] // self.share)
        generator = torch.Generator().manual_seed(state["step"] // self.refresh)
        projection = torch.randn(rank, g.shape[0], generator=generator, dtype=g.dtype)
        projection /= math.sqrt(rank)
        low = projection @ g
        first, second = moments(low, state, group["betas"])
        scaled = first / (second.sqrt() + EPS)
        ratios = scaled.norm(dim=0) / (low.norm(dim=0) + EPS)
        update = limited(g * ratios, state)
        return update if wide else update.T


class Scale(Rival):
    """Each column of the gradient divided by its norm: no state for hidden matrices.

    A. Glentis et al., "Scalable parameter and memory efficient pretraining for LLM" (SCALE), arXiv 2506.16659. Its
    momentum for the last layer is AdamW's here, as for every method.
    """

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The gradient with columns of unit norm."""
        return gradient / (gradient.norm(dim=0, keepdim=True) + EPS)


class Racs(Rival):
    """The gradient divided by a root mean square of its row and of its column, which together say most of its squares.

    W. Gong et al., "Towards efficient optimizer design for LLM via structured Fisher approximation with a low-rank
    extension", arXiv 2502.07752, algorithm 1: five rounds for both, running means of them, and the limiter.
    """

    decay, rounds = 0.9, 5

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The gradient with rows and columns scaled."""
        squares = gradient * gradient
        columns = torch.ones_like(gradient[0])
        for _ in range(self.rounds):
            rows = squares @ columns / (columns @ columns + EPS)
            columns = rows @ squares / (rows @ rows + EPS)
        for name, found in (("rows", rows), ("columns", columns)):
            state.setdefault(name, torch.zeros_like(found)).lerp_(found, 1 - self.decay)
        corrected = 1 - self.decay ** state["step"]
        scales = torch.outer(state["rows"].sqrt(), state["columns"].sqrt()) / corrected
        return limited(gradient / (scales + EPS), state)


class Dion(Rival):
    """One step of power iteration on the momentum, from the last step's columns; what it found leaves the momentum.

    K. Ahn et al., "Dion: distributed orthonormalized updates", arXiv 2504.05295, algorithm 1.
    """

    share, momentum = 4, 0.95

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """An update of rank `min(m, n) / 4` with orthonormal columns on the left."""
        rows, columns = gradient.shape
        rank = max(1, min(rows, columns) // self.share)
        if "right" not in state:
            generator = torch.Generator().manual_seed(0)
            state["right"] = torch.randn(columns, rank, generator=generator, dtype=gradient.dtype)
        buffer = state.setdefault("momentum", torch.zeros_like(gradient)).add_(gradient)
        left, _ = torch.linalg.qr(buffer @ state["right"])
        right = buffer.T @ left
        buffer.sub_(left @ right.T, alpha=1 - self.momentum)
        state["right"] = right / (right.norm(dim=0) + EPS)
        return (rows / columns) ** 0.5 * (left @ state["right"].T)

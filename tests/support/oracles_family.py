"""The rest of the family, slowly, in float64 NumPy: every basis, policy and rule, sharing nothing with the library."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache

import numpy as np
from oracles import best_columns, dct_basis

# -- random numbers ----------------------------------------------------------------------------


def mix(x: int) -> int:
    """C. Wellons's lowbias32, on unsigned integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def fold(key: int, value: int) -> int:
    """A key under a key."""
    return mix(key ^ mix((key + value) % 2**32))


def make_key(seed: int, stream: int, entry: int) -> int:
    """The key of one matrix of a stack, as an unsigned integer."""
    return fold(fold(seed % 2**32, stream % 2**32), entry)


def uniform(key: int, count: int) -> np.ndarray:
    """Numbers in (0, 1)."""
    return np.array([((fold(key, i) >> 9) + 0.5) / 2**23 for i in range(count)])


def standard_normal(key: int, count: int) -> np.ndarray:
    """Box and Muller."""
    radius = np.sqrt(-2 * np.log(uniform(fold(key, 1), count)))
    return radius * np.cos(2 * np.pi * uniform(fold(key, 2), count))


# -- bases -------------------------------------------------------------------------------------


def _haar(n: int) -> np.ndarray:
    """Averages of neighbours from level to level, the last of an odd number carried along."""
    averages, details = list(np.eye(n)), []
    while len(averages) > 1:
        pairs = [(averages[i], averages[i + 1]) for i in range(0, len(averages) - 1, 2)]
        odd = averages[len(pairs) * 2 :]
        details = [(a - b) / math.sqrt(2) for a, b in pairs] + details
        averages = [(a + b) / math.sqrt(2) for a, b in pairs] + odd
    return np.stack([*averages, *details], axis=1)


def _legendre(n: int) -> np.ndarray:
    """The discrete polynomials by their three-term recurrence in exact fractions."""
    points = [Fraction(2 * x - n + 1) for x in range(n)]
    before, now = [Fraction(0)] * n, [Fraction(1)] * n
    columns = []
    for k in range(n):
        total = sum(value * value for value in now)
        # Divided while exact: the numbers themselves are beyond what a float holds.
        columns.append([math.copysign(math.sqrt(p * p / total), p) for p in now])
        after = [
            ((2 * k + 1) * x * p - k * (n * n - k * k) * q) / (k + 1)
            for x, p, q in zip(points, now, before, strict=True)
        ]
        before, now = now, after
    return np.array(columns).T


def _random(n: int, seed: int) -> np.ndarray:
    rows = [standard_normal(make_key(seed, 0, i), n) for i in range(n)]
    q, r = np.linalg.qr(np.stack(rows))
    return q * np.sign(np.diag(r))


@cache
def basis(name: str, n: int) -> np.ndarray:
    """The matrix whose columns are the basis vectors."""
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    match name.partition(":")[0]:
        case "dct":
            return dct_basis(n)
        case "dct3":
            return dct_basis(n).T
        case "local_dct":
            whole = np.zeros((n, n))
            for start in range(0, n, 64):
                stop = min(start + 64, n)
                whole[start:stop, start:stop] = dct_basis(stop - start)
            return whole
        case "hartley":
            angle = 2 * np.pi * (i * j % n) / n
            return (np.cos(angle) + np.sin(angle)) / math.sqrt(n)
        case "hadamard":
            return (-1.0) ** np.bitwise_count(i & j) / math.sqrt(n)
        case "haar":
            return _haar(n)
        case "legendre":
            return _legendre(n)
        case "random":
            return _random(n, int(name.partition(":")[2] or 0))
        case "identity":
            return np.eye(n)
    raise ValueError(name)


# -- orthogonalisation -------------------------------------------------------------------------

MUON = ((3.4445, -4.7750, 2.0315),) * 20
# arXiv 2505.16932, the published list for singular values in [1e-3, 1].
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    *((1.875, -1.25, 0.375),) * 20,
)


def polynomials_of(values: np.ndarray, steps: int, coefficients: str) -> np.ndarray:
    """The iteration on singular values, which are in units of the Frobenius norm."""
    polynomials = (MUON if coefficients == "muon" else POLAR_EXPRESS)[:steps]
    safety = 1.0 if coefficients == "muon" else 1.01
    values = values / safety
    for step, (c0, c1, c2) in enumerate(polynomials):
        # Each polynomial but the last is applied to slightly smaller numbers.
        s = values / safety if step < steps - 1 else values
        values = c0 * s + c1 * s**3 + c2 * s**5
    return values


def orthogonalize(x: np.ndarray, steps: int = 5, coefficients: str = "muon") -> np.ndarray:
    """``U p(s) V^T`` by an SVD, a stack's matrices one by one."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim > 2:
        return np.stack([orthogonalize(part, steps, coefficients) for part in x])
    norm = np.linalg.norm(x)
    if norm == 0:
        return x
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return (u * polynomials_of(s / norm, steps, coefficients)) @ vt


# -- quantisation ------------------------------------------------------------------------------


def quantize_block(
    block: np.ndarray, bits: int, scale: np.generic | None = None
) -> tuple[np.ndarray, np.generic, np.generic]:
    """Codes (for a given ``scale``, or the block's own), minimum and scale, in the block's own precision."""
    one = block.dtype.type
    low, high = min(block), max(block)
    own = (high - low) / one(2**bits - 1)
    step = own if scale is None else scale
    if step == 0:
        return np.zeros(len(block), int), low, own
    unit = one(2.0**64 if step < 2.0**-100 else 1)  # the inverse of a small one is too large
    inverse = one(1) / (step * unit)
    codes = [round(float((number * unit - low * unit) * inverse)) for number in block]
    return np.array(codes), low, own


def round_trip(x: np.ndarray, bits: int, block: int = 256) -> np.ndarray:
    """What quantising gives back."""
    x = np.asarray(x)
    result = np.empty_like(x)
    for place in np.ndindex(x.shape[:-1]):
        for start in range(0, x.shape[-1], block):
            part = x[place][start : start + block]
            codes, low, scale = quantize_block(part, bits)
            result[place][start : start + block] = codes * scale + low
    return result


# -- DCT-AdamW with every policy ---------------------------------------------------------------


@dataclass
class LowRankAdam:
    """DCT-AdamW of one matrix on columns of a fixed basis; ``step`` returns the full direction.

    What the library has defaults for (``residual_scale``, ``growth``, ``seed_count``) is given by the caller.
    """

    rank: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    basis: str = "dct"
    score: str = "l2"
    refresh_every: int = 1
    side: str = "right"
    residual: str = "sign"
    residual_scale: float = 1.0
    growth: float = math.inf
    feedback_bits: int | None = None
    selection: str = "top"
    score_decay: float | None = None
    hysteresis: float = 0.0
    bias_correction: str = "step"
    seed_count: int = 0
    seed: int = 0
    stream: int = 0
    entry: int = 0
    count: int = 0
    columns: list[int] = field(default_factory=list)
    first: dict[int, np.ndarray] = field(default_factory=dict)
    second: dict[int, np.ndarray] = field(default_factory=dict)
    ages: dict[int, int] = field(default_factory=dict)
    feedback: np.ndarray | float = 0.0
    residual_norm: float = 0.0
    mean_squares: list[np.ndarray] = field(default_factory=list)
    #: Smallest relative distance, over all refreshes, from the last column chosen to the first left out.
    margin: float = math.inf
    #: What the step left out of its subspace, for tests that look at it.
    left_out: np.ndarray | None = None

    def step(self, gradient: np.ndarray) -> np.ndarray:
        left = self.side == "left"
        whole = np.asarray(gradient, dtype=np.float64) + self.feedback
        g = whole.T if left else whole
        q = basis(self.basis, g.shape[1])
        s = g @ q
        self.count += 1
        refresh = self.count == 1 or self.count % self.refresh_every == 0
        if refresh or self.residual in ("scaled", "normalized"):
            self.mean_squares.append((s * s).mean(axis=0))
        if refresh:
            self._choose(s)
        u, a = self._directions(s)
        chosen = q[:, self.columns]
        rest = g - a @ chosen.T
        direction = u @ chosen.T + self._of_residual(rest, s, u, a, q)
        self.left_out = rest.T if left else rest
        if self.residual == "error_feedback":
            kept = self.left_out
            bits = self.feedback_bits
            self.feedback = kept if bits is None else round_trip(kept, bits)
        return direction.T if left else direction

    def energy(self) -> np.ndarray:
        """The weighted mean of all mean squares seen, the newest with weight one."""
        decay = self.betas[1] if self.score_decay is None else self.score_decay
        weights = decay ** np.arange(len(self.mean_squares))[::-1]
        return weights @ np.array(self.mean_squares) / weights.sum()

    def _choose(self, s: np.ndarray) -> None:
        if self.score_decay is not None:
            scores = np.sqrt(self.energy())
        elif self.score == "l1":
            scores = np.abs(s).sum(axis=0)
        else:
            scores = np.sqrt((s * s).sum(axis=0))
        scores = scores.copy()
        scores[self.columns] *= 1 + self.hysteresis
        if self.selection == "sampled":
            key = fold(make_key(self.seed, self.stream, self.entry), self.count)
            scores = np.log(scores) - np.log(-np.log(uniform(key, len(scores))))
        chosen = [int(j) for j in best_columns(scores, self.rank)]
        if self.rank < len(scores):
            ordered = np.sort(scores)[::-1]
            gap = ordered[self.rank - 1] - ordered[self.rank]
            self.margin = min(self.margin, float(gap / abs(ordered[self.rank - 1])))
        zero, start = np.zeros(len(s)), dict.fromkeys(chosen, 0.0)
        if self.bias_correction == "gentle":
            weight = 1 - self.betas[1] ** self.seed_count
            start = {j: weight * self.energy()[j] for j in chosen}
        self.first = {j: self.first.get(j, zero) for j in chosen}
        self.second = {j: self.second.get(j, zero + start[j]) for j in chosen}
        self.ages = {j: self.ages.get(j, 0) for j in chosen}
        self.columns = chosen

    def _directions(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        beta1, beta2 = self.betas
        directions = []
        for j in self.columns:
            a = s[:, j]
            self.ages[j] += 1
            self.first[j] = beta1 * self.first[j] + (1 - beta1) * a
            self.second[j] = beta2 * self.second[j] + (1 - beta2) * a * a
            age = self.ages[j]
            weights = {
                "step": (1 - beta1**self.count, 1 - beta2**self.count),
                "column": (1 - beta1**age, 1 - beta2**age),
                "gentle": (1.0, 1 - beta2 ** (age + self.seed_count)),
            }[self.bias_correction]
            root = np.sqrt(self.second[j] / weights[1])
            directions.append(self.first[j] / weights[0] / (root + self.eps))
        return np.stack(directions, axis=1), s[:, self.columns]

    def _of_residual(
        self, rest: np.ndarray, s: np.ndarray, u: np.ndarray, a: np.ndarray, q: np.ndarray
    ) -> np.ndarray:
        if self.residual == "sign":
            return self.residual_scale * np.sign(rest)
        if self.residual == "scaled":
            scaled = np.zeros_like(rest)
            for i, row in enumerate(rest):
                size = np.linalg.norm(a[i])
                ratio = np.linalg.norm(u[i]) / size if size > 0 else 0.0
                scaled[i] = self.residual_scale * ratio * row
            norm = float(np.linalg.norm(scaled))
            if 0 < self.residual_norm * self.growth < norm:
                scaled *= self.residual_norm * self.growth / norm
                norm = self.residual_norm * self.growth
            self.residual_norm = norm
            return scaled
        if self.residual == "normalized":
            added = np.zeros_like(rest)
            roots = np.sqrt(self.energy())
            for j in range(len(roots)):
                if j not in self.columns:
                    factor = self.residual_scale / (roots[j] + self.eps)
                    added += factor * np.outer(s[:, j], q[:, j])
            return added
        return np.zeros_like(rest)


# -- Trion -------------------------------------------------------------------------------------


@dataclass
class Trion:
    """Trion of one matrix; ``step`` returns the full direction."""

    rank: int
    momentum: float = 0.85
    basis: str = "dct"
    score: str = "l2"
    side: str = "right"
    steps: int = 5
    coefficients: str = "muon"
    scale: str = "none"
    rank_scaling: bool = False
    update_scale: float = 1.0
    row_decay: float | None = None
    momentum_bits: int | None = None
    buffer: np.ndarray | float = 0.0
    row_squares: np.ndarray | float = 0.0
    columns: list[int] = field(default_factory=list)
    margin: float = math.inf

    def step(self, gradient: np.ndarray) -> np.ndarray:
        whole = self.buffer + np.asarray(gradient, dtype=np.float64)
        m, n = whole.shape
        b = whole.T if self.side == "left" else whole
        q = basis(self.basis, b.shape[1])
        s = b @ q
        scores = (np.abs(s) ** (1 if self.score == "l1" else 2)).sum(axis=0)
        self.columns = [int(j) for j in best_columns(scores, self.rank)]
        if self.rank < len(scores):
            ordered = np.sort(scores)[::-1]
            gap = ordered[self.rank - 1] - ordered[self.rank]
            self.margin = min(self.margin, float(gap / ordered[self.rank - 1]))
        low, chosen = s[:, self.columns], q[:, self.columns]
        left_over = b - (1 - self.momentum) * low @ chosen.T
        left_over = left_over.T if self.side == "left" else left_over
        bits = self.momentum_bits
        self.buffer = left_over if bits is None else round_trip(left_over, bits)
        # The same polynomials whichever way round the matrix lies.
        direction = orthogonalize(low, self.steps, self.coefficients) @ chosen.T
        if self.row_decay is not None:
            length, share = np.linalg.norm(direction), 1 - self.row_decay
            mean = (direction**2).sum(axis=1, keepdims=True) / self.rank
            self.row_squares = self.row_decay * self.row_squares + share * mean
            direction = direction / np.sqrt(self.row_squares)
            direction = direction * (length / np.linalg.norm(direction))
        factor = {
            "none": 1.0,
            "spectral": max(1.0, m / n) ** 0.5,
            "dion": (m / n) ** 0.5,
            "rms": 0.2 * max(m, n) ** 0.5,
        }[self.scale]
        if self.rank_scaling:
            factor *= (len(scores) / self.rank) ** 0.5
        direction = self.update_scale * factor * direction
        return direction.T if self.side == "left" else direction

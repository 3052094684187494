"""Trion on one screen, in NumPy alone: Muon whose update is orthonormalised on r columns of a fixed basis.

The trajectory is that of lowrank_core to rounding.
"""

import numpy as np
from dct_adamw_simple import dct_basis


def orthogonalize(b, steps=5):
    """Return b with its singular values brought near 1: b <- b (c0 I + c1 K + c2 K^2), K = b^T b, from b / ||b||_F."""
    b = b / (np.linalg.norm(b) or 1.0)
    for _ in range(steps):
        K = b.T @ b
        b = 3.4445 * b + b @ (-4.7750 * K + 2.0315 * K @ K)
    return b


class Trion:
    """Steps one m x n matrix, n <= m; a wide one is stepped as its transpose."""

    def __init__(self, shape, rank, lr=1e-2, mu=0.85, decay=0.0):
        self.Q, self.r = dct_basis(shape[1]), rank
        self.lr, self.mu, self.decay, self.scale = (
            lr,
            mu,
            decay,
            max(1.0, shape[0] / shape[1]) ** 0.5,
        )
        self.M = np.zeros(shape)  # momentum, and what earlier steps left out

    def step(self, W, G):
        """Return the weights after one step on the gradient G."""
        # B = M + G;  S = B Q;  I = the r columns of S with the largest norms
        B = self.M + G
        S = B @ self.Q
        I = np.sort(np.argsort(-np.linalg.norm(S, axis=0), kind="stable")[: self.r])
        b, Q_I = S[:, I], self.Q[:, I]
        # M <- B - (1 - mu) b Q_I^T: what is used is used up by 1 - mu, what is left out stays
        self.M = B - (1 - self.mu) * b @ Q_I.T
        # W <- (1 - lr decay) W - lr sqrt(max(1, m/n)) orthogonalize(b) Q_I^T
        update = self.scale * orthogonalize(b) @ Q_I.T
        return (1 - self.lr * self.decay) * W - self.lr * update


if __name__ == "__main__":
    random = np.random.default_rng(0)
    X, target = random.normal(size=(256, 48)), random.normal(size=(64, 48))
    W, optimizer = np.zeros((64, 48)), Trion((64, 48), rank=24, lr=0.1)
    print(f"loss {np.mean((X @ (W - target).T) ** 2):.3f} before")
    for _ in range(300):
        W = optimizer.step(W, (X @ (W - target).T).T @ X / len(X))
    print(
        f"loss {np.mean((X @ (W - target).T) ** 2):.3f} after 300 steps, state {optimizer.M.size} numbers"
    )

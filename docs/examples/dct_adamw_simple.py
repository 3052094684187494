"""DCT-AdamW on one screen, in NumPy alone: AdamW whose moments are kept for r columns of a fixed basis.

What lowrank_core does besides (fast transforms, stacks, other bases and policies, narrow state) is left out; the
trajectory is the same to rounding.
"""

import numpy as np


def dct_basis(n):
    """Return the orthonormal DCT-II basis: Q[i, j] = c_j sqrt(2/n) cos(pi j (2i + 1) / 2n), c_0 = 1/sqrt(2)."""
    i, j = np.arange(n)[:, None], np.arange(n)
    return (
        np.where(j == 0, 0.5**0.5, 1.0) * np.sqrt(2 / n) * np.cos(np.pi * j * (2 * i + 1) / (2 * n))
    )


class DCTAdamW:
    """Steps one m x n matrix, n <= m; a wide one is stepped as its transpose."""

    def __init__(self, shape, rank, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, decay=0.0, rho=0.2):
        m, n = shape
        self.Q, self.r, self.t = dct_basis(n), rank, 0
        self.lr, self.betas, self.eps, self.decay, self.rho = lr, betas, eps, decay, rho
        self.I = np.arange(rank)  # the chosen columns
        self.m, self.v = np.zeros((m, rank)), np.zeros((m, rank))  # Adam's moments in them

    def step(self, W, G):
        """Return the weights after one step on the gradient G."""
        self.t += 1
        b1, b2 = self.betas
        # S = G Q: the gradient's coefficients on all basis vectors.
        S = G @ self.Q
        # I = the r columns of S with the largest norms, ascending; of equal ones the lower index.
        I = np.sort(np.argsort(-np.linalg.norm(S, axis=0), kind="stable")[: self.r])
        # Moments of columns that stay are kept, those of newcomers start at zero: Q_old^T Q_new is a 0/1 matrix.
        R = (self.I[:, None] == I).astype(float)
        self.m, self.v, self.I = self.m @ R, self.v @ R, I
        # a = S_I;  m <- b1 m + (1 - b1) a;  v <- b2 v + (1 - b2) a^2
        a = S[:, I]
        self.m = b1 * self.m + (1 - b1) * a
        self.v = b2 * self.v + (1 - b2) * a**2
        # u = m_hat / (sqrt(v_hat) + eps), each moment divided by its weight 1 - b^t
        u = (self.m / (1 - b1**self.t)) / (np.sqrt(self.v / (1 - b2**self.t)) + self.eps)
        # What the chosen columns leave of the gradient is stepped along its sign, times rho.
        Q_I = self.Q[:, I]
        update = u @ Q_I.T + self.rho * np.sign(G - a @ Q_I.T)
        # W <- (1 - lr decay) W - lr (u Q_I^T + rho sign(G - a Q_I^T))
        return (1 - self.lr * self.decay) * W - self.lr * update


if __name__ == "__main__":
    random = np.random.default_rng(0)
    X, target = random.normal(size=(256, 48)), random.normal(size=(64, 48))
    W, optimizer = np.zeros((64, 48)), DCTAdamW((64, 48), rank=12)
    print(f"loss {np.mean((X @ (W - target).T) ** 2):.3f} before")
    for _ in range(300):
        W = optimizer.step(W, (X @ (W - target).T).T @ X / len(X))
    print(
        f"loss {np.mean((X @ (W - target).T) ** 2):.3f} after 300 steps, state {optimizer.m.size * 2} numbers"
    )

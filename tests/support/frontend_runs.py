"""The two frontends behind one interface: an optimizer of one weight, whose gradients and values are NumPy's.

A stack of matrices has its stacking dimension first. The JAX parameter is stored transposed, inputs by outputs, as
Flax stores a kernel, so that what is compared is never one memory layout by accident.
"""

from __future__ import annotations

import io
from typing import Any

import jax
import lowrank_jax
import lowrank_torch
import numpy as np
import optax
import torch
from helpers import from_numpy, to_numpy
from jax import numpy as jnp

NAMES = ("dct_adamw", "trion")


class TorchRun:
    """An optimizer of `lowrank_torch` on one weight."""

    library = torch

    def __init__(self, name: str, weight: Any, dtype: str, lr: float, **options: Any) -> None:
        kind = {"dct_adamw": lowrank_torch.DCTAdamW, "trion": lowrank_torch.Trion}[name]
        self.parameter = torch.nn.Parameter(from_numpy(weight, torch, dtype))
        self.optimizer = kind([self.parameter], lr=lr, batch_dims=weight.ndim - 2, **options)

    def step(self, gradient: Any) -> Any:
        """Do a step and return the gradient after it."""
        self.parameter.grad = from_numpy(gradient, torch).to(self.parameter.dtype)
        self.optimizer.step()
        return to_numpy(self.parameter.grad)

    def value(self) -> Any:
        """The weight, outputs by inputs."""
        return self.parameter.detach()

    def saved(self) -> bytes:
        """All there is to resume from."""
        buffer = io.BytesIO()
        torch.save({"p": self.parameter.detach(), "o": self.optimizer.state_dict()}, buffer)
        return buffer.getvalue()

    def load(self, saved: bytes) -> None:
        """Go on where ``saved`` was."""
        loaded = torch.load(io.BytesIO(saved), weights_only=True)
        self.parameter.data.copy_(loaded["p"])
        self.optimizer.load_state_dict(loaded["o"])


class JaxRun:
    """A transformation of `lowrank_jax` on one kernel, which is the weight transposed."""

    library = jnp

    def __init__(self, name: str, weight: Any, dtype: str, lr: float, **options: Any) -> None:
        kind = {"dct_adamw": lowrank_jax.dct_adamw, "trion": lowrank_jax.trion}[name]
        axes = lowrank_jax.MatrixAxes(outputs=-1, inputs=-2)
        self.kernel = jnp.matrix_transpose(from_numpy(weight, jnp, dtype))
        self.optimizer = kind(lr, matrix_axes=axes, **options)
        self.state = self.optimizer.init(self.kernel)
        self.traces = 0

        def step(kernel: Any, state: Any, gradient: Any) -> Any:
            self.traces += 1
            updates, state = self.optimizer.update(gradient, state, kernel)
            return optax.apply_updates(kernel, updates), state

        self.compiled = jax.jit(step)

    def step(self, gradient: Any) -> Any:
        """Do a step and return the gradient after it."""
        given = jnp.matrix_transpose(from_numpy(gradient, jnp)).astype(self.kernel.dtype)
        self.kernel, self.state = self.compiled(self.kernel, self.state, given)
        return to_numpy(jnp.matrix_transpose(given))

    def value(self) -> Any:
        """The weight, outputs by inputs."""
        return jnp.matrix_transpose(self.kernel)

    def saved(self) -> bytes:
        """All there is to resume from."""
        buffer = io.BytesIO()
        leaves = jax.tree.leaves((self.kernel, self.state))
        # As bytes: NumPy's files know no bfloat16.
        np.savez(buffer, *(np.frombuffer(np.asarray(leaf).tobytes(), np.uint8) for leaf in leaves))
        return buffer.getvalue()

    def load(self, saved: bytes) -> None:
        """Go on where ``saved`` was."""
        current, treedef = jax.tree.flatten((self.kernel, self.state))
        files = np.load(io.BytesIO(saved))
        arrays = [files[name] for name in files.files]
        leaves = [
            jnp.asarray(array.view(leaf.dtype).reshape(leaf.shape))
            for array, leaf in zip(arrays, current, strict=True)
        ]
        self.kernel, self.state = jax.tree.unflatten(treedef, leaves)


FRONTENDS = {"torch": TorchRun, "jax": JaxRun}

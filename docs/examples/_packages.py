"""Others' packages, each imported by the one module that is needed.

They come from PyPI, by `pip install --no-deps`: what their packages need besides (CUDA extensions, Transformers,
bitsandbytes, Weights & Biases) need not be there.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from _rivals import Rival
from torch import Tensor
from torch.optim import Optimizer

#: What packages import of Transformers and do not need.
TRANSFORMERS = ("transformers", "transformers.utils", "transformers.utils.versions")


class MissingPackageError(Exception):
    """A package that is compared with is not installed; the message is what to do."""


def load(module: str, *, stubbed: Sequence[str] = ()) -> Any:
    """Import one module of a package without what the package itself imports.

    `stubbed` modules stand in for packages of which the module needs but the name.
    """
    package = module.split(".", maxsplit=1)[0]
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None:
            name = package.replace("_", "-")
            raise MissingPackageError(f"not installed: pip install --no-deps {name}")
        bare = types.ModuleType(package)
        bare.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[package] = bare
    added = []
    for name in stubbed:
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].require_version = lambda *_: None  # type: ignore[attr-defined]
            added.append(name)
    try:
        return importlib.import_module(module)
    finally:
        for name in added:
            del sys.modules[name]


class Packaged(Rival):
    """Hidden matrices stepped by an optimizer of another package; all else by Adam, as for every method."""

    def __init__(
        self, make: Callable[..., Optimizer], groups: Any, lr: float, betas: tuple[float, float]
    ) -> None:
        super().__init__(groups, lr, betas)
        self.inner = {
            id(group["params"]): make(group["params"], lr, betas)
            for group in self.param_groups
            if group["algorithm"] != "adamw"
        }

    def step_matrices(self, group: dict[str, Any]) -> None:
        """Step the hidden matrices of a group."""
        inner = self.inner[id(group["params"])]
        for own in inner.param_groups:
            own["lr"] = group["lr"]
        inner.step()
        self.state.update(inner.state)


def rank_of(params: list[Tensor]) -> int:
    """A quarter of the smaller side, the same for all hidden matrices of the study's models."""
    return min(params[0].shape) // 4


def galore(params: list[Tensor], lr: float, betas: tuple[float, float]) -> Optimizer:
    """GaLore by its authors, updates as they come."""
    module = load("galore_torch.adamw", stubbed=TRANSFORMERS)
    options = {"rank": rank_of(params), "update_proj_gap": 50, "scale": 1.0, "proj_type": "std"}
    optimizer: Optimizer = module.AdamW(
        [{"params": params, **options}], lr=lr, betas=betas, no_deprecation_warning=True
    )
    return optimizer


def apollo(params: list[Tensor], lr: float, betas: tuple[float, float]) -> Optimizer:
    """APOLLO by its authors, updates as they come."""
    module = load("apollo_torch.apollo", stubbed=TRANSFORMERS)
    options = {"rank": rank_of(params), "update_proj_gap": 200, "scale": 1.0, "proj_type": "std"}
    group = {"params": params, **options, "proj": "random", "scale_type": "channel"}
    optimizer: Optimizer = module.AdamW([group], lr=lr, betas=betas)
    return optimizer


def paper(params: list[Tensor], lr: float, betas: tuple[float, float]) -> Optimizer:
    """DCT-AdamW by its authors, with error feedback."""
    module = load("ista_daslab_optimizers.fft_low_rank.dct_adamw")
    options = {"rank": rank_of(params), "proj": "dct", "use_ef": True, "rotate_subspace": True}
    optimizer: Optimizer = module.DCTAdamW(params, lr, 0.0, betas=betas, **options)
    return optimizer


def stable_spam(params: list[Tensor], lr: float, betas: tuple[float, float]) -> Optimizer:
    """Adam that clips spikes and forgets its moments now and then, by the collection `pytorch-optimizer`."""
    module = load("pytorch_optimizer.optimizer.spam")
    optimizer: Optimizer = module.StableSPAM(params, lr=lr, betas=betas)
    return optimizer

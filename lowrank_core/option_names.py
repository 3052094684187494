"""What an unknown option is: a misspelt one, or one that another optimizer calls otherwise.

The frontends answer with it, and the page on migrating lists it.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple


class Foreign(NamedTuple):
    """An option of other optimizers."""

    #: Whose it is.
    owner: str
    #: What to do about it here.
    remedy: str


_LEAVE = "leave it out"

#: Options of other optimizers by their names there.
FOREIGN = {
    "amsgrad": Foreign("AdamW", f"{_LEAVE}: there is no such variant here"),
    "capturable": Foreign("PyTorch", f"{_LEAVE}: under jax.jit a step never waits for the host"),
    "differentiable": Foreign("AdamW", f"{_LEAVE}: a step is not differentiated through"),
    "fused": Foreign("AdamW", f"{_LEAVE}: what can be stepped together is ('foreach')"),
    "momentum": Foreign("Muon and Trion", "the decay of the first moment is betas[0]"),
    "nesterov": Foreign("Muon", f"{_LEAVE}: Trion steps on momentum plus gradient already"),
    "ns_steps": Foreign("Muon", "Trion calls it 'steps'"),
    "ns_coefficients": Foreign(
        "Muon", "Trion's 'coefficients' names a set: 'muon', 'polar_express'"
    ),
    "adjust_lr_fn": Foreign(
        "Muon", "Trion's 'scale': 'spectral' for 'original', 'rms' for 'match_rms_adamw'"
    ),
    "use_muon": Foreign("Muon", "groups that are to get AdamW say algorithm='adamw'"),
    "mu": Foreign("Dion", "Trion calls it 'momentum'"),
    "rank_fraction": Foreign("Dion", "'rank' takes fractions"),
    "rank_multiple_of": Foreign("Dion", f"{_LEAVE}, and give 'rank' as a number"),
    "epsilon": Foreign("Dion", "use 'eps'"),
    "update_proj_gap": Foreign(
        "GaLore, APOLLO and Fira", "use 'refresh_every'; 1 costs no SVD here"
    ),
    "proj_type": Foreign("GaLore, APOLLO and Fira", "use 'side'; 'auto' is their 'std'"),
    "scale": Foreign("GaLore and APOLLO", "use 'update_scale'"),
    "proj": Foreign("APOLLO and the paper's code", "use 'basis'"),
    "scale_type": Foreign("APOLLO", f"{_LEAVE}: every kept number has a moment of its own here"),
    "alpha": Foreign("Fira", "use residual='scaled' with 'residual_scale'"),
    "correct_bias": Foreign("GaLore", "use 'bias_correction'"),
    "no_deprecation_warning": Foreign("GaLore", _LEAVE),
    "use_ef": Foreign("the paper's code", "use residual='error_feedback'"),
    "q_ef": Foreign("the paper's code", "use residual='error_feedback' with feedback_bits=8 or 4"),
    "sim_type": Foreign("the paper's code", "use 'method': 'matmul' or 'fft'"),
    "ell_norm": Foreign("the paper's code", "use 'score': 'l1' or 'l2'"),
    "rotate_subspace": Foreign(
        "the paper's code", f"{_LEAVE}: moments always move with their columns"
    ),
    "max_shape": Foreign("the paper's code", f"{_LEAVE}: for_model tells embeddings by their role"),
    "lr": Foreign("PyTorch", "use 'learning_rate'"),
    "learning_rate": Foreign("Optax", "use 'lr'"),
    "b1": Foreign("Optax", "use betas=(b1, b2)"),
    "b2": Foreign("Optax", "use betas=(b1, b2)"),
    "betas": Foreign("PyTorch", "use 'b1' and 'b2'"),
}
#: Those that stand in parameter groups where they are used, and that no scheduler, trainer or wrapper puts there.
IN_GROUPS = (
    "update_proj_gap",
    "proj_type",
    "scale_type",
    "rank_fraction",
    "adjust_lr_fn",
)


def unknown_option(where: str, option: str, known: Iterable[str]) -> str:
    """Return what to say of an option that ``where`` does not have: what was meant, and all that it has."""
    allowed = sorted(known)
    said = f"{where} has no option {option!r}"
    if option in FOREIGN:
        owner, remedy = FOREIGN[option]
        said += f", which is one of {owner}: {remedy}"
    elif near := get_close_matches(option, allowed, n=1, cutoff=0.6):
        said += f"; did you mean {near[0]!r}?"
    return f"{said} (its options are {', '.join(allowed)})"

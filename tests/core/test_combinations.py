"""Options combine freely, or say clearly why they cannot: a walk through the table of all of them."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from helpers import dtype_name, from_numpy, normal

import lowrank_core as lc

# One row an option, one column a value; a value sets one or several fields of the configuration.
TABLE = {
    "basis": {
        name: {"basis": name}
        for name in (
            "dct",
            "dct3",
            "hartley",
            "hadamard",
            "haar",
            "legendre",
            "random",
            "identity",
            "svd",
            "power",
        )
    },
    "residual": {
        "discard": {"residual": "discard"},
        "feedback": {"residual": "error_feedback"},
        "feedback8": {"residual": "error_feedback", "feedback_bits": 8},
        "feedback4": {"residual": "error_feedback", "feedback_bits": 4},
        "sign": {"residual": "sign"},
        "scaled": {"residual": "scaled"},
        "normalized": {"residual": "normalized"},
    },
    "side": {side: {"side": side} for side in ("auto", "left", "right")},
    "score": {
        "l1": {"score": "l1"},
        "l2": {"score": "l2"},
        "running": {"score": "l2", "score_decay": 0.9},
    },
    "selection": {
        "top": {"selection": "top"},
        "sampled": {"selection": "sampled"},
        "inert": {"selection": "top", "hysteresis": 0.3},
    },
    "correction": {name: {"bias_correction": name} for name in ("step", "column", "gentle")},
    "refresh": {"every": {"refresh_every": 1}, "sixth": {"refresh_every": 6}},
    "dtype": {"float32": {}, "bfloat16": {"state_dtype": "bfloat16"}},
}
STEPS = 20
RANK = 3
BYTES = {"float32": 4, "int32": 4, "bfloat16": 2, "uint8": 1}


def combinations(basis):
    """Every choice of a value for each option, the basis being given."""
    rows = [[basis] if option == "basis" else list(TABLE[option]) for option in TABLE]
    return [dict(zip(TABLE, values, strict=True)) for values in itertools.product(*rows)]


def covering(basis):
    """A share of them in which every three values of different options still meet."""
    levels = {option: {value: i for i, value in enumerate(TABLE[option])} for option in TABLE}
    weights = dict(zip(TABLE, (34, 18, 34, 16, 14, 27, 18, 29), strict=True))
    chosen = []
    for combination in combinations(basis):
        total = sum(
            weights[option] * levels[option][value] for option, value in combination.items()
        )
        if total % 37 == 0:
            chosen.append(combination)
    return chosen


def options_of(combination):
    return {
        field: value
        for option, name in combination.items()
        for field, value in TABLE[option][name].items()
    }


def reason_against(combination):
    """The option that cannot go with a basis computed from the gradient, if there is one."""
    if combination["basis"] not in ("svd", "power"):
        return None
    reasons = {
        "residual": combination["residual"] == "normalized",
        "score": combination["score"] == "l1",
        "selection": combination["selection"] == "sampled",
        "hysteresis": combination["selection"] == "inert",
        "score_decay": combination["score"] == "running",
        "bias_correction": combination["correction"] != "step",
    }
    return next((option for option, holds in reasons.items() if holds), None)


def walk(combination, torch):
    """Twenty steps of one combination; the error is the message of an assertion that names it."""
    shape = (8, 16) if combination["basis"] == "hadamard" else (12, 8)
    options = options_of(combination)
    reason = reason_against(combination)
    if reason is not None:
        with pytest.raises(ValueError, match=rf"^{reason} must be .*basis='") as caught:
            lc.DCTAdamWConfig(rank=RANK, **options)
        assert repr(options.get(reason)) in str(caught.value)
        return "refused"
    config = lc.DCTAdamWConfig(rank=RANK, **options)
    dtype = getattr(torch, combination["dtype"])
    state = lc.dct_adamw_init(shape, config, xp=torch, dtype=dtype)
    spec = config.state_spec(shape)
    gradients = [from_numpy(normal(*shape, seed=t), torch).to(dtype) for t in range(4)]
    copies = [gradient.clone() for gradient in gradients]
    for t in range(STEPS):
        update, state = lc.dct_adamw_step(gradients[t % 4], state, config)
        full = lc.materialize(update)
        assert full.shape == shape, combination
        assert full.dtype == torch.float32, combination
        assert torch.isfinite(full).all(), combination
    arrays = {k: v for k, v in state._asdict().items() if k != "step" and v is not None}
    found = {name: (tuple(a.shape), dtype_name(a)) for name, a in arrays.items()}
    assert found == {name: (entry.shape, entry.dtype) for name, entry in spec.items()}, combination
    held = sum(a.numel() * a.element_size() for a in arrays.values())
    assert held == lc.state_bytes(shape, config), combination
    assert held == sum(math.prod(s) * BYTES[kind] for s, kind in found.values()), combination
    assert all(torch.isfinite(a).all() for a in arrays.values()), combination
    assert (state.second_moment >= 0).all(), combination
    assert state.step == STEPS, combination
    assert all(map(torch.equal, gradients, copies)), combination
    return "stepped"


@pytest.mark.parametrize("basis", TABLE["basis"])
def test_options_combine_or_say_why_not(torch, basis):
    outcomes = Counter(walk(combination, torch) for combination in covering(basis))
    assert outcomes["stepped"] > 1
    assert (outcomes["refused"] > 1) == (basis in ("svd", "power"))


@pytest.mark.slow
@pytest.mark.parametrize("basis", TABLE["basis"])
def test_all_options_combine_or_say_why_not(torch, basis):
    # Every combination but for the corrections, which take turns, and hysteresis.
    turns = itertools.cycle(TABLE["correction"])
    every = [
        c | {"correction": "step" if basis in ("svd", "power") else next(turns)}
        for c in combinations(basis)
        if c["correction"] == "step" and c["selection"] != "inert"
    ]
    outcomes = Counter(walk(combination, torch) for combination in every)
    assert outcomes.total() == 7 * 3 * 3 * 2 * 2 * 2
    assert (outcomes["refused"] > 0) == (basis in ("svd", "power"))


def test_the_covering_share_lets_every_three_values_meet():
    chosen = [c for basis in TABLE["basis"] for c in covering(basis)]
    assert len(chosen) < len(TABLE["basis"]) * len(combinations("dct")) / 30
    for three in itertools.combinations(TABLE, 3):
        seen = {tuple(c[option] for option in three) for c in chosen}
        assert seen == set(itertools.product(*(TABLE[option] for option in three))), three


@pytest.mark.parametrize("basis", [name for name in TABLE["basis"] if name not in ("svd", "power")])
def test_options_of_trion_combine(torch, basis):
    rows = {
        "side": ("auto", "left", "right"),
        "score": ("l1", "l2"),
        "coefficients": ("muon", "polar_express"),
        "scale": ("spectral", "rms"),
        "momentum_bits": (None, 8, 4),
        "row_decay": (None, 0.9),
        "update_scale": (1.0, 2.0),
        "state_dtype": (None, "bfloat16"),
    }
    shape = (8, 16) if basis == "hadamard" else (12, 8)
    gradients = [from_numpy(normal(*shape, seed=t), torch, "float32") for t in range(4)]
    copies = [gradient.clone() for gradient in gradients]
    stepped = 0
    for values in itertools.product(*rows.values()):
        options = dict(zip(rows, values, strict=True))
        config = lc.TrionConfig(rank=RANK, basis=basis, **options)
        state = lc.trion_init(shape, config, xp=torch)
        for gradient in gradients:
            update, state = lc.trion_step(gradient, state, config)
            full = lc.materialize(update)
            assert full.shape == shape, options
            assert torch.isfinite(full).all(), options
            # Three singular values near one, scaled; nothing else.
            scale = 1.5**0.5 if options["scale"] == "spectral" else 0.2 * 12**0.5
            norm = float(full.norm()) / scale / options["update_scale"]
            assert basis == "hadamard" or 0.3 < norm < 1.3 * RANK**0.5, options
        arrays = [a for name, a in state._asdict().items() if name != "step" and a is not None]
        held = sum(a.numel() * a.element_size() for a in arrays)
        assert held == lc.state_bytes(shape, config), options
        assert all(map(torch.equal, gradients, copies)), options
        stepped += 1
    assert stepped == np.prod([len(values) for values in rows.values()])

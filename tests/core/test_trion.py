"""Trion: the core's step against a slow oracle, and the PyTorch optimizer's blocks, groups and state."""

import copy

import numpy as np
import oracles_family
import pytest
from family_cases import gradients, steps
from helpers import (
    assert_close,
    assert_identical,
    dtype_name,
    from_numpy,
    normal,
    to_numpy,
    untouched,
)

import lowrank_core as lc
from lowrank_core.layout import layout_of

SCALES = {
    "none": lambda m, n: 1.0,
    "spectral": lambda m, n: max(1.0, m / n) ** 0.5,
    "dion": lambda m, n: (m / n) ** 0.5,
    "rms": lambda m, n: 0.2 * max(m, n) ** 0.5,
}


def oracle_of(config, shape):
    names = ("rank", "momentum", "basis", "score", "steps", "coefficients", "scale")
    names += ("rank_scaling", "update_scale", "row_decay", "momentum_bits")
    layout = layout_of(shape, rank=config.rank, side=config.side)
    return oracles_family.Trion(
        **{name: getattr(config, name) for name in names},
        side="right" if layout.axis == -1 else "left",
    )


OPTIONS = [
    {},
    {"side": "left", "momentum": 0.8, "score": "l1"},
    {"basis": "haar", "coefficients": "polar_express", "steps": 6},
    {"basis": "random:3", "scale": "rms", "rank_scaling": True, "momentum": 0.0},
    {"momentum_bits": 8, "scale": "dion"},
    {"momentum_bits": 4, "side": "left", "steps": 3},
    {"row_decay": 0.9, "side": "left"},
    {"row_decay": 0.5, "side": "right", "momentum_bits": 8, "scale": "dion"},
    {"update_scale": 2.5, "side": "left"},
    dict(lc.TRION_PRESETS["best"]),
]


@pytest.mark.parametrize("shape", [(11, 7), (7, 11)])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_does_as_the_oracle(xp, options, shape):
    config = lc.TrionConfig(rank=3, **options)
    oracle, choices = oracle_of(config, shape), set()
    sequence = gradients(8, *shape)
    for gradient, (full, update, state) in zip(sequence, steps(config, sequence, xp), strict=True):
        expected = oracle.step(gradient)
        np.testing.assert_array_equal(to_numpy(update.indices), oracle.columns)
        assert_close(full, expected, xp=xp, dtype="float64", kind="trajectory")
        choices.add(tuple(oracle.columns))
        if config.momentum_bits is None:
            assert_close(state.momentum, oracle.buffer, xp=xp, dtype="float64", kind="trajectory")
    assert oracle.margin > 1e-9, "the data must not leave the choice to rounding"
    assert len(choices) > 1, "the data must make columns change"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_thirty_steps_are_the_same_everywhere(xp, dtype):
    config = lc.TrionConfig(rank=4)
    sequence = gradients(30, 14, 9).astype(np.float32).astype(np.float64)
    oracle = oracle_of(config, (14, 9))
    moved = wanted = numpys = 0.0
    runs = (steps(config, sequence, xp, dtype), steps(config, sequence, np, dtype))
    for gradient, (full, update, _), (reference, _, _) in zip(sequence, *runs, strict=True):
        wanted = wanted + oracle.step(gradient)
        moved, numpys = moved + full, numpys + reference
        np.testing.assert_array_equal(to_numpy(update.indices), oracle.columns)
        assert_close(moved, wanted, xp=xp, dtype=dtype, kind="trajectory")
        assert_close(moved, numpys, xp=xp, dtype=dtype, kind="trajectory")
    assert oracle.margin > 1e-5


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(12, 6), (6, 12), (8, 8)])
def test_scales(xp, shape, scale):
    sequence = gradients(1, *shape)
    plain, scaled, ranked = (
        to_numpy(next(steps(lc.TrionConfig(rank=2, **options), sequence, xp))[0])
        for options in ({"scale": "none"}, {"scale": scale}, {"scale": scale, "rank_scaling": True})
    )
    factor = SCALES[scale](*shape)
    np.testing.assert_allclose(scaled, factor * plain, rtol=1e-12)
    np.testing.assert_allclose(ranked, scaled * (min(shape) / 2) ** 0.5, rtol=1e-12)


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_the_preset_moves_as_far_at_every_rank_and_shape(xp, shape):
    # So that one rate, AdamW's, serves all.
    preset = lc.TRION_PRESETS["best"]
    lengths = []
    for rank in (2, 4, 8, 1.0):
        config = lc.TrionConfig(rank=rank, **preset)
        *_, (full, _, _) = steps(config, gradients(20, *shape), xp)
        lengths.append(np.sqrt(np.mean(to_numpy(full) ** 2)))
    # Newton-Schulz leaves singular values of 0.65 to 1.25.
    wanted = 0.2 * preset["update_scale"]
    assert all(0.65 * wanted < length < 1.25 * wanted for length in lengths), lengths


def test_the_default_scale_is_one_of_them(xp):
    config = lc.TrionConfig(rank=2)
    ((full, _, _),) = steps(config, gradients(1, 12, 6), xp)
    ((plain, _, _),) = steps(lc.TrionConfig(rank=2, scale="none"), gradients(1, 12, 6), xp)
    np.testing.assert_allclose(
        to_numpy(full), SCALES[config.scale](12, 6) * to_numpy(plain), rtol=1e-12
    )


@pytest.mark.parametrize("shape", [(11, 7), (7, 11)])
def test_with_all_columns_the_momentum_is_orthonormalised(xp, shape):
    # Then it is Muon (K. Jordan et al., 2024) with a heavy-ball momentum.
    config, momentum = lc.TrionConfig(rank=1.0, momentum=0.9, scale="none"), np.zeros(shape)
    sequence = gradients(4, *shape)
    for gradient, (full, _, state) in zip(sequence, steps(config, sequence, xp), strict=True):
        whole = momentum + gradient
        expected = oracles_family.orthogonalize(whole, config.steps, config.coefficients)
        assert_close(full, expected, xp=xp, dtype="float64", kind="trajectory")
        momentum = 0.9 * whole
        assert_close(state.momentum, momentum, xp=xp, dtype="float64", kind="trajectory")


@pytest.mark.parametrize("bits", [None, 8])
def test_with_all_columns_nothing_is_transformed(xp, bits):
    # So that not a bit depends on the basis.
    sequence = gradients(4, 11, 7)
    runs = [
        steps(lc.TrionConfig(rank=7, basis=basis, momentum_bits=bits), sequence, xp)
        for basis in ("dct", "random:3", "identity")
    ]
    for found in zip(*runs, strict=True):
        for full, _, _ in found[1:]:
            assert_identical(full, found[0][0])


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_zeros_give_zeros(xp, bits):
    config = lc.TrionConfig(rank=2, momentum_bits=bits)
    sequence = [np.zeros((6, 5)), np.zeros((6, 5)), normal(6, 5)]
    found = [to_numpy(full) for full, _, _ in steps(config, sequence, xp, "float32")]
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_array_equal(found[1], 0)
    assert np.isfinite(found[2]).all()
    assert np.abs(found[2]).max() > 0.1


def test_a_stack_is_its_matrices_one_by_one(xp):
    config = lc.TrionConfig(rank=2, side="right")
    sequence = gradients(3, 2, 2, 6, 5)
    sequence[:, 1, 0] = 0.0
    together = [to_numpy(full) for full, _, _ in steps(config, sequence, xp)]
    for place in np.ndindex(2, 2):
        for t, (full, _, _) in enumerate(steps(config, [g[place] for g in sequence], xp)):
            assert_close(full, together[t][place], xp=xp, dtype="float64", kind="trajectory")


def test_momentum_and_feedback_are_one_buffer(xp):
    # What was not applied waits; what was applied fades as momentum does.
    mu, config = 0.9, lc.TrionConfig(rank=2, momentum=0.9)
    buffer = np.zeros((8, 6))
    sequence = gradients(5, 8, 6)
    for gradient, (_, update, state) in zip(sequence, steps(config, sequence, xp), strict=True):
        full = from_numpy(gradient + buffer, xp)
        low = lc.project(full, update.indices)
        used = to_numpy(lc.lift(low, update.indices, 6))
        expected = to_numpy(full) - (1 - mu) * used
        assert_close(state.momentum, expected, xp=xp, dtype="float64")
        buffer = to_numpy(state.momentum)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_state_is_as_large_as_said(xp, bits):
    config = lc.TrionConfig(rank=2, momentum_bits=bits)
    for shape in ((9, 5), (2, 5, 300)):
        rows, columns = int(np.prod(shape[:-1])), shape[-1]
        wanted = {
            None: 4 * rows * columns,
            8: rows * columns + 8 * rows * -(-columns // 256),
            4: rows * -(-columns // 2) + 8 * rows * -(-columns // 256),
        }[bits]
        assert lc.state_bytes(shape, config) == wanted
        sizes = {"float32": 4, "uint8": 1}
        for _, _, state in steps(config, [normal(*shape)] * 2, xp, "float32"):
            arrays = [a for name, a in state._asdict().items() if name != "step" and a is not None]
            assert sum(int(np.prod(a.shape)) * sizes[dtype_name(a)] for a in arrays) == wanted


def test_a_step_writes_to_nothing_it_is_given(xp):
    for bits in (None, 8):
        config = lc.TrionConfig(rank=2, momentum_bits=bits)
        state = lc.trion_init((6, 5), config, xp=xp)
        for _ in range(2):
            gradient = from_numpy(normal(6, 5), xp, "float32")
            given = [a for name, a in state._asdict().items() if name != "step" and a is not None]
            with untouched(gradient, *given):
                update, after = lc.trion_step(gradient, state, config)
                lc.materialize(update)
            assert int(after.step) == int(state.step) + 1
            state = after


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rank": 0}, ValueError, ["rank must be", "0"]),
        ({"momentum": 1.0}, ValueError, ["momentum must be at least 0 and less than 1", "1.0"]),
        ({"scale": "muon"}, ValueError, ["scale must be one of 'none'", "'muon'"]),
        ({"steps": 0}, ValueError, ["steps must be at least 1", "0"]),
        ({"coefficients": "x"}, ValueError, ["coefficients must be one of", "'x'"]),
        ({"momentum_bits": 3}, ValueError, ["momentum_bits must be one of", "3"]),
        ({"row_decay": 1.0}, ValueError, ["row_decay must be at least 0 and less than 1", "1.0"]),
        ({"rank_scaling": "yes"}, ValueError, ["rank_scaling must be one of", "'yes'"]),
        ({"basis": "svd"}, ValueError, ["basis must be one of", "'svd'"]),
        ({"state_dtype": "int8"}, ValueError, ["state_dtype must be one of", "'int8'"]),
    ],
)
def test_a_bad_option_is_named(options, error, words):
    with pytest.raises(error) as caught:
        lc.TrionConfig(**{"rank": 2, **options})
    for word in words:
        assert word in str(caught.value)


def test_a_state_made_for_something_else_is_refused(xp):
    gradient = xp.ones((6, 5), dtype=xp.float32)
    state = lc.trion_init((6, 5), lc.TrionConfig(rank=2), xp=xp)
    with pytest.raises(ValueError, match=r"state must fit.*momentum"):
        lc.trion_step(gradient, state, lc.TrionConfig(rank=2, momentum_bits=4))
    with pytest.raises(ValueError, match=r"state must fit.*\(7, 5\)"):
        lc.trion_step(xp.ones((7, 5), dtype=xp.float32), state, lc.TrionConfig(rank=2))


# -- the PyTorch optimizer ---------------------------------------------------------------------


@pytest.fixture
def optim(torch):
    import lowrank_torch

    return lowrank_torch


def parameter(torch, values, dtype="float32"):
    return torch.nn.Parameter(from_numpy(values, torch, dtype))


def run(optimizer, parameters, sequence, torch):
    """Step on a list of gradients for each parameter at a time."""
    for given in sequence:
        for one, gradient in zip(parameters, given, strict=True):
            one.grad = from_numpy(gradient, torch, dtype_name(one))
        optimizer.step()


TRION = {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1, "rank": 3}


def test_the_optimizer_does_as_the_oracle(torch, optim):
    ours = parameter(torch, normal(10, 6), "float64")
    optimizer = optim.Trion([ours], **TRION)
    sequence = gradients(5, 10, 6)
    config = lc.TrionConfig(rank=3, momentum=0.8)
    oracle, expected = oracle_of(config, (10, 6)), normal(10, 6)
    for gradient in sequence:
        run(optimizer, [ours], [[gradient]], torch)
        expected = expected * (1 - 0.05 * 0.1) - 0.05 * oracle.step(gradient)
        assert_close(ours, expected, xp=torch, dtype="float64", kind="trajectory")


def test_a_rank_above_the_size_orthonormalises_whole(torch, optim):
    matrix, vector = parameter(torch, normal(8, 5)), parameter(torch, normal(5))
    whole = parameter(torch, normal(8, 5))
    above = optim.Trion([matrix, vector], lr=0.1, weight_decay=0.0, rank=64)
    exact = optim.Trion([whole], lr=0.1, weight_decay=0.0, rank=5)
    for t in range(3):
        g = normal(8, 5, seed=t)
        run(above, [matrix, vector], [[g, normal(5, seed=t)]], torch)
        run(exact, [whole], [[g]], torch)
    assert_identical(matrix, whole)
    rows = above.summary()
    assert [row.algorithm for row in rows] == ["trion", "adamw"]
    assert rows[0].rank == 5


def test_adamw_groups_are_torchs_adamw(torch, optim):
    groups = [[parameter(torch, normal(6, 5)), parameter(torch, normal(4))] for _ in range(2)]
    options = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}
    hidden = parameter(torch, normal(6, 5))
    ours = optim.Trion(
        [{"params": groups[0], "algorithm": "adamw", **options}, {"params": [hidden]}], **TRION
    )
    theirs = torch.optim.AdamW(groups[1], **options)
    for t in range(4):
        given = [normal(6, 5, seed=t), normal(4, seed=t)]
        run(ours, [*groups[0], hidden], [[*given, given[0]]], torch)
        run(theirs, groups[1], [given], torch)
    for found, expected in zip(*groups, strict=True):
        assert_close(found, to_numpy(expected), xp=torch, dtype="float32", kind="trajectory")
    assert [row.algorithm for row in ours.summary()] == ["adamw", "adamw", "trion"]


BLOCKS = [
    ({"split_sizes": [4, 2, 6]}, [[slice(0, 4)], [slice(4, 6)], [slice(6, 12)]]),
    ({"num_heads": 3}, [[slice(0, 4), slice(4, 8), slice(8, 12)]]),
    (
        {"split_sizes": [6, 3, 3], "num_heads": 3},
        [[slice(2 * h, 2 * h + 2) for h in range(3)]]
        + [[slice(s + h, s + h + 1) for h in range(3)] for s in (6, 9)],
    ),
    (
        {"split_sizes": [8, 2, 2], "num_heads": [4, 1, 2]},
        [
            [slice(2 * h, 2 * h + 2) for h in range(4)],
            [slice(8, 10)],
            [slice(10, 11), slice(11, 12)],
        ],
    ),
]


@pytest.mark.parametrize(("options", "parts"), BLOCKS)
@pytest.mark.parametrize("name", ["Trion", "DCTAdamW"])
def test_blocks_of_a_fused_matrix_are_parameters_of_their_own(torch, optim, name, options, parts):
    start = normal(12, 7)
    common = {"lr": 0.05, "weight_decay": 0.1, "rank": 2, "side": "right"}
    fused = parameter(torch, start, "float64")
    together = getattr(optim, name)([{"params": [fused], **options}], **common)
    blocks = [block for part in parts for block in part]
    single = [parameter(torch, start[block], "float64") for block in blocks]
    alone = getattr(optim, name)(single, **common)
    for gradient in gradients(5, 12, 7):
        run(together, [fused], [[gradient]], torch)
        run(alone, single, [[gradient[block] for block in blocks]], torch)
        expected = np.concatenate([to_numpy(one) for one in single])
        assert_close(fused, expected, xp=torch, dtype="float64", kind="trajectory")
    # Columns of one choice for all would be another result.
    plain = parameter(torch, start, "float64")
    undivided = getattr(optim, name)([plain], **common)
    run(undivided, [plain], [[gradient] for gradient in gradients(5, 12, 7)], torch)
    assert np.abs(to_numpy(plain) - expected).max() > 1e-3
    assert together.summary()[0].state_bytes == sum(row.state_bytes for row in alone.summary())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"split_sizes": [4, 4]}, ValueError, ["split_sizes must add up", "12", "[4, 4]"]),
        ({"num_heads": 5}, ValueError, ["num_heads must divide", "12", "5"]),
        ({"split_sizes": [6, 6], "num_heads": [2]}, ValueError, ["num_heads must be", "[2]"]),
        ({"split_sizes": 12}, TypeError, ["split_sizes must be a list", "12"]),
        ({"num_heads": 0}, ValueError, ["num_heads must be at least 1", "0"]),
        ({"split_sizes": [12, 0]}, ValueError, ["each of split_sizes", "0"]),
    ],
)
@pytest.mark.parametrize("name", ["Trion", "DCTAdamW"])
def test_a_matrix_that_cannot_be_cut_so_is_refused(torch, optim, name, options, error, words):
    fused = parameter(torch, normal(12, 7))
    with pytest.raises(error) as caught:
        getattr(optim, name)([{"params": [fused], **options}], rank=2)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum_bits": 8},
        {"momentum_bits": 4, "split_sizes": [6, 4]},
        {"state_dtype": "bfloat16", "num_heads": 2},
    ],
)
def test_a_resumed_run_gives_the_same_bits(torch, optim, options, tmp_path):
    def make():
        params = [parameter(torch, normal(10, 6)), parameter(torch, normal(6))]
        return params, optim.Trion(params, **TRION, **options)

    sequence = [[g, normal(6, seed=t)] for t, g in enumerate(gradients(7, 10, 6))]
    params, optimizer = make()
    run(optimizer, params, sequence[:4], torch)
    saved = {"params": [p.detach().clone() for p in params], "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "checkpoint.pt")
    in_memory = copy.deepcopy(saved)
    run(optimizer, params, sequence[4:], torch)
    for loaded in (torch.load(tmp_path / "checkpoint.pt", weights_only=True), in_memory):
        again, resumed = make()
        resumed.load_state_dict(loaded["optimizer"])
        with torch.no_grad():
            for one, value in zip(again, loaded["params"], strict=True):
                one.copy_(value)
        run(resumed, again, sequence[4:], torch)
        for found, expected in zip(again, params, strict=True):
            assert_identical(found, expected)
        for one, other in zip(again, params, strict=True):
            expected = optimizer.state[other]
            assert resumed.state[one].keys() == expected.keys()
            for key, value in resumed.state[one].items():
                if key == "step":
                    assert int(value) == int(expected[key]) == 7
                else:
                    assert_identical(value, expected[key])

"""What becomes of the part of a gradient outside the chosen columns, policy by policy."""

import numpy as np
import pytest
from family_cases import assert_follows_oracle, gradients, steps
from helpers import assert_close, from_numpy, normal, to_numpy

import lowrank_core as lc
from lowrank_core.rules.residuals import DEFAULT_SCALE, GROWTH_LIMIT

POLICIES = [
    {"residual": "discard"},
    {"residual": "sign"},
    {"residual": "scaled"},
    {"residual": "normalized"},
    {"residual": "error_feedback"},
    {"residual": "error_feedback", "feedback_bits": 8},
    {"residual": "error_feedback", "feedback_bits": 4},
]
ADDING = [policy for policy in POLICIES if policy["residual"] in DEFAULT_SCALE]


def ids(policy):
    return policy["residual"] + str(policy.get("feedback_bits", ""))


@pytest.mark.parametrize(("side", "refresh_every"), [("right", 1), ("left", 3)])
@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_every_policy_does_as_the_oracle(xp, policy, side, refresh_every):
    config = lc.DCTAdamWConfig(
        rank=3, betas=(0.8, 0.95), side=side, refresh_every=refresh_every, **policy
    )
    oracle, state = assert_follows_oracle(config, gradients(10, 9, 7), xp)
    if policy == {"residual": "error_feedback"}:
        assert_close(state.feedback, oracle.feedback, xp=xp, dtype="float64", kind="trajectory")
    if policy["residual"] == "scaled":
        assert abs(float(state.residual_norm) - oracle.residual_norm) < 1e-10


@pytest.mark.parametrize("policy", ADDING, ids=ids)
@pytest.mark.parametrize("basis", ["haar", "identity"])
def test_policies_know_other_bases(xp, policy, basis):
    config = lc.DCTAdamWConfig(rank=3, basis=basis, residual_scale=0.7, **policy)
    assert_follows_oracle(config, gradients(6, 9, 7), xp)


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_a_stack_is_its_matrices_one_by_one(xp, policy):
    config = lc.DCTAdamWConfig(rank=2, side="right", refresh_every=2, **policy)
    sequence = gradients(4, 2, 6, 5)
    together = [to_numpy(full) for full, _, _ in steps(config, sequence, xp)]
    for place in range(2):
        alone = steps(config, [gradient[place] for gradient in sequence], xp)
        for t, (full, _, _) in enumerate(alone):
            assert_close(full, together[t][place], xp=xp, dtype="float64", kind="trajectory")


@pytest.mark.parametrize("policy", ADDING, ids=ids)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("xp", ["numpy", "torch"], indirect=True)
def test_what_is_added_is_scaled_as_asked(xp, policy, side):
    sequence = gradients(5, 8, 6)
    plain = lc.DCTAdamWConfig(rank=2, side=side, residual="discard")
    # A large scale would meet the growth limit of some steps and not of others; half does so when one does.
    parts = {}
    for scale in (None, DEFAULT_SCALE[policy["residual"]], 0.5, 0.25, 0.0):
        config = lc.DCTAdamWConfig(rank=2, side=side, residual_scale=scale, **policy)
        parts[scale] = [
            to_numpy(full) - to_numpy(bare)
            for (full, _, _), (bare, _, _) in zip(
                steps(config, sequence, xp), steps(plain, sequence, xp), strict=True
            )
        ]
    default = parts[DEFAULT_SCALE[policy["residual"]]]
    for t in range(len(sequence)):
        np.testing.assert_array_equal(parts[None][t], default[t])
        np.testing.assert_allclose(parts[0.5][t], 2 * parts[0.25][t], rtol=1e-9, atol=1e-12)
        assert np.abs(parts[0.5][t]).max() > 1e-3
        np.testing.assert_allclose(parts[0.0][t], 0, atol=1e-14)


@pytest.mark.parametrize("basis", ["dct", "svd"])
@pytest.mark.parametrize(("shape", "axis"), [((9, 6), -1), ((6, 9), -2)])
def test_the_scaled_residual_really_is_the_residual(xp, basis, shape, axis):
    # In the code it comes from, the scale leaks into the residual: it is no longer orthogonal to the subspace.
    options = {"rank": 2, "basis": basis, "refresh_every": 2}
    sequence = gradients(6, *shape)
    plain = steps(lc.DCTAdamWConfig(residual="discard", **options), sequence, xp)
    scaled = steps(lc.DCTAdamWConfig(residual="scaled", **options), sequence, xp)
    limit = None
    for gradient, (bare, update, _), (full, _, state) in zip(sequence, plain, scaled, strict=True):
        added = to_numpy(full) - to_numpy(bare)
        vectors = subspace(update, shape[axis], xp)
        along = added @ vectors if axis == -1 else vectors.T @ added
        assert np.abs(along).max() < 1e-12
        # Row by row (of the matrix turned so that rows are transformed) it is the gradient's own residual.
        g, added = (gradient, added) if axis == -1 else (gradient.T, added.T)
        low = g @ vectors
        rest = g - low @ vectors.T
        u = (to_numpy(bare) if axis == -1 else to_numpy(bare).T) @ vectors
        ratio = np.linalg.norm(u, axis=1) / np.linalg.norm(low, axis=1)
        wanted = DEFAULT_SCALE["scaled"] * ratio[:, None] * rest
        norm = np.linalg.norm(wanted)
        if limit is not None:
            wanted *= min(1.0, limit / norm)
        np.testing.assert_allclose(added, wanted, rtol=1e-8, atol=1e-10)
        limit = GROWTH_LIMIT * np.linalg.norm(wanted)
        np.testing.assert_allclose(float(state.residual_norm), np.linalg.norm(wanted), rtol=1e-10)


def subspace(update, size, xp):
    """The vectors that an update's factor is on, in float64."""
    if update.vectors is not None:
        return to_numpy(update.vectors)
    unit = from_numpy(np.eye(update.indices.shape[0]), xp)
    return to_numpy(lc.lift(unit, update.indices, size, axis=-1, basis=update.basis)).T


def test_the_scaled_residual_grows_slowly(xp):
    config = lc.DCTAdamWConfig(rank=1, basis="identity", side="right", residual="scaled")
    # The chosen column stays as it is, and what is outside grows tenfold a step.
    sequence = [np.array([[1000.0, 10.0**t], [1000.0, -(10.0**t)]]) for t in (-3, -2, -1, 0, 0, 0)]
    norms = [float(state.residual_norm) for _, _, state in steps(config, sequence, xp)]
    np.testing.assert_allclose(np.array(norms[1:]) / norms[:-1], GROWTH_LIMIT, rtol=1e-9)
    # Falling is not limited, nor is the first residual after none.
    sequence = [sequence[3], sequence[0], 0 * sequence[0] + [[1.0, 0.0]], sequence[3]]
    norms = [float(state.residual_norm) for _, _, state in steps(config, sequence, xp)]
    assert norms[1] < 0.01 * norms[0]
    assert norms[2] == 0
    assert norms[3] > 10 * norms[1]


@pytest.mark.parametrize("policy", POLICIES[-3:], ids=ids)
@pytest.mark.parametrize("basis", ["dct", "svd"])
@pytest.mark.parametrize("shape", [(8, 6), (6, 300)])
def test_error_feedback_telescopes(xp, policy, basis, shape):
    # Everything that came in was applied or is still waiting; quantised, up to half a scale a step.
    config = lc.DCTAdamWConfig(rank=2, basis=basis, refresh_every=2, **policy)
    axis = config.layout(shape).axis
    given = applied = waiting = np.zeros(shape)
    allowed = 1e-10
    sequence = gradients(6, *shape)
    for gradient, (_, update, state) in zip(sequence, steps(config, sequence, xp), strict=True):
        full = gradient + waiting
        vectors = subspace(update, shape[axis], xp)
        low = full @ vectors @ vectors.T if axis == -1 else vectors @ vectors.T @ full
        applied, given = applied + low, given + gradient
        if config.feedback_bits is None:
            waiting = to_numpy(state.feedback)
        else:
            scale, minimum = to_numpy(state.feedback_scale), state.feedback_minimum
            codes = lc.Quantized(
                state.feedback, minimum, state.feedback_scale, config.feedback_bits, shape[-1]
            )
            waiting = to_numpy(lc.dequantize(codes))
            allowed += scale.max() / 2 * (1 + 1e-9)
        assert np.abs(given - applied - waiting).max() <= allowed
    assert np.abs(waiting).max() > 0.1


def test_the_normalized_residual_leaves_chosen_columns_alone(xp):
    sequence = gradients(5, 8, 6)
    options = {"rank": 2, "side": "right"}
    plain = steps(lc.DCTAdamWConfig(residual="discard", **options), sequence, xp)
    normalized = steps(lc.DCTAdamWConfig(residual="normalized", **options), sequence, xp)
    for (_, bare, _), (full, update, _) in zip(plain, normalized, strict=True):
        found = lc.project(full, update.indices)
        assert_close(found, to_numpy(bare.factor), xp=xp, dtype="float64")


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_zeros_give_zeros(xp, policy):
    # No column has any energy, and nothing is divided by it; afterwards the run goes on.
    config = lc.DCTAdamWConfig(rank=2, **policy)
    sequence = [np.zeros((6, 5)), np.zeros((6, 5)), normal(6, 5)]
    found = [to_numpy(full) for full, _, _ in steps(config, sequence, xp, "float32")]
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_array_equal(found[1], 0)
    assert np.isfinite(found[2]).all()
    assert np.abs(found[2]).max() > 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"residual": "sign", "feedback_bits": 8}, ["feedback_bits", "'error_feedback'", "'sign'"]),
        ({"feedback_bits": 4}, ["feedback_bits must be None", "'sign'", "4"]),
        ({"residual": "error_feedback", "feedback_bits": 2}, ["feedback_bits must be one of", "2"]),
        (
            {"residual": "discard", "residual_scale": 0.1},
            ["residual_scale must be None", "0.1", "'discard'"],
        ),
        ({"residual": "error_feedback", "residual_scale": 1.0}, ["residual_scale", "sign"]),
        ({"residual": "sign", "residual_scale": -1.0}, ["residual_scale must be at least 0", "-1"]),
        ({"residual": "sign", "residual_scale": float("nan")}, ["residual_scale", "nan"]),
    ],
)
def test_options_that_do_not_go_together_are_named(options, words):
    with pytest.raises(ValueError, match="must be") as caught:
        lc.DCTAdamWConfig(rank=2, **options)
    for word in words:
        assert word in str(caught.value)


def test_a_whole_basis_leaves_nothing_to_take_the_sign_of(xp):
    # What rounding leaves has signs too, and they would be stepped along.
    config = lc.DCTAdamWConfig(rank=6, residual="sign")
    bare = lc.DCTAdamWConfig(rank=6, residual="discard")
    sequence = gradients(3, 8, 6)
    for (full, _, _), (plain, _, _) in zip(
        steps(config, sequence, xp), steps(bare, sequence, xp), strict=True
    ):
        np.testing.assert_array_equal(to_numpy(full), to_numpy(plain))

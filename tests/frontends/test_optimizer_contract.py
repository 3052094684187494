"""What both frontends owe their users, and each other: the same contract on every shape, and the same numbers."""

import numpy as np
import pytest
from frontend_runs import FRONTENDS, NAMES, JaxRun, TorchRun
from helpers import TOLERANCES, assert_close, assert_identical, dtype_name, normal, to_numpy
from torch_helpers import choices

import lowrank_core as lc
from lowrank_core.bases.registry import STORED_BASES
from lowrank_core.rules.residuals import RESIDUALS

pytestmark = pytest.mark.usefixtures("torch", "optax")

RATE, DECAY, RANK = 0.02, 0.1, 3
SHAPES = {"tall": (12, 7), "wide": (7, 12), "square": (8, 8), "stacked": (2, 9, 6)}


def weights(shape):
    # About as large as what they are moved by, so that neither hides the rounding of the other.
    return 0.1 * normal(*shape)


def make(frontend, name, shape, dtype="float32", **options):
    weight = weights(shape)
    return FRONTENDS[frontend](
        name, weight, dtype, RATE, **{"rank": RANK, "weight_decay": DECAY, **options}
    )


def gradient(shape, step):
    return normal(*shape, seed=100 + step)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_contract(frontend, name, shape):
    run = make(frontend, name, shape)
    start = to_numpy(run.value())
    for step in range(4):
        given = gradient(shape, step).astype("float32")
        np.testing.assert_array_equal(run.step(given), given)
    resumed = make(frontend, name, shape)
    resumed.load(run.saved())
    for step in range(4, 7):
        run.step(gradient(shape, step))
        resumed.step(gradient(shape, step))
    assert_identical(resumed.value(), run.value())
    assert resumed.value().shape == shape
    assert dtype_name(run.value()) == "float32"
    assert np.isfinite(to_numpy(run.value())).all()
    assert (to_numpy(run.value()) != start).all()
    if isinstance(run, JaxRun):
        assert run.traces == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_dtype_is_kept(frontend, name, dtype):
    run = make(frontend, name, (12, 7), dtype)
    for step in range(2):
        run.step(gradient((12, 7), step))
    assert dtype_name(run.value()) == dtype
    exact = make(frontend, name, (12, 7), "float64")
    for step in range(2):
        exact.step(gradient((12, 7), step))
    moved = np.linalg.norm(to_numpy(exact.value()) - weights((12, 7)))
    error = np.linalg.norm(to_numpy(run.value()) - to_numpy(exact.value()))
    # Half precision rounds weights by more than one step moves them; that is not what is asked here.
    assert error < (1e-12 if dtype == "float64" else 0.5) * moved


def bases():
    # A size of 8 suits every basis; a random one with a seed is another of the same kind.
    return [*lc.basis_names(), *STORED_BASES]


PLAIN = [
    *({"residual": residual} for residual in RESIDUALS if residual != "bounded"),
    {"second_moment": "factored", "residual": "scaled"},
    {"update_scale": 2.0, "bias_correction": "gentle"},
    *({"basis": basis} for basis in bases() if basis != "dct"),
    *({"bias_correction": kind} for kind in choices("bias_correction") if kind != "step"),
    {"basis": "haar", "residual": "normalized", "bias_correction": "column"},
    {"basis": "power", "residual": "scaled"},
    {"score": "l1", "side": "left"},
    {"score_decay": 0.9, "hysteresis": 0.2},
    {"selection": "sampled", "seed": 3},
]
VARIANTS = [
    {},
    *({"preset": None, **options} for options in PLAIN),
    {"preset": "tiny", "side": "left"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
def test_frontends_follow_one_trajectory(options):
    shape = (12, 8)
    check_trajectories("dct_adamw", shape, {"refresh_every": 5, **options})


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8), (2, 8, 6)], ids=list(SHAPES))
@pytest.mark.parametrize("options", [{}, {"preset": "best"}], ids=["", "best"])
def test_frontends_follow_one_trion_trajectory(shape, options):
    check_trajectories("trion", shape, options)


def check_trajectories(name, shape, options, steps=50):
    runs = [make(frontend, name, shape, **options) for frontend in FRONTENDS]
    if options.get("selection") == "sampled":
        # The frontends number matrices in ways of their own; given the same key, they draw alike.
        share_key(*runs)
    for step in range(steps):
        for run in runs:
            run.step(gradient(shape, step))
    torch_run, jax_run = runs
    # What has been moved by, not where it ended: the start would hide an error.
    moved = [to_numpy(run.value()).astype("float64") - weights(shape) for run in runs]
    error, norm = np.linalg.norm(moved[0] - moved[1]), np.linalg.norm(moved[0])
    assert error <= TOLERANCES["trajectory"]["float32"] * norm
    assert_close(
        jax_run.value(),
        to_numpy(torch_run.value()),
        xp=jax_run.library,
        dtype="float32",
        kind="trajectory",
    )


def share_key(torch_run: TorchRun, jax_run: JaxRun) -> None:
    # A step without a gradient and without a rate makes the state and is not counted.
    rate = torch_run.optimizer.param_groups[0]["lr"]
    torch_run.optimizer.param_groups[0]["lr"] = 0.0
    torch_run.step(np.zeros(torch_run.parameter.shape))
    torch_run.optimizer.param_groups[0]["lr"] = rate
    key = jax_run.library.asarray(to_numpy(torch_run.optimizer.state[torch_run.parameter]["key"]))
    scaled = jax_run.state[0]
    jax_run.state = (
        scaled._replace(matrices=scaled.matrices._replace(key=key)),
        *jax_run.state[1:],
    )

"""A run goes on in the other framework: its state moves in one file, whatever it is made of and however kernels lie."""

import functools

import jax
import lowrank_jax
import numpy as np
import optax
import pytest
import safetensors
import torch
from helpers import tolerance
from lowrank_torch import DCTAdamW
from portable_runs import ADAMW, MODEL, RATE, RUNS, SHAPED, JaxRun, TorchRun
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("optax", "torch")

# Trees of tests are small.
SMALL = functools.partial(lowrank_jax.axes_by_name, min_size=1)

VARIANTS = {
    "plain": ("dct_adamw", {}),
    "columns kept": ("dct_adamw", {"preset": None, "refresh_every": 4}),
    "feedback": ("dct_adamw", {"preset": None, "residual": "error_feedback"}),
    "scaled": ("dct_adamw", {"preset": None, "residual": "scaled", "bias_correction": "column"}),
    "normalized": ("dct_adamw", {"preset": None, "residual": "normalized", "selection": "sampled"}),
    "gentle": (
        "dct_adamw",
        {
            "preset": None,
            "bias_correction": "gentle",
            "score_decay": 0.9,
            "residual": "sign",
            "refresh_every": 3,
        },
    ),
    "codes": ("dct_adamw", {"preset": None, "residual": "error_feedback", "feedback_bits": 8}),
    "narrow": ("dct_adamw", {"preset": None, "state_dtype": "bfloat16"}),
    "vectors": ("dct_adamw", {"preset": None, "basis": "power", "refresh_every": 5}),
    "trion": ("trion", {"betas": (0.9, 0.999)}),
    "trion codes": ("trion", {"betas": (0.9, 0.999), "momentum_bits": 8, "row_decay": 0.9}),
}
OTHER = {"torch": "jax", "jax": "torch"}


def run_of(framework, name, **options):
    betas = options.pop("betas", None)
    if betas is not None:
        options |= (
            {"betas": betas}
            if framework == "torch"
            else dict(zip(("b1", "b2"), betas, strict=True))
        )
    return RUNS[framework](name, **options)


def assert_same_weights(found, wanted):
    for name, weight in wanted.items():
        error = np.linalg.norm(found[name] - weight) / np.linalg.norm(weight)
        assert error <= tolerance("trajectory", "float32"), f"{name}: {error}"


def handed_over(path, first, second, steps):
    """Give the second run the weights and, through a file, the state of the first."""
    first.save(path)
    second.put(first.train(0))
    second.load(path)
    return second.train(steps, begin=steps)


@pytest.mark.parametrize(("name", "options"), VARIANTS.values(), ids=VARIANTS)
def test_twenty_steps_are_the_same_in_either_and_in_both(tmp_path, name, options):
    runs = {framework: run_of(framework, name, **options) for framework in RUNS}
    whole = {framework: run.fresh().train(20) for framework, run in runs.items()}
    # Each framework numbers its matrices in a way of its own, so that draws differ until a file has brought the key.
    drawn = options.get("selection") == "sampled"
    for framework, run in runs.items():
        run.train(10)
        mixed = handed_over(tmp_path / framework, run, runs[OTHER[framework]].fresh(), 10)
        assert_same_weights(mixed, whole[framework])
        if not drawn:
            assert_same_weights(mixed, whole[OTHER[framework]])


@pytest.mark.slow
def test_shapes_of_all_kinds_go_on(tmp_path):
    torch_run, jax_run = TorchRun("dct_adamw", SHAPED), JaxRun("dct_adamw", SHAPED)
    whole = torch_run.fresh().train(8)
    # Of what Adam steps, only the user knows which of three axes are the outputs.
    how = {"axes": lambda path, _: SHAPED["patch.weight"].axes if "patch" in path else None}
    torch_run.train(4)
    torch_run.save(tmp_path / "file")
    there = jax_run.fresh()
    there.put(torch_run.weights())
    there.load(tmp_path / "file", **how)
    there.train(2, begin=4)
    there.save(tmp_path / "file", **how)
    back = torch_run.fresh()
    back.put(there.weights())
    back.load(tmp_path / "file")
    assert_same_weights(back.train(2, begin=6), whole)


@pytest.mark.parametrize(("name", "options"), VARIANTS.values(), ids=VARIANTS)
def test_file_moved_back_and_forth_holds_the_same_bits(tmp_path, name, options):
    torch_run, jax_run = (run_of(framework, name, **options) for framework in RUNS)
    torch_run.train(3)
    torch_run.save(tmp_path / "torch")
    jax_run.load(tmp_path / "torch")
    jax_run.save(tmp_path / "jax")
    back = torch_run.fresh()
    back.load(tmp_path / "jax")
    back.save(tmp_path / "back")
    first, *others = (load_file(tmp_path / name) for name in ("torch", "jax", "back"))
    kinds = {array.dtype for array in first.values()}
    assert torch.int32 in kinds or name == "trion" or "basis" in options
    for other in others:
        assert other.keys() == first.keys()
        for key, array in first.items():
            assert other[key].dtype == array.dtype
            assert torch.equal(other[key], array)


def test_arrays_are_named_and_turned_as_the_format_says(tmp_path):
    run = JaxRun("dct_adamw")
    run.train(2)
    run.save(tmp_path / "file")
    arrays = load_file(tmp_path / "file")
    node = run.state[0]
    kept = node.matrices.first_moment["layers"]["0"]["up"]["kernel"]
    np.testing.assert_array_equal(arrays["layers.0.up.weight/first_moment"].numpy(), kept)
    head = node.adam.nu["head"]["kernel"]
    np.testing.assert_array_equal(arrays["head.weight/second_moment"].numpy(), np.transpose(head))
    assert arrays["embed.weight/first_moment"].shape == (15, 12)
    with safetensors.safe_open(tmp_path / "file", framework="np") as file:
        metadata = file.metadata()
    assert metadata["format"] == "lowrank-core optimizer state"
    assert metadata["version"] == "1"


# -- what stands around the optimizer --------------------------------------------------------------


def scheduled(make, rate, **options):
    return optax.chain(optax.clip_by_global_norm(1e6), make(rate, **options))


def injected(make, rate, **options):
    static = lowrank_jax.static_options(make)
    return optax.inject_hyperparams(make, static_args=static)(rate, **options)


def parted(make, rate, **options):
    """Matrices and everything else by transformations of their own."""
    axes = options.pop("matrix_axes")
    own = make(rate, matrix_axes=axes, **options)
    rest = optax.adamw(rate, weight_decay=options["weight_decay"])
    return optax.partition(
        {True: own, False: rest}, lambda params: lowrank_jax.matrix_mask(params, axes)
    )


def repeated(make, rate, **options):
    return optax.MultiSteps(scheduled(make, rate, **options), every_k_schedule=1)


@pytest.mark.parametrize("build", [scheduled, injected, parted, repeated])
def test_schedule_goes_on_wherever_the_optimizer_stands(tmp_path, build):
    schedule = optax.linear_schedule(RATE, 0.0, 8)
    jax_run = JaxRun("dct_adamw", build=build, lr=schedule)
    whole = jax_run.fresh().train(8)
    torch_run = TorchRun("dct_adamw")
    scheduler = torch.optim.lr_scheduler.LambdaLR(torch_run.optimizer, lambda step: 1 - step / 8)
    for step in range(4):
        torch_run.train(1, begin=step)
        scheduler.step()
    assert_same_weights(handed_over(tmp_path / "file", torch_run, jax_run, 4), whole)


def test_other_state_stays_as_it_is(tmp_path):
    def build(make, rate, **options):
        return optax.chain(optax.ema(0.9), make(rate, **options))

    run = JaxRun("dct_adamw", build=build)
    run.train(3)
    run.save(tmp_path / "file")
    other = run.fresh()
    other.train(1)
    other.load(tmp_path / "file")
    assert int(other.state[0].count) == 1
    assert int(other.state[1][0].adam.count) == 3


def test_abstract_state_is_enough_to_load(tmp_path):
    run = JaxRun("dct_adamw")
    run.train(2)
    run.save(tmp_path / "file")
    shapes = jax.eval_shape(run.optimizer.init, run.params)
    loaded = lowrank_jax.load_state(tmp_path / "file", run.optimizer, shapes, run.params)
    assert jax.tree.structure(loaded) == jax.tree.structure(run.state)
    for found, wanted in zip(jax.tree.leaves(loaded), jax.tree.leaves(run.state), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


def test_arrays_are_placed_as_those_they_replace(tmp_path):
    run = JaxRun("dct_adamw")
    run.train(1)
    run.save(tmp_path / "file")
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, rows), run.params)
    state = run.optimizer.init(params)
    loaded = lowrank_jax.load_state(tmp_path / "file", run.optimizer, state, params)
    for found, wanted in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        assert isinstance(wanted.sharding, jax.sharding.NamedSharding)
        assert found.sharding == wanted.sharding


def test_steps_done_are_returned(tmp_path):
    run = TorchRun("dct_adamw")
    run.train(3)
    run.save(tmp_path / "file")
    assert run.fresh().optimizer.load_state(tmp_path / "file") == 3


@pytest.mark.parametrize("framework", RUNS)
def test_rates_and_other_numbers_may_be_others(tmp_path, framework):
    run = run_of(framework, "dct_adamw", residual="scaled")
    run.train(2)
    run.save(tmp_path / "file")
    numbers = {"residual_scale": 0.3, "hysteresis": 0.1, "eps": 1e-6, "lr": 0.5, "method": "fft"}
    other = run_of(framework, "dct_adamw", residual="scaled", betas=(0.8, 0.99), **numbers)
    other.load(tmp_path / "file")
    other.save(tmp_path / "again")
    assert_same_arrays(tmp_path / "again", tmp_path / "file")


def assert_same_arrays(path, other):
    found, wanted = load_file(path), load_file(other)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [lambda name: f"model.{name}", {"head.weight": "lm_head"}])
def test_names_may_be_given(tmp_path, names):
    run = TorchRun("dct_adamw")
    whole = run.fresh().train(6)
    run.train(3)
    run.save(tmp_path / "file", names=names)
    called = names("head.weight") if callable(names) else "lm_head"
    assert f"{called}/first_moment" in load_file(tmp_path / "file")
    there = JaxRun("dct_adamw")
    there.put(run.weights())
    if callable(names):
        own = {leaf.path: name for name, leaf in MODEL.items()}
        there.load(tmp_path / "file", names=lambda path: names(own[path]))
    else:
        there.load(tmp_path / "file", names={"head/kernel": "lm_head"})
    assert_same_weights(there.train(3, begin=3), whole)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"haed.weight": "head"}, "names has no parameter 'haed.weight' to rename"),
        (lambda _: "one", "names must give every parameter a name of its own, got 'one' for"),
        (lambda _: None, "names must give a name, got None for 'layers.0.up.weight'"),
        ("layers", "names must be a function or a mapping, got 'layers'"),
    ],
)
def test_bad_names_are_refused(tmp_path, names, message):
    run = TorchRun("dct_adamw")
    run.train(1)
    with pytest.raises((TypeError, ValueError), match=message):
        run.save(tmp_path / "file", names=names)
    assert not list(tmp_path.iterdir())


def test_parameters_without_names_are_found_by_place(tmp_path):
    def made(name=None):
        weight = torch.nn.Parameter(torch.ones(8, 6))
        optimizer = DCTAdamW([weight if name is None else (name, weight)], rank=2)
        weight.grad = torch.eye(8, 6)
        optimizer.step()
        return optimizer

    bare, named = made(), made("weight")
    bare.step()
    bare.save_state(tmp_path / "bare")
    assert made().load_state(tmp_path / "bare") == 2
    # A name is never taken for a place, nor a place for a name, unless the user says so.
    with pytest.raises(
        ValueError, match=r"a state of 'weight', got none; .* 'parameter 0 of group"
    ):
        named.load_state(tmp_path / "bare")
    assert named.load_state(tmp_path / "bare", names=lambda _: "parameter 0 of group 0") == 2
    named.save_state(tmp_path / "named")
    with pytest.raises(ValueError, match="a state of 'parameter 0 of group 0', got none"):
        bare.load_state(tmp_path / "named")


def test_jax_goes_on_as_the_file_does_whatever_its_rule_says(tmp_path):
    """Plain parameters in PyTorch are all matrices; the rule in JAX gives small ones, tables and heads to Adam."""
    run = TorchRun("dct_adamw", {name: leaf._replace(group={}) for name, leaf in MODEL.items()})
    whole = run.fresh().train(12)
    run.train(6)
    run.save(tmp_path / "file")
    other = JaxRun("dct_adamw", matrix_axes=lowrank_jax.axes_by_name)
    assert not jax.tree.leaves(other.state[0].matrices)
    other.put(run.weights())
    with pytest.warns(UserWarning, match=r"^5 leaves are stepped as in the file, .*\(dct_adamw\)"):
        other.load(tmp_path / "file")
    assert other.state[0].matrices.first_moment["embed"]["embedding"].shape == (15, 3)
    other.train(3, begin=6)
    other.save(tmp_path / "file")
    back = run.fresh()
    back.put(other.weights())
    back.load(tmp_path / "file")
    assert_same_weights(back.train(3, begin=9), whole)


def test_jax_leaves_to_adam_what_the_file_does(tmp_path):
    run = TorchRun("dct_adamw", {name: leaf._replace(group=ADAMW) for name, leaf in MODEL.items()})
    whole = run.fresh().train(8)
    run.train(4)
    run.save(tmp_path / "file")
    other = JaxRun("dct_adamw")
    assert jax.tree.leaves(other.state[0].matrices)
    other.put(run.weights())
    with pytest.warns(UserWarning, match=r"^3 leaves are stepped as in the file, .*\(adamw\)"):
        other.load(tmp_path / "file")
    assert not jax.tree.leaves(other.state[0].matrices)
    assert_same_weights(other.train(4, begin=4), whole)


def test_leading_params_of_linen_is_no_part_of_a_name(tmp_path):
    tree = {"params": {"up": {"kernel": np.ones((12, 8), np.float32)}}}
    optimizer = lowrank_jax.dct_adamw(RATE, rank=2, matrix_axes=SMALL)
    lowrank_jax.save_state(tmp_path / "file", optimizer, optimizer.init(tree), tree)
    assert {key.split("/")[0] for key in load_file(tmp_path / "file")} == {"up.weight"}

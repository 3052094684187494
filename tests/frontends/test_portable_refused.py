"""A file that does not fit is refused with its first difference, before anything has changed; so is a bad write."""

import functools
import json
import math
import os
import sys

import jax
import lowrank_jax
import numpy as np
import optax
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from jax_helpers import assert_same_bits
from lowrank_torch import DCTAdamW
from portable_runs import ADAMW, MODEL, RUNS, JaxRun, TorchRun
from torch.distributed.fsdp import fully_shard
from torch_helpers import unchanged

pytestmark = [pytest.mark.usefixtures("optax", "torch"), pytest.mark.compiles_nothing]


# Trees of tests are small.
SMALL = functools.partial(lowrank_jax.axes_by_name, min_size=1)


@pytest.fixture
def file(tmp_path):
    """State of three steps in PyTorch."""
    run = TorchRun("dct_adamw")
    run.train(3)
    run.save(tmp_path / "file")
    return tmp_path / "file"


def refused(run, file, message, **how):
    """Assert that loading raises and leaves all as it was."""
    content = file.read_bytes()
    if isinstance(run, TorchRun):
        with unchanged(run.optimizer), pytest.raises(ValueError, match=message):
            run.load(file, **how)
    else:
        before = jax.tree.map(np.array, run.state)
        with pytest.raises(ValueError, match=message):
            run.load(file, **how)
        assert_same_bits(jax.tree.map(np.array, run.state), before)
    assert file.read_bytes() == content


def stepped(framework, name="dct_adamw", model=MODEL, **options):
    run = RUNS[framework](name, model, **options)
    if framework == "torch":
        run.train(1)
    return run


@pytest.mark.parametrize("framework", RUNS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, "saved with rank=4 for '.*', got 3"),
        ({"rank": 0.25}, "saved with rank=0.25 for '.*', got 3"),
        ({"side": "left"}, "saved with side='left' for '.*', got 'auto'"),
        ({"basis": "dct3"}, "saved with basis='dct3' for '.*', got 'dct'"),
        ({"refresh_every": 2}, "saved with refresh_every=2 for '.*', got 10"),
        ({"residual": "discard"}, "saved with residual='discard' for '.*', got 'bounded'"),
        ({"preset": None}, "saved with refresh_every=1 for '.*', got 10"),
        ({"state_dtype": "float16"}, "saved with state_dtype='float16' for '.*', got None"),
        ({"selection": "sampled"}, "saved with selection='sampled' for '.*', got 'top'"),
        ({"seed": 1}, "saved with seed=1 for '.*', got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_options_are_refused(file, framework, options, message):
    refused(stepped(framework, **options), file, message)


@pytest.mark.parametrize("framework", RUNS)
def test_state_without_an_array_of_these_options_is_refused(tmp_path, framework):
    run = TorchRun("dct_adamw", preset=None)
    run.train(3)
    run.save(tmp_path / "file")
    message = "energy of '.*' is float32 of shape .* by these, got absent"
    refused(stepped(framework, preset=None, score_decay=0.9), tmp_path / "file", message)


@pytest.mark.parametrize("framework", RUNS)
def test_other_algorithm_is_refused(file, framework):
    message = "saved with algorithm='trion' for 'layers.0.*', got 'dct_adamw'"
    refused(stepped(framework, "trion"), file, message)


@pytest.mark.parametrize("framework", RUNS)
def test_other_model_is_refused(file, framework):
    wider = {**MODEL, "layers.1.up.weight": MODEL["layers.1.up.weight"]._replace(shape=(22, 12))}
    message = r"'layers.1.up.weight' is of shape \(22, 12\), outputs before inputs; got \(20, 12\)"
    refused(stepped(framework, model=wider), file, message)
    fewer = {name: leaf for name, leaf in MODEL.items() if name != "norm.weight"}
    message = "no state but that of this optimizer's parameters, got one of 'norm.weight'"
    refused(stepped(framework, model=fewer), file, message)
    more = {**MODEL, "last.bias": MODEL["layers.0.up.bias"]._replace(path="last/bias")}
    refused(stepped(framework, model=more), file, "must have a state of 'last.bias', got none")
    other = {**fewer, "last.bias": MODEL["layers.0.up.bias"]._replace(path="last/bias")}
    message = "a state of 'last.bias', got none; it has one of 'norm.weight', which"
    refused(stepped(framework, model=other), file, message)


def test_kernel_that_is_not_turned_is_refused(file):
    axes = {leaf.path: leaf.axes for leaf in MODEL.values() if leaf.group != ADAMW}
    up = "layers/0/up/kernel"

    def wrong(path, _):
        return lowrank_jax.MatrixAxes(0, 1) if path == up else axes.get(path)

    message = r"'layers.0.up.weight' is of shape \(12, 20\), outputs before inputs; got \(20, 12\)"
    refused(JaxRun("dct_adamw", matrix_axes=wrong), file, message)


def rewritten(file, metadata=None, arrays=None):
    """Write the file again with other metadata or arrays, and without a checksum."""
    with safetensors.safe_open(file, framework="pt") as opened:
        old = opened.metadata()
    kept = {name: array.clone() for name, array in safetensors.torch.load_file(file).items()}
    wanted = {**old, "checksum": None, **(metadata or {})}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    safetensors.torch.save_file((arrays or (lambda given: given))(kept), file, metadata=wanted)


@pytest.mark.parametrize("framework", RUNS)
@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"version": "2"}, "must be of version 1, which this lowrank-core reads, got .* version 2"),
        ({"version": None}, "must be of version 1, .* got .* of version None"),
        ({"format": "weights"}, "must be a file that save_state wrote, got .* of format weights"),
        ({"format": None}, "must be a file that save_state wrote, got .* of format None"),
        ({"parameters": "{"}, "must have whole metadata, got .*JSONDecodeError"),
        ({"parameters": None}, "must have whole metadata, got .*KeyError"),
        ({"parameters": "[]"}, "must have whole metadata, got .*AttributeError"),
        ({"rules": "[]"}, "must have whole metadata, got .*IndexError"),
    ],
)
def test_other_version_and_damaged_header_are_refused(file, framework, metadata, message):
    rewritten(file, metadata)
    refused(stepped(framework), file, message)


def without(given):
    return {name: array for name, array in given.items() if name != "narrow.weight/first_moment"}


def narrower(given):
    name = "layers.0.up.weight/first_moment"
    return {**given, name: given[name].bfloat16()}


def longer(given):
    name = "layers.0.up.weight/indices"
    return {**given, name: torch.arange(4, dtype=torch.int32)}


def beside(given):
    return {**given, "elsewhere/first_moment": torch.ones(3)}


@pytest.mark.parametrize("framework", RUNS)
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without, r"first_moment of 'narrow.weight' is float32 of shape \(2, 12\) .* got absent"),
        (narrower, "first_moment of 'layers.0.up.weight' is float32 .* got bfloat16 of shape"),
        (longer, r"indices of 'layers.0.up.weight' is int32 of shape \(3,\) .* \(4,\)"),
        (beside, "no state but that of this optimizer's parameters, got one of 'elsewhere'"),
    ],
)
def test_other_arrays_are_refused(file, framework, arrays, message):
    rewritten(file, arrays=arrays)
    refused(stepped(framework), file, message)


@pytest.mark.parametrize("framework", RUNS)
@pytest.mark.parametrize(
    ("array", "number", "message"),
    [
        (
            "layers.0.up.weight/row_energy",
            -1,
            "row_energy of 'layers.0.up.weight' .* least 0",
        ),
        ("layers.0.up.weight/first_moment", math.nan, "first_moment of .* must be finite"),
        ("layers.0.up.weight/indices", 12, r"indices of .* ascending from 0 to 11, got .* 12"),
        ("norm.weight/second_moment", math.inf, "second_moment of 'norm.weight' .* finite"),
    ],
)
def test_numbers_that_state_cannot_have_are_refused(file, framework, array, number, message):
    rewritten(file, arrays=lambda given: {**given, array: torch.full_like(given[array], number)})
    refused(stepped(framework), file, message)


@pytest.mark.parametrize("framework", RUNS)
@pytest.mark.parametrize(
    "step", ["-1", "2.5", "1e999", '"3"', "true", "null", "[]", "1" + 30 * "0"]
)
def test_counts_that_are_none_are_refused(file, framework, step):
    with safetensors.safe_open(file, framework="pt") as opened:
        parameters = opened.metadata()["parameters"]
    rewritten(file, {"parameters": parameters.replace('"step": 3', f'"step": {step}')})
    refused(stepped(framework), file, "must have whole metadata, got ")


@pytest.mark.parametrize("framework", RUNS)
@pytest.mark.parametrize("damage", ["nested", "nameless"])
def test_metadata_of_another_make_is_refused(file, framework, damage):
    if damage == "nested":
        rewritten(file, {"rules": "[" * 100_000})
        message = "must have whole metadata, got .*RecursionError"
    else:
        # Arrays of a parameter of which the metadata say nothing.
        with safetensors.safe_open(file, framework="pt") as opened:
            rows = json.loads(opened.metadata()["parameters"])
        del rows["norm.weight"]
        rewritten(file, {"parameters": json.dumps(rows)})
        message = "must have a state of 'norm.weight', got none"
    refused(stepped(framework), file, message)


@pytest.mark.parametrize("framework", RUNS)
def test_what_is_no_plain_file_is_refused(tmp_path, framework):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(ValueError, match=f"path must be a plain file, got {path}"):
            stepped(framework).load(path)
    for path, error in ((pipe, ValueError), (tmp_path / "nowhere" / "file", FileNotFoundError)):
        with pytest.raises(error, match=str(path)):
            stepped(framework).save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("framework", RUNS)
@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_damaged_file_is_refused(file, framework, cut):
    file.write_bytes(file.read_bytes()[:cut])
    refused(stepped(framework), file, "path must be a whole safetensors file, got .*file: ")


@pytest.mark.parametrize("framework", RUNS)
def test_a_flipped_bit_is_noticed(file, framework):
    whole = file.read_bytes()
    run = stepped(framework)
    # The lowest bit of a moment, and of the name of the checksum.
    for place in (len(whole) - 3, whole.index(b'"checksum"') + 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(run, file, "another checksum|must have whole metadata, got .*LookupError")
    file.write_bytes(whole)
    run.load(file)


@pytest.mark.parametrize("framework", RUNS)
def test_a_file_from_before_there_was_a_checksum_is_loaded(file, framework):
    rewritten(file)
    assert b"checksum" not in file.read_bytes()
    stepped(framework).load(file)


@pytest.mark.parametrize("framework", RUNS)
def test_missing_file_is_told(tmp_path, framework):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        stepped(framework).load(tmp_path / "nowhere")


def test_error_while_reading_changes_nothing(file, monkeypatch):
    real = safetensors.safe_open
    reads = []

    class Failing:
        def __init__(self, *arguments, **options):
            self.file = real(*arguments, **options)

        def __enter__(self):
            self.file = self.file.__enter__()
            return self

        def __exit__(self, *_):
            return None

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, name):
            reads.append(name)
            if len(reads) == 9:
                raise safetensors.SafetensorError("the disk is gone")
            return self.file.get_tensor(name)

    run = stepped("torch")
    monkeypatch.setattr(safetensors, "safe_open", Failing)
    refused(run, file, "the disk is gone")
    assert len(reads) == 9


# -- what only one of the frameworks can hold ------------------------------------------------------


def test_fused_projection_is_refused_where_there_is_none(tmp_path):
    weight = torch.nn.Parameter(torch.ones(24, 12))
    group = {"params": [("qkv.weight", weight)], "split_sizes": [12, 6, 6]}
    optimizer = DCTAdamW([group], rank=3)
    weight.grad = torch.randn(24, 12, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    optimizer.save_state(tmp_path / "file")
    names = {key.split("/")[1] for key in safetensors.torch.load_file(tmp_path / "file")}
    assert {"first_moment.0", "first_moment.2", "indices.1"} <= names
    kept = dict(optimizer.state[weight])
    optimizer.state.clear()
    assert optimizer.load_state(tmp_path / "file") == 1
    for name, value in optimizer.state[weight].items():
        assert value == 1 if name == "step" else torch.equal(value, kept[name])
    params = {"qkv": {"kernel": np.ones((12, 24), np.float32)}}
    fused = lowrank_jax.dct_adamw(0.1, rank=3, matrix_axes=SMALL)
    with pytest.raises(ValueError, match=r"shape \(24, 12\), .*; got \(12, 12\) and \(6, 12\) and"):
        lowrank_jax.load_state(tmp_path / "file", fused, fused.init(params), params)


def test_parameter_that_was_never_stepped_stays_so_in_torch_and_is_refused_in_jax(tmp_path):
    run = TorchRun("dct_adamw")
    run.train(2)
    frozen = run.parameters["layers.1.up.weight"]
    del run.optimizer.state[frozen]
    run.save(tmp_path / "file")
    other = stepped("torch")
    other.load(tmp_path / "file")
    assert not other.optimizer.state.get(other.parameters["layers.1.up.weight"])
    message = "one step count for all leaves .* got 2 for '.*' and 0 for 'layers/1/up/kernel'"
    refused(JaxRun("dct_adamw"), tmp_path / "file", message)
    fresh = TorchRun("dct_adamw")
    fresh.save(tmp_path / "file")
    message = "a state of every leaf, got none of '.*', which had not been stepped"
    refused(JaxRun("dct_adamw"), tmp_path / "file", message)


def test_state_without_a_low_rank_part_is_refused(tmp_path):
    params = {"up": {"kernel": np.ones((12, 8), np.float32)}}
    optimizer = optax.adam(0.1)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="state must be of a low-rank transformation, got no"):
        lowrank_jax.save_state(tmp_path / "file", optimizer, state, params)
    assert not list(tmp_path.iterdir())


def test_leaf_with_two_states_is_refused(tmp_path):
    params = {"up": {"kernel": np.ones((12, 8), np.float32)}}
    optimizer = optax.chain(
        optax.scale_by_adam(), lowrank_jax.dct_adamw(0.1, rank=2, matrix_axes=SMALL)
    )
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="one state for every leaf, got two of 'up/kernel'"):
        lowrank_jax.save_state(tmp_path / "file", optimizer, state, params)


def test_state_of_other_options_is_not_written(tmp_path):
    params = {"up": {"kernel": np.ones((12, 8), np.float32)}}
    made, given = (lowrank_jax.dct_adamw(0.1, rank=rank, matrix_axes=SMALL) for rank in (2, 3))
    message = r"optimizer's state must .* first_moment of 'up.weight' is .* \(3, 12\) .* \(2, 12\)"
    with pytest.raises(ValueError, match=message):
        lowrank_jax.save_state(tmp_path / "file", given, made.init(params), params)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("framework", RUNS)
def test_state_of_other_parameters_is_not_written(tmp_path, framework):
    run = stepped(framework)
    if framework == "jax":
        del run.params["norm"]
        message = "params must have every leaf that state is of, got none called 'norm/scale'"
    else:
        run.optimizer.param_groups[0]["rank"] = 2
        message = "the optimizer's state must fit .* first_moment of layers.0.up.weight"
    with pytest.raises(ValueError, match=message):
        run.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_sharded_parameter_is_refused(tmp_path):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.Linear(8, 6)
        fully_shard(model)
        groups = [{"params": list(model.named_parameters()), "algorithm": "adamw"}]
        optimizer = DCTAdamW(groups, rank=2)
        with pytest.raises(
            NotImplementedError, match=r"whole, got a DTensor for weight; torch\.dist"
        ):
            optimizer.save_state(tmp_path / "file")
    finally:
        dist.destroy_process_group()
    assert not list(tmp_path.iterdir())


# -- writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", RUNS)
def test_write_that_fails_leaves_the_old_file(file, framework, monkeypatch):
    before = file.read_bytes()

    def half(_arrays, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left")

    module = {"torch": "safetensors.torch", "jax": "safetensors.flax"}[framework]
    __import__(module)
    monkeypatch.setattr(sys.modules[module], "save_file", half)
    with pytest.raises(OSError, match="no space left"):
        stepped(framework).save(file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("framework", RUNS)
def test_missing_safetensors_is_told_with_its_remedy(file, framework, monkeypatch):
    for name in ("safetensors", "safetensors.torch", "safetensors.flax"):
        monkeypatch.setitem(sys.modules, name, None)
    run = stepped(framework)
    for use in (run.save, run.load):
        with pytest.raises(ImportError, match=r"pip install 'lowrank-core\[safetensors\]'"):
            use(file)


def test_metadata_is_json(file):
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["parameters"])["norm.weight"]["step"] == 3
    assert {"algorithm": "adamw"} in json.loads(metadata["rules"])

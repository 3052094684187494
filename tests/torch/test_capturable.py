"""Steps that a CUDA graph can capture: what was told to the device once does, told again, what further steps do.

No GPU is needed: `device_emulation.Capture` notes the operations of one step and does them again on the same tensors.
`tests/gpu` does the same with graphs.
"""

import re

import pytest
import torch
import torch._dynamo.testing
import torch.distributed as dist
from device_emulation import Capture, OnDevice, Watch
from helpers import assert_close
from lowrank_torch import DCTAdamW, Trion, _capturable, accumulate_projected
from torch_helpers import (
    VARIANTS,
    all_parameters,
    assert_same_bits,
    assert_same_state,
    copies,
    parameters,
    set_gradients,
    tensor,
    train,
    variant_id,
)

import lowrank_core as lc
from lowrank_core.bases.registry import STORED_BASES

pytestmark = pytest.mark.usefixtures("torch")

#: Two of a shape, a left side, an expert stack and a vector.
SHAPES = ((24, 16), (24, 16), (16, 24), (2, 24, 16), (7,))
#: Everything that is kept or done in a way of its own, one option after the other.
CASES = [
    *((DCTAdamW, own) for own in VARIANTS if own.get("basis") not in STORED_BASES),
    (DCTAdamW, {"preset": None, "residual": "normalized", "score_decay": 0.9}),
    (
        DCTAdamW,
        {"preset": None, "bias_correction": "gentle", "score_decay": 0.9, "hysteresis": 0.1},
    ),
    (DCTAdamW, {"preset": None, "method": "fft", "residual": "discard"}),
    (DCTAdamW, {"preset": None, "maximize": True, "update_scale": 0.5}),
    (DCTAdamW, {"algorithm": "adamw"}),
    (Trion, {}),
    (Trion, {"momentum_bits": 8, "scale": "rms"}),
    (Trion, {"momentum_bits": 4, "coefficients": "polar_express"}),
    (Trion, {"state_dtype": "bfloat16", "score": "l1"}),
]
EVERY = (1, 3)
STEPS = 8


def made(kind, options, every=1, given=None, **others):
    """An optimizer of one kind and its parameters, the experts and the vector in groups of their own."""
    given = parameters(*SHAPES) if given is None else given
    groups = [
        {"params": given[:3]},
        {"params": given[3:4], "batch_dims": 1},
        {"params": given[4:], "algorithm": "adamw"},
    ]
    if kind is DCTAdamW:
        options = {"refresh_every": every, **options}
    return kind(groups, **{"lr": 0.02, "weight_decay": 0.1, "rank": 4, **options, **others})


ROWS = [
    pytest.param(kind, options, every, id=f"{kind.__name__}-{variant_id(options)}-{every}")
    for kind, options in CASES
    for every in (EVERY if kind is DCTAdamW else (1,))
]


def give(optimizers, step, scale=1.0):
    """Put the gradients of a step where those of the step before are, as who replays a graph does."""
    for optimizer in optimizers:
        for place, parameter in enumerate(all_parameters(optimizer)):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            own = tensor(*parameter.shape, seed=1000 + 50 * step + place)
            parameter.grad.copy_(scale * own)


def stepped(optimizer):
    """Do a step on a device that nobody reads from."""
    with Watch() as watch:
        optimizer.step()
    assert watch.found == []


def captured(optimizer):
    with Capture() as capture:
        optimizer.step()
    return capture


def assert_alike(one, other):
    assert_same_bits(all_parameters(one), all_parameters(other))
    assert_same_state(one, other)


def addresses(optimizer):
    return {
        (place, key): value.data_ptr()
        for place, parameter in enumerate(all_parameters(optimizer))
        for key, value in optimizer.state[parameter].items()
    }


# -- replays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options", "every"), ROWS)
def test_replays_do_what_steps_do(kind, options, every):
    replayed, eager = (made(kind, options, every, capturable=True) for _ in range(2))
    give((replayed, eager), 0)
    stepped(replayed)
    stepped(eager)
    give((replayed, eager), 1)
    capture = captured(replayed)
    stepped(eager)
    for step in range(2, STEPS):
        give((replayed, eager), step)
        capture.replay()
        stepped(eager)
        assert_alike(replayed, eager)


@pytest.mark.parametrize("kind", [DCTAdamW, Trion])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_replays_round_at_random_by_the_step(kind, dtype):
    replayed, eager, plain = everything = [
        made(
            *(kind, {"stochastic_rounding": True}, 3, parameters(*SHAPES, dtype=dtype)),
            capturable=own,
        )
        for own in (True, True, False)
    ]
    give(everything, 0)
    stepped(replayed)
    stepped(eager)
    plain.step()
    give(everything, 1)
    capture = captured(replayed)
    stepped(eager)
    plain.step()
    for step in range(2, STEPS):
        give(everything, step)
        capture.replay()
        stepped(eager)
        plain.step()
        assert_alike(replayed, eager)
    # By other draws every second number would be another.
    pairs = zip(all_parameters(eager), all_parameters(plain), strict=True)
    assert all((one != other).float().mean() <= 0.15 for one, other in pairs)


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("residual", ["discard", "sign", "normalized"])
def test_columns_that_gradients_of_zeros_left_open_are_chosen_in_a_replay(residual, every):
    """Whether nothing has been chosen yet is looked at by the device too."""
    options = {"preset": None, "residual": residual, "capturable": True}
    replayed, eager = (made(DCTAdamW, options, every) for _ in range(2))
    plain = made(DCTAdamW, {**options, "capturable": False}, every)
    everything = (replayed, eager, plain)
    give(everything, 0, scale=0.0)
    stepped(replayed)
    stepped(eager)
    plain.step()
    capture = captured(replayed)
    stepped(eager)
    plain.step()
    indices = [eager.state[p]["indices"].clone() for p in all_parameters(eager)[:4]]
    for step in range(3, 3 + STEPS):
        # Nor has the step at which columns are due a gradient.
        give(everything, step, scale=float(step > 3))
        capture.replay()
        stepped(eager)
        plain.step()
        assert_alike(replayed, eager)
        assert_near(eager, plain)
    for parameter, before in zip(all_parameters(eager), indices, strict=False):
        assert not torch.equal(eager.state[parameter]["indices"], before)


@pytest.mark.parametrize("kind", [DCTAdamW, Trion])
def test_numbers_that_are_tensors_are_read_at_every_replay(kind):
    numbers = {"lr": torch.tensor(0.02), "weight_decay": torch.tensor(0.1)}
    if kind is Trion:
        numbers["momentum"] = torch.tensor(0.85)
    optimizer = made(kind, {}, 1, capturable=True, **numbers)
    plain = made(kind, {})
    give((optimizer, plain), 0)
    optimizer.step()
    plain.step()
    capture = captured_but_for_numbers(optimizer)
    plain.step()
    for step, (lr, weight_decay) in enumerate([(0.0, 0.1), (0.04, 0.1), (0.04, 3.0), (0.01, 0.0)]):
        give((optimizer, plain), 2 + step)
        numbers["lr"].fill_(lr)
        numbers["weight_decay"].fill_(weight_decay)
        for group in plain.param_groups:
            group["lr"], group["weight_decay"] = lr, weight_decay
            if kind is Trion:
                group["momentum"] = 0.1 * step
        if kind is Trion:
            numbers["momentum"].fill_(0.1 * step)
        capture.replay()
        plain.step()
        assert_near(optimizer, plain)


def captured_but_for_numbers(optimizer):
    """Capture a step whose rates are checked: those of the CPU, which is the device here, are read for that alone."""
    capture = captured(optimizer)
    assert set(capture.found) == {"aten._local_scalar_dense.default"}
    reads = [
        entry for entry in capture.done if entry[0] is torch.ops.aten._local_scalar_dense.default
    ]
    rates = {id(group["lr"]) for group in optimizer.param_groups}
    assert {id(args[0]) for _, args, _, _ in reads} <= rates
    capture.found.clear()
    return capture


def test_decay_rates_that_are_tensors_are_read_at_every_replay():
    betas = torch.tensor(0.9), torch.tensor(0.99)
    optimizer = made(DCTAdamW, {"betas": betas}, capturable=True)
    plain = made(DCTAdamW, {"betas": (0.9, 0.99)})
    give((optimizer, plain), 0)
    optimizer.step()
    plain.step()
    capture = captured(optimizer)
    plain.step()
    for step, values in enumerate([(0.9, 0.99), (0.5, 0.95), (0.0, 0.9)]):
        give((optimizer, plain), 2 + step)
        for beta, value in zip(betas, values, strict=True):
            beta.fill_(value)
        for group in plain.param_groups:
            group["betas"] = values
        capture.replay()
        plain.step()
        assert_near(optimizer, plain)


def test_a_replay_that_finds_a_number_of_the_host_is_seen():
    """The emulation tells what a graph would do wrong: without `capturable` every replay is the captured step."""
    replayed, eager = (made(DCTAdamW, {"preset": None, "residual": "discard"}) for _ in range(2))
    give((replayed, eager), 0)
    stepped(replayed)
    stepped(eager)
    with Capture() as capture:
        replayed.step()
    eager.step()
    capture.found.clear()
    give((replayed, eager), 2)
    capture.replay()
    eager.step()
    with pytest.raises(AssertionError):
        assert_same_bits(all_parameters(replayed), all_parameters(eager))


# -- the same steps, nothing read, everything in its place -------------------------------------------


def assert_near(one, other):
    for found, wanted in zip(all_parameters(one), all_parameters(other), strict=True):
        dtype = str(wanted.dtype).removeprefix("torch.")
        values = wanted.detach().double().numpy()
        assert_close(found.detach(), values, xp=torch, dtype=dtype, kind="trajectory")


@pytest.mark.parametrize(("kind", "options", "every"), ROWS)
def test_steps_are_those_of_an_ordinary_optimizer(kind, options, every):
    capturable, plain = (made(kind, options, every, capturable=own) for own in (True, False))
    for optimizer in (capturable, plain):
        train(optimizer, all_parameters(optimizer), 1)
    before = addresses(capturable)
    for optimizer in (capturable, plain):
        train(optimizer, all_parameters(optimizer), 9, start=1)
    assert_near(capturable, plain)
    assert addresses(capturable) == before
    for parameter in all_parameters(capturable):
        count = capturable.state[parameter]["step"]
        assert count.shape == ()
        assert count.device == parameter.device
        assert count == 10


@pytest.mark.parametrize(("kind", "options", "every"), ROWS)
def test_no_step_reads_a_number_from_the_first_on(kind, options, every):
    optimizer = made(kind, options, every, capturable=True)
    for step in range(4):
        give((optimizer,), step)
        stepped(optimizer)


@pytest.mark.parametrize("numbers", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(("kind", "options", "every"), ROWS)
def test_all_is_done_where_the_parameters_are(kind, options, every, numbers):
    """On a device that has no numbers at all none can be read, and what is made on the host is seen."""
    given = [torch.nn.Parameter(p.to("meta")) for p in parameters(*SHAPES)]
    names = ("lr", "weight_decay") if numbers else ()
    own = {name: torch.zeros((), device="meta") for name in names}
    optimizer = made(kind, options, every, given, capturable=True, **own)
    for parameter in given:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    with OnDevice("meta"):
        optimizer.step()
        optimizer.step()
    for parameter in given:
        assert {value.device.type for value in optimizer.state[parameter].values()} == {"meta"}


def test_one_that_got_its_first_gradient_late_is_counted_by_itself():
    """The host cannot tell that counts differ, and takes no two of them for one."""
    runs = []
    for own in (True, False):
        optimizer = made(DCTAdamW, {}, capturable=own)
        first, late, *others = all_parameters(optimizer)
        train(optimizer, [first, *others], 3)
        train(optimizer, [first, late, *others], 4, start=3)
        runs.append(optimizer)
    assert_near(*runs)
    counts = [int(runs[0].state[p]["step"]) for p in all_parameters(runs[0])]
    assert counts == [7, 4, 7, 7, 7]


def test_a_compiled_step_is_one_graph_whatever_is_due():
    torch._dynamo.reset()
    options = {"residual": "discard"}
    compiled, eager = (made(DCTAdamW, options, 3, capturable=True) for _ in range(2))
    for optimizer in (compiled, eager):
        train(optimizer, all_parameters(optimizer), 2)
    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(compiled.step, backend=counter, fullgraph=True)
    for optimizer, once in ((compiled, step), (eager, eager.step)):
        for number in range(2, 8):
            set_gradients(all_parameters(optimizer), number)
            once()
    torch._dynamo.reset()
    assert counter.frame_count == 1
    assert_near(compiled, eager)


def test_weights_are_not_measured():
    optimizer = made(DCTAdamW, {}, capturable=True)
    optimizer.record_diagnostics(every=1)
    give((optimizer,), 0)
    stepped(optimizer)
    stepped(optimizer)
    assert optimizer.diagnostics() == []


@pytest.mark.parametrize("kind", [DCTAdamW, Trion])
def test_the_option_may_be_set_and_taken_back_in_a_run(kind):
    switched, plain = made(kind, {}, 3), made(kind, {}, 3)
    for step, own in enumerate([False, False, True, True, True, False, False]):
        for group in switched.param_groups:
            group["capturable"] = own
        for optimizer in (switched, plain):
            train(optimizer, all_parameters(optimizer), 1, start=step)
        count = switched.state[all_parameters(switched)[0]]["step"]
        assert isinstance(count, torch.Tensor) is own
    assert_near(switched, plain)
    for one, other in zip(all_parameters(switched), all_parameters(plain), strict=True):
        counts = [optimizer.state[p]["step"] for optimizer, p in ((switched, one), (plain, other))]
        assert type(counts[0]) is type(counts[1])
        assert counts[0] == counts[1] == 7


def test_a_schedule_writes_into_the_rate_that_a_graph_reads():
    rate = torch.tensor(0.02)
    optimizer = made(DCTAdamW, {}, lr=rate, capturable=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.01


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DCTAdamW, Trion])
@pytest.mark.parametrize("saved_as", [True, False])
@pytest.mark.parametrize("loaded_as", [True, False])
def test_state_dicts_go_on_either_way(kind, saved_as, loaded_as, tmp_path):
    first = made(kind, {}, 3, capturable=saved_as)
    train(first, all_parameters(first), 4)
    torch.save(first.state_dict(), tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    for state, parameter in zip(saved["state"].values(), all_parameters(first), strict=True):
        assert type(state["step"]) is type(first.state[parameter]["step"])
    second = made(kind, {}, 3, copies(all_parameters(first)), capturable=loaded_as)
    second.load_state_dict(saved)
    assert all(group["capturable"] is loaded_as for group in second.param_groups)
    for parameter in all_parameters(second)[:4]:
        assert isinstance(second.state[parameter]["step"], torch.Tensor) is loaded_as
    for optimizer in (first, second):
        train(optimizer, all_parameters(optimizer), 4, start=4)
    assert_near(second, first)


@pytest.mark.parametrize("saved_as", [True, False])
def test_portable_files_go_on_either_way(saved_as, tmp_path):
    first = made(DCTAdamW, {}, 3, capturable=saved_as)
    train(first, all_parameters(first), 4)
    first.save_state(tmp_path / "saved.safetensors")
    second = made(DCTAdamW, {}, 3, copies(all_parameters(first)), capturable=not saved_as)
    assert second.load_state(tmp_path / "saved.safetensors") == 4
    for optimizer in (first, second):
        train(optimizer, all_parameters(optimizer), 4, start=4)
    assert_near(second, first)


@pytest.mark.parametrize("rate", [0.02, torch.tensor(0.02, dtype=torch.float64)])
def test_a_tensor_stays_one_when_a_state_dict_is_loaded(rate):
    saved = made(Trion, {"lr": rate}).state_dict()
    own = torch.tensor(0.5)
    optimizer = made(Trion, {}, lr=own, capturable=True)
    optimizer.load_state_dict(saved)
    for group in optimizer.param_groups:
        assert group["lr"].dtype == own.dtype
        assert group["lr"].item() == pytest.approx(0.02)
    assert own == 0.5


def test_state_dicts_from_before_the_option_load():
    optimizer = made(DCTAdamW, {}, capturable=True)
    saved = made(DCTAdamW, {}).state_dict()
    for group in saved["param_groups"]:
        del group["capturable"]
    optimizer.load_state_dict(saved)
    assert all(group["capturable"] for group in optimizer.param_groups)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"capturable": 1}, ValueError, "capturable must be one of False, True, got 1"),
        ({"nonfinite": "skip"}, ValueError, "nonfinite must be 'propagate' with capturable=True"),
        ({"nonfinite": "raise"}, ValueError, "got 'raise'; look at gradients outside"),
        ({"basis": "svd"}, ValueError, "basis must be a fixed one with capturable=True"),
        ({"basis": "power"}, ValueError, "got 'power'; use basis='dct', or set capturable=False"),
    ],
    ids=str,
)
def test_what_cannot_be_captured_is_refused(options, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        DCTAdamW(parameters((12, 8)), rank=4, **{"capturable": True} | options)
    groups = [{"params": parameters((12, 8)), **{"capturable": True} | options}]
    with pytest.raises(kind, match=re.escape(message)):
        DCTAdamW(groups, rank=4)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "betas", "residual_scale"])
def test_a_number_on_another_device_is_refused(name):
    """The graph would go on with what it was at the capture."""
    own = torch.nn.Parameter(torch.empty(12, 8, device="meta"))
    value = (torch.tensor(0.9), torch.tensor(0.99)) if name == "betas" else torch.tensor(0.1)
    with pytest.raises(ValueError, match=rf"{name}.* must be a number or a tensor on the device"):
        DCTAdamW([("weight", own)], rank=4, capturable=True, **{name: value})
    DCTAdamW([own], rank=4, **{name: value})


@pytest.fixture
def group_of_two():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_sharded_parameters_are_refused(group_of_two):
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    message = "capturable must be False for parameters that are sharded"
    with pytest.raises(NotImplementedError, match=message):
        DCTAdamW(parameters((12, 8)), rank=4, capturable=True, process_group=group_of_two)
    for shape in ((12, 8), (12,)):
        mesh = init_device_mesh("cpu", (2,))
        own = torch.nn.Parameter(distribute_tensor(tensor(*shape), mesh, [Shard(0)]))
        with pytest.raises(NotImplementedError, match=message):
            DCTAdamW([own], rank=4, capturable=True)


def test_coefficients_are_not_accumulated():
    options = {"residual": "discard", "refresh_every": 4}
    optimizer = DCTAdamW(parameters((12, 8)), rank=4, capturable=True, **options)
    with pytest.raises(ValueError, match="capturable=False, got none in 1 groups"):
        accumulate_projected(optimizer)


@pytest.fixture
def capturing(monkeypatch):
    monkeypatch.setattr(_capturable, "_is_capturing", lambda members: True)


@pytest.mark.usefixtures("capturing")
def test_an_ordinary_step_is_not_captured():
    optimizer = DCTAdamW([("weight", parameters((12, 8))[0])], rank=4)
    set_gradients(all_parameters(optimizer), 0)
    with pytest.raises(RuntimeError, match="weight is in a group with capturable=False"):
        optimizer.step()
    assert not optimizer.state


def test_state_is_made_before_a_capture(monkeypatch):
    first, late = parameters((12, 8), (12, 8))
    named = [("first", first), ("late", late)]
    optimizer = DCTAdamW(named, rank=4, capturable=True)
    train(optimizer, [first], 1)
    set_gradients([first, late], 1)
    monkeypatch.setattr(_capturable, "_is_capturing", lambda members: True)
    with pytest.raises(RuntimeError, match=r"late has no state on its device yet"):
        optimizer.step()
    late.grad = None
    optimizer.step()
    assert optimizer.state[first]["step"] == 2


@pytest.mark.usefixtures("capturing")
def test_a_number_that_was_replaced_by_one_of_the_host_is_seen_at_the_capture():
    own = torch.nn.Parameter(torch.empty(12, 8, device="meta"))
    rate = torch.zeros((), device="meta")
    optimizer = DCTAdamW([("weight", own)], lr=rate, rank=4, capturable=True)
    own.grad = torch.empty_like(own)
    optimizer.state[own] = {"step": torch.zeros((), dtype=torch.int32, device="meta")}
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    with pytest.raises(ValueError, match="lr must be a number or a tensor on the device of weight"):
        optimizer.step()


def test_presets_can_be_captured():
    refused = []
    for name, preset in lc.PRESETS.items():
        try:
            DCTAdamW(parameters((12, 8)), rank=4, preset=name, capturable=True)
        except ValueError:
            refused.append(preset["basis"])
    assert set(refused) <= set(STORED_BASES)


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"residual": "error_feedback", "refresh_every": 3}, marks=pytest.mark.slow)],
    ids=str,
)
def test_a_large_matrix_is_stepped_in_parts_alike(options):
    """Parts of one are written in place as it is; all else of its state is too."""
    given = parameters((1030, 1024))
    capturable, plain = (
        DCTAdamW(copies(given), lr=0.02, rank=32, capturable=own, **options)
        for own in (True, False)
    )
    for optimizer in (capturable, plain):
        train(optimizer, all_parameters(optimizer), 1)
    before = addresses(capturable)
    for optimizer in (capturable, plain):
        train(optimizer, all_parameters(optimizer), 3, start=1)
    assert addresses(capturable) == before
    assert_near(capturable, plain)

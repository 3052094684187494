"""Gradients used as backward makes them: the run is that of ordinary loops, and they are gone when they should be."""

import gc
import weakref

import lowrank_torch
import pytest
import torch
from helpers import assert_close, to_numpy
from lowrank_torch._options import GroupOptions
from lowrank_torch._planner import Planner
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch_helpers import tensor

LAYERS = 4


def model(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16)) for _ in range(LAYERS)]
    return nn.Sequential(*layers)


def loss_of(net, step, part=0):
    x = tensor(8, 16, seed=100 * step + part)
    return ((net(x) - x.roll(1, -1)) ** 2).mean()


def optimizer_of(net, constructor=lowrank_torch.DCTAdamW, **options):
    return constructor(net.parameters(), **{"lr": 0.01, "rank": 4, "foreach": False, **options})


def assert_same(one, other):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("constructor", [lowrank_torch.DCTAdamW, lowrank_torch.Trion])
def test_stepping_in_backward_is_the_ordinary_run_under_a_schedule(constructor):
    plain, hooked = model(), model()
    runs = []
    for net, early in ((plain, False), (hooked, True)):
        optimizer = optimizer_of(net, constructor)
        if early:
            lowrank_torch.step_in_backward(optimizer)
        schedule = StepLR(optimizer, step_size=2, gamma=0.5)
        for step in range(6):
            loss_of(net, step).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        runs.append(optimizer.param_groups[0]["lr"])
    assert runs[0] == runs[1] == 0.01 / 8
    assert_same(plain, hooked)


def live_gradient_numbers(net):
    """Numbers of gradients in memory."""
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return sum(sum(part.numel() for part in getattr(g, "parts", [g])) for g in gradients)


def test_gradients_of_one_layer_at_a_time():
    net = model()
    lowrank_torch.step_in_backward(optimizer_of(net))
    peak = []
    for parameter in net.parameters():
        # Registered after the optimizer's, so what it sees is what stays when a parameter is done.
        parameter.register_post_accumulate_grad_hook(
            lambda _: peak.append(live_gradient_numbers(net))
        )
    loss_of(net, 0).backward()
    assert len(peak) == 4 * LAYERS
    assert max(peak) == 0, "a gradient is gone before the next parameter's is made"


def test_removing_the_hooks_leaves_gradients_alone():
    net = model()
    optimizer = optimizer_of(net)
    before = [p.detach().clone() for p in net.parameters()]
    with lowrank_torch.step_in_backward(optimizer):
        pass
    loss_of(net, 0).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def trained(projected, *, parts=3, steps=9, clip=None, **options):
    net = model()
    optimizer = optimizer_of(
        net, **{"preset": None, "refresh_every": 4, "residual": "discard", **options}
    )
    accumulation = lowrank_torch.accumulate_projected(optimizer) if projected else None
    seen = []
    for step in range(steps):
        for part in range(parts):
            loss_of(net, step, part).backward()
            seen.append(live_gradient_numbers(net))
        if clip and accumulation:
            accumulation.clip_norm_(clip)
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer, seen


@pytest.mark.parametrize(
    "options", [{}, {"bias_correction": "column"}, {"basis": "svd"}, {"foreach": True}], ids=str
)
def test_projected_accumulation_is_accumulation(options):
    whole, _, _ = trained(False, **options)
    projected, _, _ = trained(True, **options)
    for a, b in zip(projected.parameters(), whole.parameters(), strict=True):
        # Coefficients are summed in another order than gradients.
        assert_close(a.detach(), to_numpy(b), xp=torch, dtype="float32", kind="trajectory")


def test_matrices_keep_coefficients_alone_between_refreshes():
    _, optimizer, seen = trained(True, parts=1, steps=8)
    given = optimizer.param_groups[0]["params"]
    every = sum(p.numel() for p in given)
    # 4 columns of 16.
    kept = sum(p.numel() // 4 if p.ndim == 2 else p.numel() for p in given)
    chooses = {1, 4, 8}
    assert seen == [every if step in chooses else kept for step in range(1, 9)]


def test_zero_grad_forgets_coefficients_too():
    net, optimizer, _ = trained(True, steps=2)
    before = [p.detach().clone() for p in net.parameters()]
    loss_of(net, 2).backward()
    assert optimizer.projected()
    optimizer.zero_grad()
    assert not optimizer.projected()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_step_uses_coefficients_once():
    _, optimizer, _ = trained(True, steps=2)
    assert not optimizer.projected()


def test_clips_what_is_kept():
    net = model()
    optimizer = optimizer_of(net, preset=None, refresh_every=4, residual="discard")
    accumulation = lowrank_torch.accumulate_projected(optimizer)
    loss_of(net, 0).backward()
    whole = torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])
    assert torch.equal(accumulation.clip_norm_(1e9), whole)
    optimizer.step()
    optimizer.zero_grad()
    loss_of(net, 1).backward()
    kept = optimizer.projected()
    parts = [part for p in net.parameters() for part in kept.get(p, [p.grad])]
    expected = torch.nn.utils.get_total_norm(parts)
    assert torch.equal(accumulation.clip_norm_(0.01), expected)
    assert torch.allclose(torch.nn.utils.get_total_norm(parts), torch.tensor(0.01), rtol=1e-3)
    assert torch.allclose(accumulation.clip_norm_(1.0), torch.tensor(0.01), rtol=1e-3)
    with pytest.raises(ValueError, match=r"max_norm must be greater than 0.*got 0"):
        accumulation.clip_norm_(0)


@pytest.mark.parametrize("options", [{"refresh_every": 1}, {"residual": "sign"}], ids=str)
def test_accumulation_refuses_options_that_need_whole_gradients(options):
    net = model()
    optimizer = optimizer_of(
        net, **{"preset": None, "refresh_every": 4, "residual": "discard", **options}
    )
    with pytest.raises(
        ValueError, match="must be a DCTAdamW of preset=None, with a group of residual='discard'"
    ):
        lowrank_torch.accumulate_projected(optimizer)
    loss_of(net, 0).backward()
    assert not optimizer.projected()


def test_a_group_of_other_options_keeps_its_gradients_whole():
    runs = []
    for projected in (False, True):
        net = model()
        first, rest = [net[0][0].weight], [p for p in net.parameters() if p is not net[0][0].weight]
        groups = [
            {"params": first, "residual": "sign"},
            {"params": rest, "refresh_every": 4, "residual": "discard"},
        ]
        optimizer = lowrank_torch.DCTAdamW(groups, lr=0.01, rank=4, preset=None)
        if projected:
            lowrank_torch.accumulate_projected(optimizer)
        for step in range(3):
            loss_of(net, step).backward()
            assert first[0].grad is not None
            optimizer.step()
            optimizer.zero_grad()
        runs.append(net)
    assert_same(*runs)


def test_a_step_on_columns_that_may_be_others_is_refused():
    net, optimizer, _ = trained(True, steps=2)
    loss_of(net, 2).backward()
    kept = [p.grad for p in net.parameters()]
    optimizer.step()
    assert all(p.grad is None for p in net.parameters() if p.ndim == 2)
    for parameter, gradient in zip(net.parameters(), kept, strict=True):
        parameter.grad = gradient
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="must be forgotten after a step, by zero_grad"):
        optimizer.step()
    with pytest.raises(ValueError, match="must be forgotten after a step, by zero_grad"):
        loss_of(net, 3).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("constructor", [lowrank_torch.DCTAdamW, lowrank_torch.Trion])
def test_a_second_backward_pass_before_the_step_is_refused(constructor):
    net = model()
    optimizer = optimizer_of(net, constructor)
    lowrank_torch.step_in_backward(optimizer)
    loss_of(net, 0).backward()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(
        RuntimeError, match=r"second gradient.*gradient_accumulation_steps=1.*max_g"
    ):
        loss_of(net, 0, part=1).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    optimizer.zero_grad()
    optimizer.step()
    loss_of(net, 1).backward()
    assert {int(optimizer.state[p]["step"]) for p in net.parameters()} == {2}


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


# Both see the gradients of one replica.
BEFORE_AVERAGING = [
    (lowrank_torch.step_in_backward, {}),
    (
        lowrank_torch.accumulate_projected,
        {"preset": None, "refresh_every": 4, "residual": "discard"},
    ),
]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("function", "options"), BEFORE_AVERAGING)
def test_hooks_before_ddp_averages_are_refused(function, options):
    net = model()
    optimizer = optimizer_of(net, **options)
    wrapped = nn.parallel.DistributedDataParallel(net)
    with pytest.raises(
        NotImplementedError, match=f"{function.__name__} needs averaged.*fully_shard"
    ):
        function(optimizer)
    del wrapped
    gc.collect()
    hooks = function(optimizer)
    with pytest.raises(NotImplementedError, match=r"needs averaged.*optimizer.step\(\) after"):
        nn.parallel.DistributedDataParallel(net)
    # Another model is nobody's concern, and this one neither once the hooks are gone.
    nn.parallel.DistributedDataParallel(model())
    hooks.remove()
    nn.parallel.DistributedDataParallel(net)


def test_nothing_stays_of_hooks_that_were_removed():
    watched = nn.modules.module._global_module_registration_hooks
    count = len(watched)
    net = model()
    optimizer = optimizer_of(net, preset=None, refresh_every=4, residual="discard")
    alive = [weakref.ref(optimizer), torch.utils.weak.TensorWeakRef(net[0][0].weight)]
    for function in (lowrank_torch.step_in_backward, lowrank_torch.accumulate_projected):
        with function(optimizer):
            assert len(watched) == count + 1
            loss_of(net, 0).backward()
    assert optimizer.projected()
    assert len(watched) == count
    del net, optimizer
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another, as Accelerate's and Lightning's are."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups


def test_wrapped_optimizers_are_taken():
    net = model()
    optimizer = optimizer_of(net, preset=None, refresh_every=4, residual="discard")
    wrapped = Wrapper(Wrapper(optimizer))
    with lowrank_torch.step_in_backward(wrapped):
        loss_of(net, 0).backward()
    assert {int(optimizer.state[p]["step"]) for p in net.parameters()} == {1}
    with lowrank_torch.accumulate_projected(wrapped):
        loss_of(net, 1).backward()
    assert optimizer.projected()


@pytest.mark.parametrize("function", ["step_in_backward", "accumulate_projected"])
def test_another_wrapped_optimizer_is_refused_by_its_name(function):
    other = Wrapper(torch.optim.SGD(model().parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"attribute \.optimizer; got Wrapper around SGD$"):
        getattr(lowrank_torch, function)(other)


@pytest.mark.parametrize("grouped", [True, False], ids=["a group each", "one group"])
def test_a_hook_looks_at_its_own_parameter_alone(grouped, monkeypatch):
    net = model()
    given = list(net.parameters())
    groups = [{"params": [p]} for p in given] if grouped else given
    optimizer = lowrank_torch.DCTAdamW(groups, lr=0.01, rank=4)
    lowrank_torch.step_in_backward(optimizer)
    loss_of(net, 0).backward()
    optimizer.step()
    looks = []
    for owner, name in ((GroupOptions, "config_of"), (Planner, "plan")):
        real = getattr(owner, name)

        def counted(*args, real=real, name=name, **kwargs):
            looks.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
    loss_of(net, 1).backward()
    assert sorted(looks) == ["config_of"] * len(given) + ["plan"] * len(given)


@pytest.mark.parametrize("function", ["step_in_backward", "accumulate_projected"])
def test_another_optimizer_is_refused(function):
    other = torch.optim.SGD(model().parameters(), lr=0.1)
    with pytest.raises(TypeError, match="optimizer must be one of this package"):
        getattr(lowrank_torch, function)(other)

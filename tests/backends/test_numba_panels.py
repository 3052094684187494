"""The panels that Numba compiles for large matrices on a CPU give what `StandardOps` gives."""

import copy
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from helpers import assert_close, normal
from oracles import dct_basis

pytestmark = [
    pytest.mark.usefixtures("torch"),
    pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba: not installed"),
    # The first of them waits for half a minute while Numba compiles.
    pytest.mark.slow,
]
# Fewer rows than a panel has, more than one call takes, and no multiple of either.
ROWS = (3, 37)
FACTORED = {"second_moment": "factored", "betas": (0.9, 0.999)}


@pytest.fixture
def panels(monkeypatch):
    from lowrank_backends import _numba_launch, _torch_panels

    monkeypatch.setattr(_torch_panels, "LEAST", 0)
    monkeypatch.setattr(_numba_launch, "_CALL", 512)
    return _numba_launch


def float32(*shape, seed=0):
    import torch

    return torch.from_numpy(normal(*shape, seed=seed).astype(np.float32))


def laid(x, across):
    """The same numbers, in memory row after row, or with rows side by side."""
    return x.mT.contiguous().mT if across else x


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("rows", ROWS)
# By the factors 4, 2, 3, 5, 11 and 61, in parts of a panel that are near and that are not.
@pytest.mark.parametrize("n", [8, 16, 24, 40, 88, 488, 768, 2048])
def test_transforms(panels, torch, rows, n, across):
    x, basis = laid(float32(rows, n), across), dct_basis(n)
    wanted = x.double().numpy() @ basis
    assert_close(panels.dct(x), wanted, xp=torch, dtype="float32")
    assert_close(panels.idct(x), x.double().numpy() @ basis.T, xp=torch, dtype="float32")
    assert panels.dct(x).stride() == panels.idct(x).stride() == x.stride()
    sums = panels.PanelRows([x], [x], [None], None).sums(("l1", "l2"))
    assert_close(sums[0], abs(wanted).sum(0), xp=torch, dtype="float32")
    assert_close(sums[1], (wanted**2).sum(0), xp=torch, dtype="float32")
    # With another matrix added, and of some columns alone: more than are written at a time, and no multiple.
    plus, chosen = (
        laid(float32(rows, n, seed=1), across),
        np.sort(np.random.default_rng(n).permutation(n)[:11]),
    )
    wanted = wanted + plus.double().numpy() @ basis
    passes = panels.PanelRows([x], [x], [plus], None)
    # Of coefficients that are made anew, and of those that were kept.
    for _ in range(2):
        columns = passes.take(torch.from_numpy(chosen).int())
        assert_close(columns, wanted[:, chosen], xp=torch, dtype="float32")
        added = passes.sums(("l2",))
        assert_close(added[0], (wanted**2).sum(0), xp=torch, dtype="float32")


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(("moved", "summed"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("rest", "factored"),
    [
        ("discard", False),
        ("sign", False),
        ("normalized", False),
        ("bounded", True),
        ("discard", True),
    ],
)
def test_rows(panels, torch, rest, factored, rows, moved, summed, across):
    import triton_runs as cases

    from lowrank_core.ops.rows import RowMoments, RowWrite

    n, rank = 40, 10
    job = cases.job_of(n, rest, (), factored=factored, moved=moved)
    moments = [float32(rows, rank, seed=1), float32(rows, rank, seed=2) ** 2, float32(rows, 1) ** 2]
    moments = [laid(x, across) for x in moments]
    given = RowMoments(
        moments[0], None if factored else moments[1], moments[2] if factored else None
    )
    wide = RowMoments(*(None if x is None else x.double() for x in given))
    w, g = (laid(float32(rows, n, seed=seed), across) for seed in (3, 4))
    how = [RowWrite(0.1, 0.5)]
    ((wanted, after),) = cases.plain(g.double(), w.double()).step([wide], job, how)
    own = cases.in_float32(job, tensors=False)
    passes = cases.kernels(g, w, state=given)
    if summed:
        passes.sums(("l2",))
    ((found, kept),) = passes.step([given], own, how)
    assert found is w
    assert_close(found, wanted, xp=torch, dtype="float32", kind="trajectory")
    for x, y, z in zip(kept, given, after, strict=True):
        assert x is y
        if z is not None:
            assert_close(x, z, xp=torch, dtype="float32")


def lift_of(torch, rows, n, rank):
    """A step on seeded columns."""
    from lowrank_core.ops.lifts import RowLift

    indices = torch.from_numpy(np.sort(np.random.default_rng(n).permutation(n)[:rank])).int()
    return RowLift(indices, float32(rows, rank, seed=8), float32(rows, rank, seed=9), 0.15, 3)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("rows", ROWS)
# More columns than a block of what is written, and a rest of one.
@pytest.mark.parametrize(("n", "rank"), [(40, 10), (8, 8), (264, 3), (768, 192)])
def test_lifted_rows(panels, torch, rows, n, rank, across):
    import triton_runs as cases

    from lowrank_core.ops.rows import RowWrite

    job = lift_of(torch, rows, n, rank)
    exact = job._replace(coefficients=job.coefficients.double(), update=job.update.double())
    w, g, m = (laid(float32(rows, n, seed=seed), across) for seed in (3, 4, 5))
    how = [RowWrite(0.1, 0.5)]
    ((wanted, after),) = cases.plain(g.double(), w.double(), m.double()).lift(exact, how)
    ((found, kept),) = cases.kernels(g, w, m).lift(job, how)
    assert found is w
    assert kept is m
    assert_close(w, wanted, xp=torch, dtype="float32")
    assert_close(m, after, xp=torch, dtype="float32")


def test_lifted_rows_that_are_done_are_passed_over(panels, torch):
    import triton_runs as cases

    from lowrank_core.ops.rows import RowWrite

    w, g, m = (float32(48, 32, seed=seed) for seed in (3, 4, 5))
    before, done = [w.clone(), m.clone()], {("name", 16)}
    how = RowWrite(0.1, 0.0, done=done, name=("name",))
    cases.kernels(g, w, m).lift(lift_of(torch, 48, 32, 8), [how])
    assert done == {("name", 0), ("name", 16), ("name", 32)}
    for x, old in zip((w, m), before, strict=True):
        assert torch.equal(x[16:32], old[16:32])
        assert not (x == old).all(1)[[0, 15, 32, 47]].any()


def test_rows_that_are_done_are_passed_over(panels, torch):
    import triton_runs as cases

    from lowrank_core.ops.rows import RowMoments, RowWrite

    job = cases.in_float32(
        cases.job_of(32, "discard", (), factored=False, moved=False), tensors=False
    )
    w, g = float32(48, 32), float32(48, 32, seed=1)
    moments = RowMoments(torch.zeros(48, 8), torch.zeros(48, 8), None)
    before, done = w.clone(), {("name", 16)}
    how = RowWrite(0.1, 0.0, done=done, name=("name",))
    cases.kernels(g, w, state=moments).step([moments], job, [how])
    assert done == {("name", 0), ("name", 16), ("name", 32)}
    assert torch.equal(w[16:32], before[16:32])
    assert not (moments.second == 0).all(1)[:16].any()
    assert not (w == before).all(1)[32:].any()


@pytest.mark.parametrize("shape", [(64, 64), (40, 72)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"residual": "discard", "refresh_every": 3},
        {"residual": "normalized", "score_decay": 0.9},
        {"residual": "bounded", **FACTORED},
    ],
    ids=str,
)
def test_steps_of_the_optimizer(panels, torch, monkeypatch, options, shape):
    from lowrank_backends import _torch_panels
    from lowrank_torch import DCTAdamW

    start, runs, calls, real = float32(*shape), [], [], panels.PanelRows.step
    monkeypatch.setattr(panels.PanelRows, "step", lambda *own: calls.append(own) or real(*own))
    for least in (0, 2**40):
        monkeypatch.setattr(_torch_panels, "LEAST", least)
        parameter = torch.nn.Parameter(start.clone())
        own = DCTAdamW([parameter], lr=0.02, weight_decay=0.1, rank=9, **options)
        for step in range(5):
            parameter.grad = float32(*shape, seed=step + 1)
            own.step()
        runs.append((parameter.detach(), copy.deepcopy(own.state[parameter])))
    assert len(calls) == 5
    (ours, state), (theirs, other) = runs
    assert_close(ours, theirs, xp=torch, dtype="float32", kind="trajectory")
    assert torch.equal(state["indices"], other["indices"])
    for name in ("first_moment", "second_moment", "row_energy"):
        if state.get(name) is not None:
            assert_close(state[name], other[name], xp=torch, dtype="float32", kind="trajectory")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["DCTAdamW", "tiny", "Trion"])
def test_coefficients_that_are_kept_are_those_made_anew(panels, torch, monkeypatch, kind, side):
    """And matrices that are stepped together are as one by one, but where products of stacks round otherwise."""
    import lowrank_torch
    from lowrank_backends import _numba_launch, _torch_panels

    monkeypatch.setattr(_torch_panels, "LEAST", 0)
    build = lowrank_torch.Trion if kind == "Trion" else lowrank_torch.DCTAdamW
    options = {"preset": "tiny"} if kind == "tiny" else {}
    calls, real, runs = [], panels.PanelRows.sums, []
    monkeypatch.setattr(panels.PanelRows, "sums", lambda *own: calls.append(own) or real(*own))
    for kept, foreach in ((2**21, True), (0, True), (2**21, False)):
        monkeypatch.setattr(_numba_launch, "_KEPT", kept)
        parameters = [torch.nn.Parameter(float32(40, 72, seed=seed)) for seed in range(3)]
        own = build(parameters, lr=0.02, rank=9, side=side, foreach=foreach, **options)
        for step in range(3):
            for place, parameter in enumerate(parameters):
                parameter.grad = float32(40, 72, seed=10 * step + place)
            own.step()
        runs.append([p.detach() for p in parameters])
    assert len(calls) == 3 + 3 + 9
    together, anew, alone = runs
    assert all(map(torch.equal, together, anew))
    for one, other in zip(together, alone, strict=True):
        if kind == "Trion":
            assert_close(one, other, xp=torch, dtype="float32", kind="trajectory")
        else:
            assert torch.equal(one, other)


# Blocks that are whole, cut and several, of rows and of columns, and calls that end within the matrix.
@pytest.mark.parametrize("shape", [(64, 64), (40, 1100), (1100, 40), (1, 64), (64, 1)])
def test_steps_with_a_moment_in_codes(panels, torch, monkeypatch, shape):
    from lowrank_backends import _numba_launch, _torch_panels
    from lowrank_torch import DCTAdamW

    monkeypatch.setattr(_numba_launch, "_CALL", 40 * 256)
    calls, real, runs = [], panels.PanelRows.step, []
    monkeypatch.setattr(panels.PanelRows, "step", lambda *own: calls.append(own) or real(*own))
    side = "right" if shape[1] % 8 == 0 else "left"
    for least in (0, 2**40):
        monkeypatch.setattr(_torch_panels, "LEAST", least)
        parameter = torch.nn.Parameter(float32(*shape))
        own = DCTAdamW([parameter], lr=0.02, rank=5, side=side, preset="tiny")
        for step in range(4):
            parameter.grad = float32(*shape, seed=step + 1)
            own.step()
        runs.append((parameter.detach(), own.state[parameter]))
    assert len(calls) == 4
    (ours, state), (theirs, other) = runs
    # Where a number lies at a half to rounding, its code is the next.
    off = (state["first_moment"].int() - other["first_moment"].int()).abs()
    assert off.max() <= 1
    assert off.float().mean() < 1e-2
    for name in ("first_moment_minimum", "first_moment_scale", "row_energy", "energy"):
        assert_close(state[name], other[name], xp=torch, dtype="float32", kind="trajectory")
    assert (ours - theirs).abs().max() < 0.02 / 255


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("size", [1, 255, 256, 600])
def test_codes_are_those_of_quantize(panels, torch, size, across):
    from lowrank_backends import _numba_codes

    import lowrank_core as lc

    x = normal(12, size).astype(np.float32)
    x[1], x[2, ::2], x[3], x[4] = 0.3, 1e-42, 3e38 * np.sign(x[3]), x[4] * 1e-41
    if size > 4:
        x[5, 3], x[6, 3], x[7, 2:4] = np.nan, np.inf, -np.inf
    with np.errstate(all="ignore"):
        wanted = lc.quantize(x, 8)
        exact = lc.dequantize(wanted)
    if across:
        # A part of lines that begins at a block, or none.
        start, stop = (256 if size > 256 else 0), size
    else:
        start, stop = 2, 11
    lines = slice(None) if across else slice(start, stop)
    own = slice(start, stop) if across else slice(None)
    codes, minimum, scale = (
        np.zeros_like(array) for array in (wanted.codes, wanted.minimum, wanted.scale)
    )
    given = np.ascontiguousarray(x[lines, own])
    _numba_codes.encode(given, codes, minimum, scale, start, stop, across)
    np.testing.assert_array_equal(codes[lines, own], wanted.codes[lines, own])
    blocks = slice(start // 256, None) if across else slice(None)
    finite = (np.isfinite(wanted.minimum) & np.isfinite(wanted.scale))[lines, blocks]
    for found, given in ((minimum, wanted.minimum), (scale, wanted.scale)):
        np.testing.assert_array_equal(found[lines, blocks][finite], given[lines, blocks][finite])
    # What is not finite has no code, and its block tells of it.
    told = np.isfinite(minimum) & np.isfinite(scale)
    assert not told[lines, blocks][~finite].any()
    back = _numba_codes.decoded(codes, minimum, scale, start, stop, across)
    told = np.repeat(finite, 256, axis=1)[:, : back.shape[1]]
    np.testing.assert_array_equal(back[told], exact[lines, own][told])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score": "l1", "momentum": 0.95, "rank_scaling": True},
        # Nearly as many columns as there are, and more than rows.
        {"rank": 63, "row_decay": 0.9},
        {"shape": (40, 72), "rank": 11},
        {"shape": (24, 64), "rank": 40, "side": "right"},
        {"weight_decay": 0.0, "maximize": True, "coefficients": "polar_express"},
    ],
    ids=str,
)
def test_steps_of_trion(panels, torch, monkeypatch, options):
    from lowrank_backends import _torch_panels

    shape = options.get("shape", (64, 64))
    given = {"rank": 9, "weight_decay": 0.1, **options}
    given.pop("shape", None)
    runs, calls = [], []
    real = panels.PanelRows.lift
    monkeypatch.setattr(panels.PanelRows, "lift", lambda *own: calls.append(own) or real(*own))
    for least in (0, 2**40):
        monkeypatch.setattr(_torch_panels, "LEAST", least)
        parameter, own = trion(torch, shape, given)
        for step in range(5):
            parameter.grad = float32(*shape, seed=step + 1)
            own.step()
        runs.append((parameter.detach(), own.state[parameter]["momentum"]))
    assert len(calls) == 5
    for ours, theirs in zip(*runs, strict=True):
        assert_close(ours, theirs, xp=torch, dtype="float32", kind="trajectory")


def trion(torch, shape, options):
    """A seeded parameter and its optimizer."""
    from lowrank_torch import Trion

    parameter = torch.nn.Parameter(float32(*shape))
    return parameter, Trion([parameter], lr=0.02, **options)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"momentum_bits": 8}, "float32"),
        ({"state_dtype": "bfloat16"}, "float32"),
        ({"basis": "hartley"}, "float32"),
        ({}, "bfloat16"),
    ],
    ids=str,
)
def test_steps_of_trion_that_panels_do_not_take(panels, torch, monkeypatch, options, kind):
    from lowrank_backends import _torch_panels

    monkeypatch.setattr(panels.PanelRows, "lift", None)
    runs = []
    for least in (0, 2**40):
        monkeypatch.setattr(_torch_panels, "LEAST", least)
        parameter, own = trion(torch, (64, 64), {"rank": 9, **options})
        parameter.data = parameter.data.to(getattr(torch, kind))
        for step in range(3):
            parameter.grad = float32(64, 64, seed=step + 1).to(parameter.dtype)
            own.step()
        runs.append(parameter.detach().float())
    assert_close(*runs, xp=torch, dtype="float32", kind="trajectory")


# In the first matrix, and in the second.
@pytest.mark.parametrize("calls", [1, 9])
def test_an_interrupted_step_of_trion_is_done_once(panels, torch, monkeypatch, calls):
    """Momentum is written to, and what was worked out from it is asked for again: the second time, of the notes."""
    from lowrank_backends import _numba_lift

    runs, real, left = [], _numba_lift.lift_rows, []
    for interrupted in (False, True):
        # Two matrices, each with columns of its own, of as many calls each as it has rows.
        given = {"rank": 9, "split_sizes": (100, 92), "side": "right"}
        parameter, own = trion(torch, (192, 64), given)
        for step in range(2):
            parameter.grad = float32(192, 64, seed=step + 1)
            if interrupted and step == 1:
                left.append(0)

                def failing(*arguments):
                    left[0] += 1
                    if left[0] == calls + 1:
                        raise KeyboardInterrupt
                    real(*arguments)

                monkeypatch.setattr(_numba_lift, "lift_rows", failing)
                with pytest.raises(KeyboardInterrupt):
                    own.step()
            else:
                own.step()
        runs.append((parameter.detach(), own.state[parameter]))
    (ours, state), (theirs, other) = runs
    assert torch.equal(ours, theirs)
    assert state["step"] == other["step"] == 2
    for name, value in state.items():
        if name != "step":
            assert torch.equal(value, other[name])


def test_what_is_not_taken(panels, torch):
    import triton_runs as cases

    def takes(x, *state):
        return cases.OPS.row_kernels([x], [x], [(*state, None)]) is not None

    x = float32(6, 16)
    assert takes(x)
    assert takes(x, x.clone())
    assert not takes(x, x.bfloat16())
    others = [
        x.double(),
        x.bfloat16(),
        x[:, :8],
        x[:, :8].T,
        x[None],
        float32(6, 12),
        float32(6, 8 * 67),
    ]
    assert not any(map(takes, others))
    assert takes(x, x[:, :4].contiguous())
    across = laid(x, True)
    assert takes(across, laid(x[:, :4], True))
    assert not takes(across, x[:, :4].contiguous())
    assert not takes(x, x[:, :4].contiguous().bfloat16())
    assert not takes(x, x[:, :4])


def test_small_matrices_ask_for_no_numba():
    code = """
    import sys, torch, lowrank_torch
    p = torch.nn.Parameter(torch.ones(64, 96))
    p.grad = torch.ones(64, 96)
    lowrank_torch.DCTAdamW([p], rank=4, side="right").step()
    assert "numba" not in sys.modules
    """
    lines = "\n".join(line.strip() for line in code.splitlines())
    subprocess.run([sys.executable, "-c", lines], check=True)


def test_without_a_folder_for_what_it_compiles_steps_are_done_without_it(
    monkeypatch, caplog, torch
):
    from lowrank_backends import _torch_panels

    def refuse(name):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(_torch_panels.importlib, "import_module", refuse)
    _torch_panels._launches.cache_clear()
    monkeypatch.setattr(_torch_panels, "LEAST", 0)
    x = float32(8, 16)
    try:
        assert _torch_panels.launches_for(x, x) is None
        assert _torch_panels.launches_for(x, x) is None
    finally:
        _torch_panels._launches.cache_clear()
    (record,) = caplog.records
    assert record.getMessage().startswith("large matrices are stepped without Numba")
    assert "no locator available" in record.getMessage()

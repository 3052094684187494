"""The study of update rules: a line a run, nothing run twice, a table of what is there."""

import importlib
import importlib.util
import itertools
import json
import shlex
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("torch")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
RESULTS = EXAMPLES.parent / "results" / "study.jsonl"
#: Methods that are another's package, and its module.
PACKAGES = {
    "galore-torch": "galore_torch",
    "apollo-torch": "apollo_torch",
    "stable-spam": "pytorch_optimizer",
    "paper": "ista_daslab_optimizers",
}
SMALL = ["--steps", "3", "--d-model", "64", "--layers", "1", "--seq-len", "16", "--batch", "2"]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("study")
    for name in (
        "study",
        "_study_table",
        "_packages",
        "_rivals",
        "_job",
        "_llama",
        "_text",
        "_weights",
        "_report",
        "_settings",
    ):
        sys.modules.pop(name, None)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_every_method_trains_and_is_run_once(study, tmp_path, capsys):
    out = tmp_path / "study.jsonl"
    methods = [method for method in study.METHODS if method not in PACKAGES]
    command = [*SMALL, "--method", *methods, "--lr", "1e-3", "--out", str(out)]
    assert study.main(command) == 0
    first = out.read_text()
    runs = {line["method"]: line for line in lines(out)}
    assert list(runs) == methods
    # Before training a byte costs log(256) = 5.5; three steps are no loss to speak of.
    assert all(4 < line["loss"] < 6 for line in runs.values())
    numbers = {method: line["numbers_per_weight"] for method, line in runs.items()}
    assert numbers["scale"] == 0
    assert numbers["adamw"] == 2
    assert numbers["foam"] == numbers["apollo"] == 0.5
    assert numbers["factored, 8 bits"] < numbers["factored"] < 0.31 < numbers["sign"] < 0.52
    assert study.main(command) == 0
    # A line's own command is that of its run, which has been done.
    for line in runs.values():
        assert study.main([*shlex.split(line["command"])[1:], "--out", str(out)]) == 0
    assert out.read_text() == first
    capsys.readouterr()
    assert study.main(["--report", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{len(runs)} runs" in printed


@pytest.mark.parametrize("method", PACKAGES)
def test_packages_of_others_train_where_they_are(study, tmp_path, capsys, method):
    out = tmp_path / "study.jsonl"
    command = [*SMALL, "--method", method, "--lr", "1e-3", "--out", str(out)]
    if importlib.util.find_spec(PACKAGES[method]) is None:
        assert study.main(command) == 1
        assert "pip install --no-deps" in capsys.readouterr().out
        pytest.skip(f"{PACKAGES[method]} is not installed")
    assert study.main(command) == 0
    (line,) = lines(out)
    assert 4 < line["loss"] < 6


def test_another_optimizer_steps_hidden_matrices_and_only_these(study, torch):
    rivals, packages = map(importlib.import_module, ("_rivals", "_packages"))

    def trained(build):
        generator = torch.Generator().manual_seed(0)
        hidden, table = (torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2))
        groups = [{"params": [hidden]}, {"params": [table], "algorithm": "adamw", "lr": 0.5}]
        optimizer = build(groups)
        for step in range(3):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            for parameter in (hidden, table):
                parameter.grad = torch.randn(4, 3, generator=generator)
            optimizer.step()
        assert len(optimizer.state[hidden]) == 3
        return hidden, table

    own = trained(lambda groups: study.AdamW(groups, 0.1, (0.9, 0.99)))
    packaged = trained(
        lambda groups: packages.Packaged(
            lambda params, lr, betas: torch.optim.Adam(params, lr=lr, betas=betas, eps=rivals.EPS),
            groups,
            0.1,
            (0.9, 0.99),
        )
    )
    for one, other in zip(own, packaged, strict=True):
        torch.testing.assert_close(one, other)


def directions(torch, kind, gradients):
    """What a rival moves a matrix by at rate one, for each gradient."""
    optimizer = kind([torch.nn.Parameter(torch.ones(1))], 1.0, (0.9, 0.99))
    state, group, found = {}, {"betas": (0.9, 0.99)}, []
    for step, gradient in enumerate(gradients, start=1):
        state["step"] = step
        found.append(optimizer.direction(gradient, state, group))
    return found, state


@pytest.fixture
def gradients(torch):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 12, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_foam_of_equal_neighbours_is_adam(study, torch, gradients):
    rivals = importlib.import_module("_rivals")
    even = [g[:, ::4].repeat_interleave(4, -1) for g in gradients]
    found, _ = directions(torch, rivals.Foam, even)
    wanted, _ = directions(torch, study.AdamW, even)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_apollo_scales_channels_and_limits_growth(study, torch, gradients):
    rivals = importlib.import_module("_rivals")
    found, _ = directions(torch, rivals.Apollo, [10.0**t * g for t, g in enumerate(gradients)])
    for direction, gradient in zip(found, gradients, strict=True):
        ratios = direction / gradient
        torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))
    norms = [direction.norm() for direction in found]
    assert all(later <= 1.0101 * earlier for earlier, later in itertools.pairwise(norms))


def test_racs_makes_the_magnitudes_of_a_product_one(study, torch, gradients):
    rivals = importlib.import_module("_rivals")
    signs = [g.sign() for g in gradients]
    sizes = torch.outer(gradients[0][:, 0].abs(), gradients[0][0].abs())
    found, state = directions(torch, rivals.Racs, [sizes * sign for sign in signs])
    for direction, sign in zip(found, signs, strict=True):
        torch.testing.assert_close(direction, sign, rtol=1e-5, atol=1e-5)
    assert sum(state[name].numel() for name in ("rows", "columns")) == 8 + 12


def test_dion_takes_what_it_steps_on_out_of_its_momentum(study, torch, gradients):
    rivals = importlib.import_module("_rivals")
    buffer = torch.zeros(8, 12, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    right = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    for count in range(1, 5):
        found, state = directions(torch, rivals.Dion, gradients[:count])
        whole = buffer + gradients[count - 1]
        left = torch.linalg.svd(whole @ right, full_matrices=False)[0]
        within = left @ (left.T @ whole)
        buffer = whole - 0.05 * within
        torch.testing.assert_close(state["momentum"], buffer)
        right = state["right"]
        torch.testing.assert_close(right.norm(dim=0), torch.ones(2, dtype=torch.float64))
        assert torch.linalg.matrix_rank(found[-1]) == 2
        torch.testing.assert_close(found[-1].norm(), torch.tensor((8 / 12 * 2) ** 0.5).double())


def test_scale_makes_columns_one_long(study, torch, gradients):
    rivals = importlib.import_module("_rivals")
    for direction in directions(torch, rivals.Scale, gradients)[0]:
        torch.testing.assert_close(direction.norm(dim=0), torch.ones(12, dtype=torch.float64))


def test_best_rates_are_told_and_edges_with_them(study):
    best_runs = importlib.import_module("_study_table").best_runs
    runs = [
        {"method": method, "lr": lr, "seed": seed, "loss": loss + seed}
        for method, losses in {"adamw": (3, 2, 4), "foam": (1, 2, 3)}.items()
        for lr, loss in enumerate(losses)
        for seed in (0, 1)
    ]
    found = {method: (lr, edge) for method, lr, _, edge in best_runs(runs)}
    assert found == {"adamw": (1, False), "foam": (0, True)}


def test_differences_are_paired_by_seed_and_sizes_apart(study):
    table = importlib.import_module("_study_table")
    size = dict.fromkeys(table.SIZE, 1)
    losses = {
        ("adamw", 0): 2.0,
        ("adamw", 1): 3.0,
        ("foam", 0): 1.9,
        ("foam", 1): 2.7,
        ("foam", 2): 9.0,
    }
    runs = [
        size | {"method": method, "lr": 1.0, "seed": seed, "loss": loss}
        for (method, seed), loss in losses.items()
    ]
    larger = [run | {"width": 2, "loss": 0.0} for run in runs]
    for own in table.sizes(runs + larger).values():
        adamw, foam = sorted(table.standings(own), key=lambda standing: standing.method)
        assert adamw.differences == []
        assert len(foam.runs) == 3
        assert len(foam.differences) == 2
    adamw, foam = table.standings(table.sizes(runs + larger)[1, 1, 1, 1, 1, 1])
    assert (adamw.method, adamw.mean) == ("adamw", 2.5)
    assert foam.differences == pytest.approx([-0.1, -0.3])
    assert foam.standard_error == pytest.approx(0.1)


def test_published_tables_are_those_of_the_lines(study):
    table = importlib.import_module("_study_table")
    pages = ("evidence.md", "study.md")
    text = "".join((RESULTS.parent.parent / name).read_text(encoding="utf-8") for name in pages)
    every = table.read(RESULTS)
    for own in table.sizes(every).values():
        assert table.markdown(table.wholes(own)) in text
        if {line["method"] for line in own} >= {"factored", *table.RIVALS}:
            assert table.markdown(table.rivals(own), "factored") in text
    assert table.markdown_at_adamws_rate(every) in text
    (parts,) = filter(None, map(table.parts, table.sizes(every).values()))
    assert table.markdown(parts, "factored") in text

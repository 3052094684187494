"""Models trained as users train them on several processes: the same as on one, and resumed on fewer."""

import pytest
import torch
from lowrank_torch import DCTAdamW, Trion, compressed_gradients
from sharded_models import SAVED_AT, STEPS, WAYS, Net, load, outcome, prepared, projecting, train
from sharded_torch import launch

pytestmark = pytest.mark.usefixtures("torch")

KINDS = [DCTAdamW, Trion]
RESUMED = {
    2: [("rows", "rows"), ("tensor parallel", "tensor parallel"), ("replicated, shared work",) * 2],
    1: [("rows", "rows")],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def four(folder, tmp_path_factory):
    return launch(
        "sharded_models:saved_and_done",
        4,
        tmp_path_factory.mktemp("four"),
        saved=folder,
        ways=list(WAYS),
        kinds=KINDS,
    )


@pytest.fixture(scope="module")
def fewer(four, folder, tmp_path_factory):
    return {
        world: launch(
            "sharded_models:resumed",
            world,
            tmp_path_factory.mktemp(f"resumed{world}"),
            saved=folder,
            ways=ways,
            kinds=KINDS,
        )
        for world, ways in RESUMED.items()
    }


@pytest.fixture(scope="module")
def single():
    """One process, which transforms on the sides that are whole in each way."""
    import sharded_models

    found = {}
    for way in WAYS:
        for kind in KINDS:
            with pytest.MonkeyPatch.context() as patch:
                own = sharded_models.sides(way)
                patch.setattr(sharded_models, "sides", lambda _, own=own: own)
                model, optimizer = prepared("one", kind)
            train(model, optimizer, "one", 0, STEPS, clip=way in sharded_models.CLIPPED)
            found[way, kind] = outcome(model, optimizer)
    return found


def check(found, wanted):
    for name, parameter in wanted["parameters"].items():
        torch.testing.assert_close(found["parameters"][name], parameter, atol=1e-5, rtol=0)
    assert found["indices"].keys() == wanted["indices"].keys()
    for name, indices in wanted["indices"].items():
        assert torch.equal(found["indices"][name], indices)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_model_trains_as_on_one_process(way, kind, four, single):
    for process in four:
        check(process[way, kind], single[way, kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("world", "before", "way"), [(w, *p) for w in RESUMED for p in RESUMED[w]])
def test_run_saved_on_four_processes_goes_on_with_fewer(world, before, way, kind, fewer, single):
    for process in fewer[world]:
        check(process[before, way, kind], single[before, kind])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", ["rows", "rows and tensor parallel", "replicated, shared work"])
def test_run_saved_on_four_processes_goes_on_with_no_process_group(
    before, kind, four, folder, single
):
    model, optimizer = prepared("one", kind)
    load(model, optimizer, folder / before / kind.__name__)
    train(model, optimizer, "one", SAVED_AT, STEPS, clip="tensor" not in before)
    check(outcome(model, optimizer), single[before, kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["rows", "replicated, shared work"])
def test_state_is_shared_out_evenly(way, kind, four):
    total, shares = four[0]["shares"][way, kind][0], [p["shares"][way, kind][1] for p in four]
    assert max(shares) <= 1.05 * total / 4
    assert sum(shares) >= total


@pytest.mark.parametrize("shared", [False, True])
def test_compressed_gradients_change_no_trajectory(shared, four):
    base = Net()
    optimizer = projecting(base)
    train(base, optimizer, "one", 0, STEPS, clip=False)
    for process in four:
        check(process["compressed", shared], outcome(base, optimizer))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_in_backward_come_after_averages_of_sharded_rows(kind, four):
    for process in four:
        plain, early = process["hooked", kind]
        check(early, plain)


def test_compressed_gradients_move_a_fifth(four):
    whole = 4 * 64 * 64
    for process in four:
        moved = process["compressed", False]["moved"]
        # Columns are chosen at steps 1, 20 and 40.
        assert [bytes_ == whole for bytes_ in moved] == [
            step in (1, 20, 40) for step in range(1, 41)
        ]
        assert sum(moved[20:]) <= 20 * whole / 5


def test_compressed_gradients_want_a_group_that_allows_them():
    optimizer = projecting(Net(), residual="error_feedback")
    with pytest.raises(
        ValueError,
        match="compressed_gradients needs preset=None and a group with residual='discard'",
    ):
        compressed_gradients(None, optimizer)

"""Steps on matrices that are spread over processes: the same columns and the same parameters as on one process."""

from functools import cache

import pytest
import torch
from sharded_scenarios import LAYOUTS
from sharded_torch import NAMES, POLICIES, build, launch, trajectory

pytestmark = pytest.mark.usefixtures("torch")

# Launched together, by the number of processes; those that follow take longest.
QUICK = {2: ("columns", "replicated"), 4: ("rows", "rows and columns")}
SLOW = {4: tuple(layout for layout in (*LAYOUTS, "replicated") if layout not in QUICK[4])}
CASES = [
    pytest.param(world, layouts, layout, marks=marks, id=f"{world}-{layout}")
    for launches, marks in ((QUICK, ()), (SLOW, pytest.mark.slow))
    for world, layouts in launches.items()
    for layout in layouts
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What every process came to, of each launch."""

    @cache
    def of(world, layouts):
        folder = tmp_path_factory.mktemp(f"{world}")
        return launch("sharded_scenarios:trajectories", world, folder, layouts=layouts)

    return of


@pytest.fixture(scope="module")
def single():
    """The same runs on one process, for each side."""
    return {
        (side, kind): trajectory(build(kind, side=side))
        for side in ("left", "right", "auto")
        for kind in POLICIES
    }


@pytest.mark.parametrize(
    ("kind", "policy"), [*NAMES, *((kind, "adamw") for kind in POLICIES)], ids=str
)
@pytest.mark.parametrize(("world", "layouts", "layout"), CASES)
def test_trajectory_is_that_of_one_process(world, layouts, layout, kind, policy, runs, single):
    group = [*POLICIES[kind], "adamw"].index(policy)
    columns, after = single[LAYOUTS[layout][2] if layout in LAYOUTS else "auto", kind]
    for process in runs(world, layouts):
        found_columns, found = process[layout, kind]
        for one, other in zip(found_columns, columns, strict=True):
            assert all(a is b or torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in zip(found[group], after[group], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)

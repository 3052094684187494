"""Steps on matrices that are spread over processes: the same columns and the same parameters as on one process."""

import pytest
import torch
from sharded_scenarios import LAYOUTS
from sharded_torch import NAMES, POLICIES, build, launch, trajectory

pytestmark = pytest.mark.usefixtures("torch")

BY_WORLD = {2: ["columns", "replicated"], 4: [*LAYOUTS, "replicated"]}
CASES = [(world, layout) for world, layouts in BY_WORLD.items() for layout in layouts]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What every process of two and of four came to."""
    return {
        world: launch(
            "sharded_scenarios:trajectories",
            world,
            tmp_path_factory.mktemp(f"{world}"),
            layouts=layouts,
        )
        for world, layouts in BY_WORLD.items()
    }


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
@pytest.mark.parametrize(("world", "layout"), CASES)
def test_trajectory_is_that_of_one_process(world, layout, kind, policy, runs, single):
    group = [*POLICIES[kind], "adamw"].index(policy)
    columns, after = single[LAYOUTS[layout][2] if layout in LAYOUTS else "auto", kind]
    for process in runs[world]:
        found_columns, found = process[layout, kind]
        for one, other in zip(found_columns, columns, strict=True):
            assert all(a is b or torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in zip(found[group], after[group], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)

"""What sharded steps move between processes: counted where PyTorch is asked for it, and as the optimizer reports it."""

import pytest
import torch
from sharded_torch import MATRICES, POLICIES, launch

pytestmark = pytest.mark.usefixtures("torch")

LAYOUTS = ("rows", "rows and columns", "replicated")


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    return launch("sharded_scenarios:moved", 4, tmp_path_factory.mktemp("moved"))


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_report_is_what_was_seen(layout, kind, moved):
    for process in moved:
        for seen, report in process[layout, kind]:
            assert seen
            kinds = {kind for kind, _ in seen}
            counted = {
                kind: (sum(k == kind for k, _ in seen), sum(b for k, b in seen if k == kind))
                for kind in kinds
            }
            assert report == counted


def test_rows_move_scores_alone_and_in_one_collective(moved):
    sizes = 4 * sum(columns for _, columns in MATRICES)
    for process in moved:
        # Columns are chosen at steps 1, 2 and 4.
        assert process["columns only"] == [[("all_reduce", sizes)]] * 2 + [[]] + [
            [("all_reduce", sizes)]
        ]


def test_collectives_of_all_matrices_go_together(moved):
    for process in moved:
        for layout in LAYOUTS:
            # Scores and energies of all seven policies, then the norms of the scaled residual; between rows and columns
            # all go there and back, and those that scale come a collective later.
            for seen, _ in process[layout, next(iter(POLICIES))]:
                assert len(seen) <= (2 if layout == "rows" else 6), (layout, seen)


def test_window_bounds_what_waits_and_changes_rounding_alone(moved):
    for process in moved:
        (calls, parameters), (more, others) = process["small windows"]
        assert more > 2 * calls
        # In which order processes add up a number depends on where in the buffer it is.
        for one, other in zip(parameters, others, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_step_for_state_alone_is_no_step_unless_some_process_has_a_gradient(moved):
    for process in moved:
        without, with_one = process["idle"]
        assert set(without) == {0}
        assert set(with_one) == {1}

"""Sharded parameters that are not one matrix: experts, heads, parts, convolutions, codes."""

import pytest
import torch
from sharded_scenarios import SHAPED, build_shaped, train_shaped
from sharded_torch import launch, parameters_of

pytestmark = pytest.mark.usefixtures("torch")


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return launch("sharded_scenarios:shaped", 4, tmp_path_factory.mktemp("shaped"))


@pytest.fixture(scope="module")
def single():
    optimizer = build_shaped(lambda x, _: x)
    parameters = train_shaped(optimizer, lambda x, _: x)
    return parameters, optimizer.state[parameters_of(optimizer)[0]]["key"]


@pytest.mark.parametrize("name", SHAPED)
def test_step_is_that_of_one_process(name, four, single):
    place = list(SHAPED).index(name)
    for process in four:
        found, wanted = process["parameters"][place], single[0][place]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_draws_of_a_matrix_are_the_same_wherever_it_is(four, single):
    for process in four:
        assert torch.equal(process["key"], single[1])


def test_replicas_round_alike(four):
    for process in four[1:]:
        for one, other in zip(process["rounded"], four[0]["rounded"], strict=True):
            assert torch.equal(one, other)
    assert all(torch.isfinite(x).all() for x in four[0]["rounded"])

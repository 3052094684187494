"""Schedules: what a step does is worked out once, and anew where parameters, gradients, options or state are others."""

import pytest
import torch
from torch_helpers import OPTIMIZERS, all_parameters, assert_same_bits, parameters, set_gradients

pytestmark = pytest.mark.usefixtures("torch")

SHAPES = ((24, 40), (40, 24), (24, 40), (5,))


def nothing(optimizer):
    """Leave everything as it is."""


def option(optimizer):
    optimizer.param_groups[0]["side"] = "left"
    for parameter in all_parameters(optimizer):
        optimizer.state.pop(parameter, None)


def number(optimizer):
    optimizer.param_groups[0]["weight_decay"] = 0.5


def state_gone(optimizer):
    del optimizer.state[all_parameters(optimizer)[0]]


def state_replaced(optimizer):
    parameter = all_parameters(optimizer)[0]
    optimizer.state[parameter] = {
        name: value.clone() * 0 if isinstance(value, torch.Tensor) else value
        for name, value in optimizer.state[parameter].items()
    }


def loaded(optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


def narrowed(optimizer):
    for parameter in all_parameters(optimizer):
        parameter.data = parameter.data.to(torch.bfloat16)
        parameter.grad = None


def gradient_gone(optimizer):
    all_parameters(optimizer)[2].grad = None


def group_added(optimizer):
    optimizer.add_param_group({"params": parameters((16, 12), seed=1)})


EVENTS = [
    nothing, option, number, state_gone, state_replaced, loaded, narrowed, gradient_gone, group_added
]  # fmt: skip


def run(optimizer, event, *, keep):
    """Four steps, the event before the third; unless ``keep`` nothing is remembered between steps."""
    for step in range(4):
        set_gradients(all_parameters(optimizer), step)
        if step == 2:
            event(optimizer)
            for parameter in all_parameters(optimizer):
                if parameter.grad is None and event is not gradient_gone:
                    set_gradients([parameter], step)
        if not keep:
            optimizer._forget()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_a_kept_schedule_steps_as_one_made_anew(kind, event):
    runs = []
    for keep in (True, False):
        optimizer = kind(parameters(*SHAPES), lr=0.02, rank=4)
        run(optimizer, event, keep=keep)
        runs.append(optimizer)
    first, second = (all_parameters(optimizer) for optimizer in runs)
    assert_same_bits([p.detach() for p in first], [p.detach() for p in second])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_schedule_is_kept_while_steps_are_alike(kind):
    optimizer = kind(parameters(*SHAPES), lr=0.02, rank=4)
    seen = []
    for step in range(5):
        set_gradients(all_parameters(optimizer), step)
        optimizer.param_groups[0]["lr"] = 0.02 / (step + 1)
        optimizer.step()
        seen.append(list(optimizer._schedules.values()))
    assert seen[0] == []
    assert seen[1] == seen[2] == seen[3] == seen[4] != []

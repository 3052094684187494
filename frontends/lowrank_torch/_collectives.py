"""Runs per-matrix steps concurrently and coalesces their collectives.

Each step is a generator that yields a :class:`Request` where it needs other ranks. When as many steps wait as the
window holds, or there is none left to begin, what they ask for goes out in one collective of a kind, and they are sent
the results. While it is on its way, further steps begin.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lowrank_core.rules.reductions import Steps
from lowrank_torch._sharding import local_gradient

T = TypeVar("T")


class Traffic(NamedTuple):
    """Collectives of one kind in one step, a row of an optimizer's ``communication_report()``."""

    #: How many were issued.
    calls: int
    #: Bytes of their results on this rank.
    bytes: int


class Request(NamedTuple):
    """What a step asks of the other ranks of a group; it is sent the tensors that they give."""

    kind: str
    group: Any
    #: What this rank gives: one flat tensor, or one for each rank of an all-to-all.
    given: list[Tensor]
    #: Numbers to get from each rank; none for a sum.
    lengths: tuple[int, ...] = ()

    @property
    def bucket(self) -> Any:
        """Requests that are equal in this go together."""
        first = self.given[0]
        return self.kind, self.group.group_name, first.dtype, first.device


#: A step that may need other ranks: it yields requests, is sent the tensors of each, and returns its result.
ShardedSteps: TypeAlias = Generator[Request, list[Tensor], T]


def all_reduced(step: Steps[T], group: Any) -> ShardedSteps[T]:
    """Run a step of the core on a shard: what it wants summed over all rows is all-reduced over ``group``."""
    answer = None
    while True:
        try:
            request = step.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        total = request.partial
        if total is not None:
            (flat,) = yield Request("all_reduce", group, [total.reshape(-1)])
            total = flat.view(total.shape)
        answer = request.finish(total)


def all_gathered(piece: Tensor, group: Any, lengths: Sequence[int]) -> ShardedSteps[list[Tensor]]:
    """Return the flat pieces of all ranks of ``group``, which have ``lengths`` numbers."""
    return (yield Request("all_gather", group, [piece.reshape(-1)], tuple(lengths)))


def all_to_all(
    pieces: Sequence[Tensor], group: Any, lengths: Sequence[int]
) -> ShardedSteps[list[Tensor]]:
    """Give each rank of ``group`` its piece; return the flat pieces of ``lengths`` that they have for this one."""
    given = [piece.reshape(-1) for piece in pieces]
    return (yield Request("all_to_all", group, given, tuple(lengths)))


class CollectiveScheduler:
    """Drives steps that need other ranks, and counts what their collectives move.

    Parameters
    ----------
    window
        Bytes that steps may hold while they wait.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        #: What the last step moved, by kind of collective.
        self.last: dict[str, Traffic] = {}
        #: What has been moved since.
        self.counted: dict[str, Traffic] = {}

    def count(self, kind: str, result: Tensor) -> None:
        """Count one collective."""
        calls, moved = self.counted.get(kind, Traffic(0, 0))
        self.counted[kind] = Traffic(calls + 1, moved + result.nbytes)

    def close(self) -> None:
        """End a step's account."""
        self.last, self.counted = self.counted, {}

    def idle(self, parameters: Sequence[Any]) -> list[Any]:
        """Return the parameters whose gradients are zero on all ranks."""
        busy = set(self.flagged(parameters, _is_busy))
        return [parameter for parameter in parameters if parameter not in busy]

    def flagged(self, parameters: Iterable[Any], flag: Callable[[Any], Tensor]) -> list[Any]:
        """Return the parameters of which any rank that has a part of them says ``flag``, a boolean; read together."""
        found: dict[Any, list[Any]] = {}
        for parameter in parameters:
            place = getattr(parameter, "device_mesh", None), parameter.device
            found.setdefault(place, []).append(parameter)
        flagged = []
        for (mesh, _), own in found.items():
            flags = [flag(parameter) for parameter in own]
            together = torch.stack(flags).to(torch.int32)
            for dim in range(0 if mesh is None else mesh.ndim):
                if mesh.size(dim) > 1:
                    dist.all_reduce(together, dist.ReduceOp.MAX, mesh.get_group(dim))
                    self.count("all_reduce", together)
            flagged += [p for p, said in zip(own, together.tolist(), strict=True) if said]
        return flagged

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch does not type it
    def run(self, steps: Iterable[tuple[int, ShardedSteps[None]]]) -> None:
        """Run all steps, each with the bytes it holds while it waits.

        Their order, their bytes and what they ask for are the same on every rank.
        """
        waiting: list[_Waiting] = []
        pending: _Batch | None = None
        for held, step in steps:
            _advance(step, held, None, waiting)
            if sum(one.held for one in waiting) >= self.window:
                waiting, pending = self._turn(waiting, pending)
        while waiting or pending:
            waiting, pending = self._turn(waiting, pending)

    def _turn(
        self, waiting: list[_Waiting], pending: _Batch | None
    ) -> tuple[list[_Waiting], _Batch | None]:
        """Send what is asked for; then wait for what was sent before, and return what its steps ask for next."""
        sent = None
        if waiting:
            requests = [one.request for one in waiting]
            sent = _Batch(waiting, _Collectives(requests, self.count))
        after: list[_Waiting] = []
        if pending is not None:
            for one, answer in zip(pending.steps, pending.collectives.wait(), strict=True):
                _advance(one.step, one.held, answer, after)
        return after, sent


class _Waiting(NamedTuple):
    """A step that waits for the answer to a request."""

    step: ShardedSteps[None]
    held: int
    request: Request


class _Batch(NamedTuple):
    steps: list[_Waiting]
    collectives: _Collectives


def _advance(
    step: ShardedSteps[None], held: int, answer: list[Tensor] | None, waiting: list[_Waiting]
) -> None:
    """Let a step run to its next request that needs another rank, if it has one, and append it to ``waiting``."""
    try:
        request = step.send(answer)  # type: ignore[arg-type]  # a generator that begins is sent None
        while request.group.size() == 1:
            request = step.send(request.given)
    except StopIteration:
        return
    waiting.append(_Waiting(step, held, request))


class _Collectives:
    """Requests on their way, in as few collectives as they allow."""

    def __init__(self, requests: Sequence[Request], count: Callable[[str, Tensor], None]) -> None:
        self._answers: list[list[Tensor]] = [[] for _ in requests]
        buckets: dict[Any, list[int]] = {}
        for place, request in enumerate(requests):
            buckets.setdefault(request.bucket, []).append(place)
        self._issued = []
        for places in buckets.values():
            own = [requests[place] for place in places]
            launch = {"all_reduce": _sum, "all_gather": _gather, "all_to_all": _swap}[own[0].kind]
            result, work, split = launch(own)
            count(own[0].kind, result)
            self._issued.append((places, work, split))

    def wait(self) -> list[list[Tensor]]:
        """Wait for the results, and return those of each request."""
        for places, work, split in self._issued:
            work.wait()
            for place, answer in zip(places, split(), strict=True):
                self._answers[place] = answer
        return self._answers


# Each of these issues one collective for requests of one bucket, and returns its result, what to wait for and what then
# takes the result apart.
_Launched = tuple[Tensor, Any, Callable[[], list[list[Tensor]]]]


def _sum(requests: Sequence[Request]) -> _Launched:
    sizes = [request.given[0].numel() for request in requests]
    buffer = torch.cat([request.given[0] for request in requests])
    work = dist.all_reduce(buffer, group=requests[0].group, async_op=True)
    return buffer, work, lambda: [[part] for part in torch.split(buffer, sizes)]


def _gather(requests: Sequence[Request]) -> _Launched:
    group = requests[0].group
    # Every rank must give as much as the one that has most.
    most = [max(request.lengths) for request in requests]
    first = requests[0].given[0]
    own = first.new_zeros(sum(most))
    for request, place in zip(requests, torch.split(own, most), strict=True):
        place[: request.given[0].numel()] = request.given[0]
    result = first.new_empty(group.size() * own.numel())
    # Of two names, PyTorch calls the older one deprecated as soon as there is the newer one.
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    all_gather = getattr(dist, name)
    work = all_gather(result, own, group=group, async_op=True)

    def split() -> list[list[Tensor]]:
        columns = torch.split(result.view(group.size(), -1), most, dim=1)
        return [
            [part[:length] for part, length in zip(column, request.lengths, strict=True)]
            for column, request in zip(columns, requests, strict=True)
        ]

    return result, work, split


def _swap(requests: Sequence[Request]) -> _Launched:
    group = requests[0].group
    ranks = range(group.size())
    given = [piece for rank in ranks for piece in (r.given[rank] for r in requests)]
    sizes_in = [sum(request.given[rank].numel() for request in requests) for rank in ranks]
    sizes_out = [sum(request.lengths[rank] for request in requests) for rank in ranks]
    buffer = torch.cat(given)
    result = buffer.new_empty(sum(sizes_out))
    work = dist.all_to_all_single(result, buffer, sizes_out, sizes_in, group=group, async_op=True)

    def split() -> list[list[Tensor]]:
        parts = [
            torch.split(part, [r.lengths[rank] for r in requests])
            for rank, part in zip(ranks, torch.split(result, sizes_out), strict=True)
        ]
        return [[part[place] for part in parts] for place in range(len(requests))]

    return result, work, split


def _is_busy(parameter: Any) -> Tensor:
    """Return whether a gradient is other than zero."""
    gradient = local_gradient(parameter)
    # What has no numbers to read (a fake tensor) counts as a step.
    if type(gradient) is not Tensor or gradient.device.type == "meta":
        return torch.tensor(True, device="cpu")
    return gradient.any()

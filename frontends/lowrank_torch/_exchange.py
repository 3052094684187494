"""Steps of many matrices with their collectives issued together: one that waits for others' numbers lets them go on.

Each step runs as a coroutine. Where it needs a collective it stops; when as many have stopped as the window holds, or
there is none left to begin, what they ask for goes out in one collective of a kind, and they go on with the result.
While it is on its way, further steps begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lowrank_torch._jobs import Job
from lowrank_torch._sharding import local_gradient


class Traffic(NamedTuple):
    """Collectives of one kind in one step, a row of an optimizer's ``communication_report()``."""

    #: How many were issued.
    calls: int
    #: Bytes of their results on this rank.
    bytes: int


class Ledger:
    """What a step has moved, and what the one before had."""

    def __init__(self) -> None:
        self.last: dict[str, Traffic] = {}
        self._now: dict[str, Traffic] = {}

    def count(self, kind: str, result: Tensor) -> None:
        """Count one collective."""
        calls, moved = self._now.get(kind, Traffic(0, 0))
        self._now[kind] = Traffic(calls + 1, moved + result.nbytes)

    def close(self) -> None:
        """End a step's account."""
        self.last, self._now = self._now, {}


class _Request(NamedTuple):
    kind: str
    group: Any
    #: What this rank gives: one flat tensor, or one for each rank to swap with.
    given: list[Tensor]
    #: Numbers to get from each rank; none for a sum.
    lengths: tuple[int, ...] = ()

    @property
    def bucket(self) -> Any:
        """Requests that are equal in this go together."""
        first = self.given[0]
        return self.kind, self.group.group_name, first.dtype, first.device


class Exchange:
    """Collectives for steps that run together.

    Parameters
    ----------
    window
        Bytes that steps may hold while they wait.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.ledger = Ledger()
        self._running = False

    # -- what a step asks for ------------------------------------------------------------------

    def total(self, partial: Tensor, group: Any) -> Tensor:
        """Return the sum of ``partial`` over a group."""
        (flat,) = self._ask(_Request("all_reduce", group, [partial.reshape(-1)]))
        return flat.view(partial.shape)

    def gathered(self, piece: Tensor, group: Any, lengths: Sequence[int]) -> list[Tensor]:
        """Return the flat pieces of all ranks, which are of ``lengths``."""
        return self._ask(_Request("all_gather", group, [piece.reshape(-1)], tuple(lengths)))

    def swapped(self, pieces: Sequence[Tensor], group: Any, lengths: Sequence[int]) -> list[Tensor]:
        """Give each rank of a group its piece; return the flat pieces of ``lengths`` that they have for this one."""
        given = [piece.reshape(-1) for piece in pieces]
        return self._ask(_Request("all_to_all", group, given, tuple(lengths)))

    def _ask(self, request: _Request) -> list[Tensor]:
        if request.group.size() == 1:
            return request.given
        if not self._running:
            return _Flight([request], self.ledger).land()[0]
        from greenlet import getcurrent

        parent = getcurrent().parent
        assert parent is not None  # noqa: S101 - steps are run by a driver; this tells the type checker
        answer: list[Tensor] = parent.switch(request)
        return answer

    def idle(self, parameters: Sequence[Any]) -> list[Any]:
        """Return the parameters whose gradients are zero on all ranks."""
        found: dict[Any, list[Any]] = {}
        for parameter in parameters:
            found.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
        idle = []
        for mesh, own in found.items():
            flags = [_is_other_than_zero(local_gradient(parameter)) for parameter in own]
            together = torch.stack(flags).to(torch.int32)
            for dim in range(0 if mesh is None else mesh.ndim):
                if mesh.size(dim) > 1:
                    dist.all_reduce(together, dist.ReduceOp.MAX, mesh.get_group(dim))
                    self.ledger.count("all_reduce", together)
            idle += [p for p, flag in zip(own, together.tolist(), strict=True) if not flag]
        return idle

    # -- running steps -------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch does not type it
    def run(self, jobs: Iterable[Job]) -> None:
        """Do all jobs, whose order and requests are the same on every rank.

        Raises
        ------
        ImportError
            If greenlet is not installed.
        """
        try:
            from greenlet import greenlet
        except ImportError as error:
            raise ImportError(
                "sharded low-rank steps need greenlet: pip install 'lowrank-core[distributed]'"
            ) from error
        waiting: list[_Waiting] = []
        flying: _Batch | None = None
        self._running = True
        try:
            for job in jobs:
                step = greenlet(job.run)
                _go_on(_Waiting(step, job.held, None), waiting)
                if sum(one.held for one in waiting) >= self.window:
                    waiting, flying = self._turn(waiting, flying)
            while waiting or flying:
                waiting, flying = self._turn(waiting, flying)
        finally:
            self._running = False

    def _turn(
        self, waiting: list[_Waiting], flying: _Batch | None
    ) -> tuple[list[_Waiting], _Batch | None]:
        """Send what is asked for; then land what was sent before, and return what its steps ask for next."""
        sent = None
        if waiting:
            requests = [one.request for one in waiting if one.request is not None]
            sent = _Batch(waiting, _Flight(requests, self.ledger))
        after: list[_Waiting] = []
        if flying is not None:
            for one, answer in zip(flying.steps, flying.flight.land(), strict=True):
                _go_on(one, after, answer)
        return after, sent


class _Waiting(NamedTuple):
    """A step that has stopped at a request."""

    step: Any
    held: int
    request: _Request | None


class _Batch(NamedTuple):
    steps: list[_Waiting]
    flight: _Flight


def _go_on(one: _Waiting, waiting: list[_Waiting], *answer: list[Tensor]) -> None:
    """Let a step run to its next request, if it has one, and note it."""
    request = one.step.switch(*answer)
    if not one.step.dead:
        waiting.append(one._replace(request=request))


class _Flight:
    """Requests on their way, in as few collectives as they allow."""

    def __init__(self, requests: Sequence[_Request], ledger: Ledger) -> None:
        self._answers: list[list[Tensor]] = [[] for _ in requests]
        buckets: dict[Any, list[int]] = {}
        for place, request in enumerate(requests):
            buckets.setdefault(request.bucket, []).append(place)
        self._landings = []
        for places in buckets.values():
            own = [requests[place] for place in places]
            launch = {"all_reduce": _sum, "all_gather": _gather, "all_to_all": _swap}[own[0].kind]
            result, work, split = launch(own)
            ledger.count(own[0].kind, result)
            self._landings.append((places, work, split))

    def land(self) -> list[list[Tensor]]:
        """Wait for the results, and return those of each request."""
        for places, work, split in self._landings:
            work.wait()
            for place, answer in zip(places, split(), strict=True):
                self._answers[place] = answer
        return self._answers


# Each of these issues one collective for requests of one bucket, and returns its result, what to wait for and what then
# takes the result apart.
_Launched = tuple[Tensor, Any, Callable[[], list[list[Tensor]]]]


def _sum(requests: Sequence[_Request]) -> _Launched:
    sizes = [request.given[0].numel() for request in requests]
    buffer = torch.cat([request.given[0] for request in requests])
    work = dist.all_reduce(buffer, group=requests[0].group, async_op=True)
    return buffer, work, lambda: [[part] for part in torch.split(buffer, sizes)]


def _gather(requests: Sequence[_Request]) -> _Launched:
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


def _swap(requests: Sequence[_Request]) -> _Launched:
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


def _is_other_than_zero(gradient: Tensor) -> Tensor:
    # What has no numbers to read (a fake tensor) counts as a step.
    if type(gradient) is not Tensor or gradient.device.type == "meta":
        return torch.tensor(True, device="cpu")
    return gradient.any()

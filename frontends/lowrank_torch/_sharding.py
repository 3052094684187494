"""How a parameter's matrices are spread over ranks: which dimension is whole, who has which rows, who sums with whom.

A *shard* is what one rank steps: some rows of every matrix where rows are transformed, some columns where columns are.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from lowrank_core.layout import SIDE_OF

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.placement_types import Placement


def is_sharded(x: object) -> bool:
    """Return whether ``x`` is a DTensor."""
    # Whoever has a DTensor has imported its module; importing it for everybody takes long.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def is_flat(parameter: Any) -> bool:
    """Return whether a parameter is a flat shard, by the marks that FSDP1 and DeepSpeed's ZeRO leave on it."""
    if getattr(parameter, "_is_flat_param", False) or hasattr(parameter, "ds_id"):
        return True
    return hasattr(parameter, "_fsdp_flattened") and parameter.ndim < 2


def local_of(x: Any) -> Any:
    """Return what this rank has of a DTensor, and anything else as it is."""
    if not is_sharded(x):
        return x
    local = x.to_local()
    return local.wait() if hasattr(local, "wait") else local


def local_gradient(parameter: Any) -> Tensor:
    """Return what this rank has of a parameter's gradient, laid out as the parameter is."""
    gradient = parameter.grad
    if is_sharded(gradient) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
    local: Tensor = local_of(gradient)
    return local


def cut_dim(placement: Any) -> int | None:
    """Return the dimension that a placement cuts, if it cuts one."""
    dim: int | None = getattr(placement, "dim", None)
    return dim


# By the default group, which is another after it has been destroyed and made anew, and ranks.
_groups: dict[Any, Any] = {}


def _group_of(ranks: tuple[int, ...]) -> Any:
    """Return the process group of ranks, made on first use by these alone.

    A flattened mesh would have it too; but once it has one, DTensor gathers uneven shards over it in the wrong order.
    """
    key = dist.group.WORLD, ranks
    if key not in _groups:
        _groups[key] = dist.new_group(list(ranks), use_local_synchronization=True)
    return _groups[key]


class Sharding(NamedTuple):
    """How a parameter lies on the ranks of a mesh; equal for parameters that lie alike."""

    mesh: DeviceMesh
    #: What each dimension of the mesh does to what is stepped: dimensions are those of the parameter as matrices.
    placements: tuple[Placement, ...]
    #: The transformed axis; ``None`` where the options decide.
    axis: int | None = None
    #: Dimensions of the mesh that shards of one matrix lie on.
    reduce_dims: tuple[int, ...] = ()
    #: The dimension of the mesh whose ranks swap parts of rows and columns to have one of them whole.
    all_to_all_dim: int | None = None
    #: Whether every rank has the whole parameter and steps a shard of it.
    replicated: bool = False

    @property
    def group(self) -> Any:
        """The process group that sums go over."""
        if len(self.reduce_dims) == 1:
            return self.mesh.get_group(self.reduce_dims[0])
        if len(self.reduce_dims) == self.mesh.ndim and self.mesh.size() == dist.get_world_size():
            return dist.group.WORLD
        place: Any = self.mesh.get_coordinate()
        own = tuple(
            slice(None) if d in self.reduce_dims else place[d] for d in range(self.mesh.ndim)
        )
        return _group_of(tuple(sorted(self.mesh.mesh[own].flatten().tolist())))

    @property
    def shards_per_matrix(self) -> int:
        """The number of shards a matrix is cut into."""
        return math.prod(self.mesh.size(dim) for dim in self.reduce_dims)

    @property
    def num_shards(self) -> int:
        """The number of different shards, of all matrices of a stack, that ranks step."""
        return math.prod(
            self.mesh.size(dim) for dim, p in enumerate(self.placements) if cut_dim(p) is not None
        )

    @property
    def shard_index(self) -> int:
        """The number of the shard that this rank steps; replicas of a shard have the same."""
        number = 0
        for dim, placement in enumerate(self.placements):
            if cut_dim(placement) is not None:
                number = number * self.mesh.size(dim) + self.mesh.get_local_rank(dim)
        return number

    def placements_of(
        self, shape: Sequence[int], block: Sequence[int], axis: int, batch_dims: int
    ) -> tuple[Placement, ...]:
        """Return the placements of an array of state of ``shape``, of a stack of matrices of shape ``block``.

        What has both dimensions of a matrix is spread over shards; what has fewer is the same in all.
        """
        from torch.distributed.tensor import Replicate, Shard

        placements: list[Placement] = []
        for place, placement in enumerate(self.placements):
            if place not in self.reduce_dims:
                placements.append(placement)
            elif len(shape) == len(block):
                dim = len(shape) + (-2 if axis == -1 else -1)
                same = len(block) == batch_dims + 2 and not self.replicated
                placements.append(placement if same else Shard(dim))
            else:
                placements.append(Replicate())
        return tuple(placements)


def chunk(length: int, count: int, place: int) -> tuple[int, int]:
    """Return where chunk ``place`` out of ``count`` begins and its length, as `torch.chunk` and DTensor cut."""
    most = -(-length // count)
    start = min(length, place * most)
    return start, min(length, start + most) - start


def chunks(length: int, count: int) -> list[int]:
    """Return the lengths of all chunks."""
    return [chunk(length, count, place)[1] for place in range(count)]


def replica_sharding(mesh: DeviceMesh) -> Sharding | None:
    """Return how replicated parameters are stepped in shards by the ranks of ``mesh``, of one dimension."""
    from torch.distributed.tensor import Shard

    if mesh.size() == 1:
        return None
    return Sharding(mesh, (Shard(0),), reduce_dims=(0,), replicated=True)


def sharding_of(parameter: Any, group: Mapping[str, Any]) -> Sharding | None:
    """Return how a DTensor parameter lies, or ``None`` where every rank has all of it.

    Raises
    ------
    NotImplementedError
        If it lies so that no dimension of its matrices can be had whole.
    """
    from torch.distributed.tensor import Shard

    mesh, placements, batch_dims = parameter.device_mesh, parameter.placements, group["batch_dims"]
    cuts: dict[str, list[int]] = {"batch": [], "rows": [], "columns": []}
    for dim, placement in enumerate(placements):
        if placement.is_partial():
            raise NotImplementedError("a parameter's placements must be Replicate or Shard")
        cut = cut_dim(placement)
        if cut is not None:
            cuts[_kind(cut, parameter, batch_dims, mesh.size(dim))].append(dim)
    if group["transposed"]:
        # Kept as (in, out), stepped as (out, in): a cut of the one dimension of matrices is one of the other.
        cuts["rows"], cuts["columns"] = cuts["columns"], cuts["rows"]
        turned = {batch_dims: batch_dims + 1, batch_dims + 1: batch_dims}
        placements = tuple(Shard(turned[p.dim]) if cut_dim(p) in turned else p for p in placements)
    rows, columns = cuts["rows"], cuts["columns"]
    if rows and (group["split_sizes"] or group["num_heads"]):
        if group["split_sizes"] or columns:
            raise NotImplementedError(
                "split_sizes needs rows that are whole on a rank; shard the columns instead, or do without"
            )
        _check_heads(parameter, group, math.prod(mesh.size(dim) for dim in rows))
        rows = []  # whole matrices: nothing to sum
    if rows and columns:
        last = max(*rows, *columns)
        stay = columns if last in rows else rows
        if len(rows) + len(columns) - len(stay) > 1 or cuts["batch"]:
            raise NotImplementedError(
                "sharded in rows and columns at once, a stack of matrices or more than one dimension of the mesh on "
                "either is not supported"
            )
        after = list(placements)
        after[last] = Shard(batch_dims + (stay is columns))
        side = -2 if stay is columns else -1
        return Sharding(mesh, tuple(after), side, tuple(sorted((*stay, last))), last)
    if not any(cuts.values()):
        return None
    axis = -1 if rows else -2 if columns else None
    return Sharding(mesh, tuple(placements), axis, tuple(rows or columns))


def _kind(dim: int, parameter: Any, batch_dims: int, count: int) -> str:
    if dim <= batch_dims:
        return "rows" if dim == batch_dims else "batch"
    flattened = parameter.ndim > batch_dims + 2
    if flattened and (dim > batch_dims + 1 or parameter.shape[dim] % count):
        raise NotImplementedError(
            f"of dimensions that are flattened into columns only the first can be sharded, and evenly, got dimension "
            f"{dim} of shape {tuple(parameter.shape)} over {count} ranks"
        )
    return "columns"


def _check_heads(parameter: Any, group: Mapping[str, Any], count: int) -> None:
    heads = group["num_heads"]
    number = heads if isinstance(heads, int) else heads[0]
    if number % count:
        raise NotImplementedError(
            f"num_heads needs heads that are whole on a rank, got {number} over {count} ranks for shape "
            f"{tuple(parameter.shape)}"
        )


def check_config(sharding: Sharding, config: Any, blocks: Sequence[tuple[int, ...]]) -> None:
    """Raise unless matrices that are sharded can be stepped with these options.

    Raises
    ------
    NotImplementedError, ValueError
        If an option needs what is not whole; the message names the option and the remedy.
    """
    if not sharding.reduce_dims:
        return
    if getattr(config, "stored", False):
        raise NotImplementedError(
            f"basis={config.basis!r} needs whole matrices; with sharded ones use a fixed basis, such as 'dct'"
        )
    side = None if sharding.axis is None else SIDE_OF[sharding.axis]
    if side is not None and config.side not in ("auto", side):
        cut, other = ("rows", 1) if side == "right" else ("columns", 0)
        raise ValueError(
            f"side must be 'auto' or {side!r} where {cut} are sharded, got {config.side!r}; for that, shard the other "
            f"dimension: fully_shard(module, shard_placement_fn=lambda parameter: Shard({other}))"
        )
    for shape in blocks:
        axis = sharding.axis if sharding.axis is not None else config.layout(shape).axis
        multiple, shards = config.block_multiple(axis), sharding.shards_per_matrix
        if multiple > 1 and (shards * multiple > shape[-1] or shape[-1] % (shards * multiple)):
            raise ValueError(
                f"feedback_bits and momentum_bits need columns sharded in multiples of {multiple}, which {shape[-1]} "
                f"over {shards} ranks are not; shard rows (side='right'), or set them to None"
            )

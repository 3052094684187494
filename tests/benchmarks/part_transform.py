"""The transform: this library's DCT against a bare FFT, SciPy's, the paper's and the product with the basis."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.fft
import torch
from _peers import MissingPackageError, paper_transform
from _race import Contender, Effort, race
from _tables import Column, Findings, Table, Target
from torch import Tensor

import lowrank_core

rows_of: Any = importlib.import_module("lowrank_backends._torch_cosine")
dct: Callable[..., Any] = lowrank_core.dct
idct: Callable[..., Any] = lowrank_core.idct

SIZES = (1024, 2048, 4096)
BARE, PRODUCT = "bare `torch.fft.rfft`", "product with the basis"
ASIDE = "bare `torch.fft.rfft`, blocks side by side"
OURS, SCIPY, PAPER = "`dct`", "`scipy.fft.dct`, a worker a thread", "the paper's code"


def blocks_of(x: Tensor) -> list[Tensor]:
    """Return the row blocks that the library transforms at a time."""
    return list(torch.split(x, max(1, rows_of._BLOCK // x.shape[-1])))


def bare_fft(x: Tensor) -> None:
    """Transform the rows of ``x`` block by block, and nothing else."""
    for block in blocks_of(x):
        torch.fft.rfft(block)


def bare_fft_aside(x: Tensor) -> None:
    """Do the same, each block by one thread, as the library does."""
    lowrank_core.ops_for(x).for_each(torch.fft.rfft, blocks_of(x))


def torch_contenders(size: int) -> tuple[list[Contender], list[tuple[str, str]]]:
    """Return what transforms a square matrix with PyTorch, and what is not installed."""
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    native = partial(scipy.fft.dct, x.numpy(), norm="ortho", workers=torch.get_num_threads())
    contenders = [
        Contender(BARE, partial(bare_fft, x)),
        Contender(ASIDE, partial(bare_fft_aside, x)),
        Contender(OURS, partial(dct, x, method="fft")),
        Contender("`idct`", partial(idct, x, method="fft")),
        Contender("`dct`, columns", partial(dct, x, axis=-2, method="fft")),
        Contender(SCIPY, native),
        Contender(PRODUCT, partial(dct, x, method="matmul")),
    ]
    absent = []
    try:
        contenders.append(Contender(PAPER, partial(paper_transform(), x)))
    except MissingPackageError as error:
        absent.append((PAPER, str(error)))
    return contenders, absent


def numpy_race(size: int, effort: Effort) -> float:
    """Return how many times SciPy's own time the library's transform of NumPy arrays takes."""
    x = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    times = race(
        [
            Contender("scipy", partial(scipy.fft.dct, x, norm="ortho")),
            Contender("ours", partial(dct, x)),
        ],
        effort,
    )
    return times["ours"].ratio(times["scipy"])


def run(effort: Effort, *, quick: bool) -> Findings:
    """Time the transforms of square float32 matrices."""
    table = Table(
        "transform",
        "DCT of the rows of a square float32 matrix",
        (
            Column("n", "count"),
            Column("transform"),
            Column("ms", "ms"),
            Column("over the bare FFT", "x"),
            Column("remark"),
        ),
        note="The bare FFTs work on the row blocks of `dct` and throw their results away: the first with all of "
        "PyTorch's threads for each block, as PyTorch does, the second with one thread a block, as `dct` does.",
    )
    sizes = (64, 96, 128) if quick else SIZES
    parts = (0.1, 0.2, 0.5)
    large: dict[str, Any] = {}
    for size, part in zip(sizes, parts, strict=True):
        contenders, absent = torch_contenders(size)
        large = times = race(contenders, effort.share(part))
        for name, own in times.items():
            table.add(float(size), name, own.seconds(), own.ratio(times[BARE]), own.remark())
        for name, why in absent:
            table.add(float(size), name, None, None, why)
    numpy = Table(
        "numpy",
        "The same with NumPy",
        (Column("n", "count"), Column("`dct` over `scipy.fft.dct`", "x")),
    )
    for size in sizes:
        numpy.add(float(size), numpy_race(size, effort.share(0.06)))
    bare, product = large[BARE], large[PRODUCT]
    last = sizes[-1]
    numpy_ratio = numpy.rows[-1][1]
    return Findings(
        [table, numpy],
        [
            Target(f"`dct` over the bare FFT, {last} x {last}", 1.4, large[OURS].ratio(bare)),
            Target(f"`dct` over SciPy's, {last} x {last}", 1.0, large[OURS].ratio(large[SCIPY])),
            Target(
                f"product over `dct`, {last} x {last}",
                12.0,
                product.ratio(large[OURS]),
                at_least=True,
            ),
            Target(
                f"NumPy: `dct` over `scipy.fft.dct`, {last} x {last}",
                1.1,
                numpy_ratio if isinstance(numpy_ratio, float) else None,
            ),
        ],
    )

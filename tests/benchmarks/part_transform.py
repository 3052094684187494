"""The transform: this library's DCT against a bare FFT, SciPy's, the paper's and the product with the basis."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.fft
import torch
from _peers import MissingPeerError, paper_transform
from _race import Contender, Effort, race
from _tables import Column, Findings, Table, Target
from torch import Tensor

import lowrank_core

adapter: Any = importlib.import_module("lowrank_backends.torch")
dct: Callable[..., Any] = lowrank_core.dct
idct: Callable[..., Any] = lowrank_core.idct

SIZES = (1024, 2048, 4096)
LARGE = 4096
BARE, PRODUCT = "bare `torch.fft.rfft`", "product with the basis"
FFT, SCIPY, PAPER = "`dct`, row blocks of `torch.fft`", "`dct`", "the paper's code"


def bare_fft(x: Tensor) -> None:
    """Transform the rows of ``x`` block by block as the library does, and nothing else."""
    rows = max(1, adapter._BLOCK // x.shape[-1])
    for start in range(0, x.shape[0], rows):
        torch.fft.rfft(x[start : start + rows], dim=-1)


def without_scipy(function: Callable[..., Any], x: Tensor, **options: Any) -> Any:
    """Call a transform as where SciPy is not installed."""
    scipy_fft, adapter.scipy_fft = adapter.scipy_fft, None
    try:
        return function(x, **options)
    finally:
        adapter.scipy_fft = scipy_fft


def torch_contenders(size: int) -> tuple[list[Contender], list[tuple[str, str]]]:
    """Return what transforms a square matrix with PyTorch, and what is not installed."""
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    contenders = [
        Contender(BARE, partial(bare_fft, x)),
        Contender(SCIPY, partial(dct, x, method="fft")),
        Contender("`idct`", partial(idct, x, method="fft")),
        Contender("`dct`, columns", partial(dct, x, axis=-2, method="fft")),
        Contender(FFT, partial(without_scipy, dct, x, method="fft")),
        Contender(
            "`idct`, row blocks of `torch.fft`", partial(without_scipy, idct, x, method="fft")
        ),
        Contender(PRODUCT, partial(dct, x, method="matmul")),
    ]
    absent = []
    try:
        contenders.append(Contender(PAPER, partial(paper_transform(), x)))
    except MissingPeerError as error:
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
        note="The bare FFT works on the same row blocks and throws its results away. `dct` takes SciPy's native "
        "transform where SciPy is installed, else the row blocks of `torch.fft`.",
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
            Target(f"`dct` over the bare FFT, {last} x {last}", 1.4, large[SCIPY].ratio(bare)),
            Target(f"the same without SciPy, {last} x {last}", 1.4, large[FFT].ratio(bare)),
            Target(
                f"product over `dct`, {last} x {last}",
                12.0,
                product.ratio(large[SCIPY]),
                at_least=True,
            ),
            Target(
                f"product over `dct` without SciPy, {last} x {last}",
                12.0,
                product.ratio(large[FFT]),
                at_least=True,
            ),
            Target(
                f"NumPy: `dct` over `scipy.fft.dct`, {last} x {last}",
                1.1,
                numpy_ratio if isinstance(numpy_ratio, float) else None,
            ),
        ],
    )

"""The optimizers that are compared, this library's and others', each behind the same few lines.

Others come from PyPI, and only the modules that are timed are imported (`docs/examples/_packages.py`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lowrank_torch
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs" / "examples"))

from _packages import TRANSFORMERS, MissingPackageError, load

Build = Callable[[list[Parameter], int], Optimizer]

#: Small, so that thousands of steps leave the numbers as they are.
RATE = 1e-6
GALORE_PERIOD = 200
SELDOM = 10**9


@dataclass(frozen=True)
class Peer:
    """An optimizer to compare: how it is made and, where not all its steps cost the same, what differs."""

    name: str
    build: Build
    #: Its package on PyPI, beyond the library's own dependencies.
    package: str = ""
    #: Steps between two refreshes.
    period: int = 1
    #: Turns the next step into a refresh, or into none.
    wind: Callable[[Optimizer, bool], None] | None = None
    #: How a second optimizer is made whose every step is a refresh.
    build_refreshing: Build | None = None
    #: Whether its first step does nothing but prepare.
    prepares_first: bool = False
    #: Whether a refresh is a singular value decomposition, which may take minutes.
    svd: bool = False

    def make(self, parameters: list[Parameter], rank: int) -> Optimizer:
        """Build it, and swallow what it prints."""
        with contextlib.redirect_stdout(io.StringIO()):
            return self.build(parameters, rank)


def _collection() -> Any:
    if importlib.util.find_spec("pytorch_optimizer") is None:
        raise MissingPackageError("not installed: pip install --no-deps pytorch-optimizer")
    return importlib.import_module("pytorch_optimizer")


def _adamw(parameters: list[Parameter], _rank: int) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE, fused=True)


def _preset(**options: Any) -> Build:
    return lambda parameters, rank: lowrank_torch.DCTAdamW(
        parameters, lr=RATE, rank=rank, **options
    )


def _dct_adamw(**options: Any) -> Build:
    # The residual dropped unless said otherwise, as it is by what this is compared with.
    return _preset(**{"preset": None, "residual": "discard", **options})


def _trion(parameters: list[Parameter], rank: int) -> Optimizer:
    return lowrank_torch.Trion(parameters, lr=RATE, rank=rank)


def _torch_muon(parameters: list[Parameter], _rank: int) -> Optimizer:
    return torch.optim.Muon(parameters, lr=RATE)


def _paper(similarity: str) -> Build:
    def build(parameters: list[Parameter], rank: int) -> Optimizer:
        module = load("ista_daslab_optimizers.fft_low_rank.dct_adamw")
        options = {"weight_decay": 0.01, "rank": rank, "proj": "dct", "sim_type": similarity}
        optimizer: Optimizer = module.DCTAdamW(parameters, lr=RATE, **options)
        return optimizer

    return build


def paper_transform() -> Callable[[Tensor], Tensor]:
    """Return the transform of the paper's code."""
    function: Callable[[Tensor], Tensor] = load(
        "ista_daslab_optimizers.utils.dct"
    ).dct_type2_makhoul
    return function


def _galore(parameters: list[Parameter], rank: int) -> Optimizer:
    module = load("galore_torch.adamw", stubbed=TRANSFORMERS)
    options = {"rank": rank, "update_proj_gap": GALORE_PERIOD, "scale": 0.25, "proj_type": "std"}
    groups = [{"params": parameters, **options}]
    optimizer: Optimizer = module.AdamW(groups, lr=RATE, no_deprecation_warning=True)
    return optimizer


def _apollo(parameters: list[Parameter], rank: int) -> Optimizer:
    module = load("apollo_torch.apollo", stubbed=TRANSFORMERS)
    options = {"rank": rank, "update_proj_gap": GALORE_PERIOD, "scale": 1.0, "proj_type": "std"}
    groups = [{"params": parameters, **options, "proj": "random", "scale_type": "channel"}]
    optimizer: Optimizer = module.AdamW(groups, lr=RATE)
    return optimizer


def _of_collection(name: str, **group: Any) -> Build:
    def build(parameters: list[Parameter], rank: int) -> Optimizer:
        options = {key: rank if value == "rank" else value for key, value in group.items()}
        groups = [{"params": parameters, **options}]
        optimizer: Optimizer = getattr(_collection(), name)(groups, lr=RATE)
        return optimizer

    return build


def _wind_parameters(optimizer: Optimizer, refresh: bool) -> None:
    for state in optimizer.state.values():
        state["step"] = 0 if refresh else 1


def _wind_group(period: int) -> Callable[[Optimizer, bool], None]:
    def wind(optimizer: Optimizer, refresh: bool) -> None:
        # Counted before it is looked at, and in SOAP once before there is anything to precondition.
        optimizer.param_groups[0]["step"] = period if refresh else period + 1

    return wind


def _wind_fira(optimizer: Optimizer, refresh: bool) -> None:
    optimizer.param_groups[0]["step"] = GALORE_PERIOD - 1 if refresh else GALORE_PERIOD


_PROJECTED = {"rank": "rank", "update_proj_gap": GALORE_PERIOD}
_SOAP_PERIOD = 10

ADAMW, DCT_ADAMW, TRION, MUON = "AdamW (fused)", "DCT-AdamW", "Trion", "Muon (torch.optim)"
SIGN = "DCT-AdamW, sign of the residual (preset=None)"
DEFAULT = "DCT-AdamW, the default"
POWER, PAPER, GALORE = "QR every step", "DCT-AdamW, the paper's code", "GaLore (galore-torch)"

_ALL = (
    Peer(ADAMW, _adamw),
    Peer(
        DEFAULT,
        _preset(refresh_every=SELDOM),
        period=10,
        build_refreshing=_preset(refresh_every=1),
    ),
    Peer("DCT-AdamW, 8 bits (tiny)", _preset(preset="tiny")),
    Peer(DCT_ADAMW, _dct_adamw()),
    Peer(SIGN, _dct_adamw(residual="sign")),
    Peer(
        "DCT-AdamW, columns every 50",
        _dct_adamw(refresh_every=SELDOM),
        period=50,
        build_refreshing=_dct_adamw(),
    ),
    Peer(TRION, _trion),
    Peer(POWER, _dct_adamw(basis="power", refresh_every=1)),
    Peer(PAPER, _paper("makhoul"), package="ista-daslab-optimizers"),
    Peer(f"{PAPER}, product", _paper("matmul"), package="ista-daslab-optimizers"),
    Peer(GALORE, _galore, "galore-torch", GALORE_PERIOD, _wind_parameters, svd=True),
    Peer("APOLLO (apollo-torch)", _apollo, "apollo-torch", GALORE_PERIOD, _wind_parameters),
    Peer(
        "APOLLO (pytorch-optimizer)",
        _of_collection(
            "APOLLO", projection_type="random", scale_type="channel", scale=1.0, **_PROJECTED
        ),
        "pytorch-optimizer",
        GALORE_PERIOD,
        _wind_fira,
    ),
    Peer(
        "Fira (pytorch-optimizer)",
        _of_collection("Fira", projection_type="std", scale=0.25, **_PROJECTED),
        "pytorch-optimizer",
        GALORE_PERIOD,
        _wind_fira,
        svd=True,
    ),
    Peer(
        "SOAP (pytorch-optimizer)",
        _of_collection("SOAP"),
        "pytorch-optimizer",
        _SOAP_PERIOD,
        _wind_group(_SOAP_PERIOD),
        prepares_first=True,
    ),
    Peer(MUON, _torch_muon),
    Peer("Muon (pytorch-optimizer)", _of_collection("Muon", use_muon=True), "pytorch-optimizer"),
)
PEERS = {peer.name: peer for peer in _ALL}


def install_command() -> str:
    """Return the command that installs every package that is compared with."""
    packages = sorted({peer.package for peer in _ALL if peer.package})
    return "pip install --no-deps " + " ".join(packages)


@contextlib.contextmanager
def without_svd() -> Iterator[None]:
    """Let singular vectors be arbitrary numbers: for a first step that nobody times."""
    original = torch.linalg.svd

    def arbitrary(matrix: Tensor, full_matrices: bool = True, **_: Any) -> tuple[Tensor, ...]:
        rows, columns = matrix.shape[-2:]
        kept = min(rows, columns)
        sizes = ((rows, kept), (kept,), (kept, columns))
        return tuple(torch.full(size, kept**-0.5) for size in sizes)

    torch.linalg.svd = arbitrary
    try:
        yield
    finally:
        torch.linalg.svd = original


@functools.cache
def _small_svd_seconds() -> float:
    matrix = torch.randn(512, 512)
    torch.linalg.svd(matrix, full_matrices=False)
    begin = time.perf_counter()
    torch.linalg.svd(matrix, full_matrices=False)
    return time.perf_counter() - begin


def svd_seconds(shapes: Sequence[tuple[int, int]]) -> float:
    """Return about how long singular value decompositions of matrices of ``shapes`` take here."""
    work = sum(max(shape) * min(shape) ** 2 for shape in shapes)
    return _small_svd_seconds() * work / 512**3


def eigen_seconds(shapes: Sequence[tuple[int, int]]) -> float:
    """Return about how long eigenvalue decompositions for both sides of matrices of ``shapes`` take here."""
    # About half of what an SVD of as large a square takes; larger sides are left alone.
    sides = [side for shape in shapes for side in shape if side <= 10_000]
    return svd_seconds([(side, side) for side in sides]) / 2

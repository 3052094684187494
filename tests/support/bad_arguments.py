"""One table of every public function and argument with values that it must refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import lowrank_jax
import lowrank_torch
import numpy as np
import optax
import torch
from jax import numpy as jnp

import lowrank_core as lc

X = np.ones((6, 4), np.float32)
INDICES = np.array([0, 2], np.int32)
DCT, TRION = lc.DCTAdamWConfig(rank=2), lc.TrionConfig(rank=2)
KEPT = lc.DCTAdamWConfig(rank=2, residual="discard", refresh_every=3)
STATE = lc.dct_adamw_init((6, 4), DCT, xp=np)
TREE = {"layer": {"kernel": jnp.ones((6, 4))}}
AXES = {"layer": {"kernel": lowrank_jax.MatrixAxes(1, 0)}}
OPTAX = lowrank_jax.dct_adamw(0.1, rank=2, matrix_axes=AXES)
STEP = lowrank_jax.Step(TREE, OPTAX.init(TREE), TREE, TREE, OPTAX.init(TREE))

#: Of each kind of argument what is none.
KINDS: dict[str, list[Any]] = {
    "matrix": [None, "x", 3.5, [[1.0]], X.astype(int), X.astype(complex), X[0]],
    "array": [None, "x", 3.5, [1.0], X.astype(complex)],
    "indices": [
        *(None, 3, [0, 1], INDICES.astype(np.float32), INDICES[None, None], INDICES[:0]),
        *(np.array(x, np.int32) for x in ([-1, 2], [2, 2], [2, 0], [0, 99])),
    ],
    "choice": [None, "no such", 7, 1.5, [], (), b"dct", np.ones(2), {"a": 1}],
    "optional choice": ["no such", 7, 1.5, [], (), np.ones(2)],
    "boolean": [None, "yes", 2, 0.5, [], np.ones(2), 1],
    "count": [None, "3", 0, -1, 2.5, 2.0, math.nan, True, [1], np.ones(2, int)],
    "index": [None, "3", -1, 2.5, 2.0, math.nan, True, [1]],
    "axis": [None, "0", 2, -3, 0.0, -1.0, True, [0]],
    "rank": [None, "3", 0, -1, 1.01, 1.5, 0.0, math.nan, math.inf, True, [1], 2 + 0j],
    "fraction": [None, "x", -0.1, 1.0, 2, math.nan, math.inf, True, [0.5], 1j, np.ones(2)],
    "optional fraction": ["x", -0.1, 1.0, 2, math.nan, math.inf, True, [0.5], 1j],
    "amount": [None, "x", -0.1, math.nan, math.inf, -math.inf, True, [0.5], 1j, np.ones(2)],
    "optional amount": ["x", -0.1, math.nan, math.inf, True, [0.5], 1j],
    "rates": [None, 0.9, (0.9,), (0.9, 1.0), (-0.1, 0.9), ("a", 0.9), (0.9, math.nan), "ab", {}],
    "bits": [3, 8.0, "8", True, [8], -8],
    "dtype": ["int8", "no such", 7, [], float],
    "basis": [None, "no such", 7, [], "random:x", "", np.ones(2), b"dct"],
    "shape": [None, 3, (4,), (), "ab", (0, 4), (4, 0)],
    "config": [None, "x", {}, 3],
    "state": [None, "x", {}, 3, STATE._replace(first_moment=X)],
    "namespace": [None, "numpy", 3, math],
    "module": [None, "x", 3, [], TREE],
    "optimizer": [None, "x", 3, torch.optim.SGD([torch.nn.Parameter(torch.ones(2))])],
    "step": [None, "x", {}, (1, 2, 3, 4, 5)],
    "path": [None, 3.5, []],
    "sizes": [(), (1,), (64, 32), (32, 32), "ab", None, 3, (2.5,)],
    "name": [None, "", "a:b", "dct", "svd", 3, []],
    "function": [None, 3, "x", []],
    "mapping": [3, "x", [1]],
    "tree rule": [3, "x"],
    "names": [3, "x", {"no such": "y"}],
    "mask": [3, "x", {"layer": 1.5}],
    "parameters": [None, 3, [], ["x"], [3.5]],
    "split": ["ab", 3, [0], [2.5], (-1, 7), [100], [True, 5]],
    "heads": ["ab", 0, -1, 2.5, 5, True, [4]],
    "stacked": [None, "3", -1, 2.5, 2.0, math.nan, True, [1], 3],
}

#: Arguments about which there is nothing to say: types of a library's own, which it refuses itself.
EXEMPT = {"ops", "device", "process_group", "dtype", "leaf"}


class Row(NamedTuple):
    """A function with arguments that are right, and of which kind each is."""

    call: Callable[..., Any]
    good: dict[str, Any]
    kinds: dict[str, str]


def _positional(function: Any, *names: str) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        first = [arguments.pop(name) for name in names]
        return function(*first, **arguments)

    return call


def _torch(kind: Any) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        given = arguments.pop("params", [torch.nn.Parameter(torch.ones(6, 4))])
        return kind(given, **arguments)

    return call


_DCT = {
    "rank": "rank",
    "betas": "rates",
    "eps": "amount",
    "basis": "basis",
    "score": "choice",
    "refresh_every": "count",
    "side": "choice",
    "method": "choice",
    "residual": "choice",
    "residual_scale": "optional amount",
    "feedback_bits": "bits",
    "selection": "choice",
    "score_decay": "optional fraction",
    "hysteresis": "amount",
    "bias_correction": "choice",
    "update_scale": "amount",
    "second_moment": "choice",
    "moment_bits": "bits",
    "state_dtype": "dtype",
    "seed": "index",
}
#: What the frontends have beside the fields of a configuration.
_PRESET = {"preset": "optional choice"}
_TRION = {
    "rank": "rank",
    "momentum": "fraction",
    "basis": "basis",
    "score": "choice",
    "side": "choice",
    "method": "choice",
    "steps": "count",
    "coefficients": "choice",
    "scale": "choice",
    "rank_scaling": "boolean",
    "update_scale": "amount",
    "row_decay": "optional fraction",
    "momentum_bits": "bits",
    "state_dtype": "dtype",
}
_GROUP = {
    "params": "parameters",
    "lr": "amount",
    "weight_decay": "amount",
    "algorithm": "choice",
    "maximize": "boolean",
    "foreach": "boolean",
    "stochastic_rounding": "boolean",
    "capturable": "boolean",
    "batch_dims": "stacked",
    "transposed": "boolean",
    "split_sizes": "split",
    "num_heads": "heads",
    "nonfinite": "choice",
}
_OPTAX = {
    "learning_rate": "amount",
    "b1": "fraction",
    "b2": "fraction",
    "eps": "amount",
    "weight_decay": "amount",
    "mask": "mask",
    "nonfinite": "choice",
}
_FEW = {key: kind for key, kind in _OPTAX.items() if key in ("b1", "b2", "eps")}
_FILES = {"path": "path", "optimizer": "optimizer", "names": "names", "axes": "tree rule"}
_LAYER = torch.nn.Linear(4, 6)

#: By package and function.
ROWS: dict[tuple[Any, str], Row] = {
    (lc, "get_basis"): Row(lc.get_basis, {}, {"name": "basis of a name"}),
    (lc, "register_basis"): Row(
        lc.register_basis,
        {"name": "never", "matrix": lambda size, **_: X},
        {"name": "name", "matrix": "function"},
    ),
    (lc, "calibrate"): Row(
        lc.calibrate, {"xp": np}, {"xp": "namespace", "sizes": "sizes", "path": "optional path"}
    ),
    (lc, "use_crossovers"): Row(lc.use_crossovers, {}, {"path": "path"}),
    (lc, "orthogonalize"): Row(
        _positional(lc.orthogonalize, "x"),
        {"x": X},
        {"x": "matrix", "steps": "count", "coefficients": "choice", "form": "choice"},
    ),
    (lc, "quantize"): Row(
        _positional(lc.quantize, "x", "bits"), {"x": X, "bits": 8}, {"x": "array", "bits": "bits"}
    ),
    (lc, "dequantize"): Row(_positional(lc.dequantize, "quantized"), {}, {"quantized": "config"}),
    (lc, "ops_for"): Row(lc.ops_for, {}, {"array": "config"}),
    (lc, "ops_for_namespace"): Row(lc.ops_for_namespace, {}, {"xp": "namespace"}),
    (lc, "state_bytes"): Row(
        lc.state_bytes, {"shape": (6, 4), "config": DCT}, {"shape": "shape", "config": "config"}
    ),
    (lc, "dct_adamw_init"): Row(
        lc.dct_adamw_init,
        {"shape": (6, 4), "config": DCT, "xp": np},
        {"shape": "shape", "config": "config", "xp": "namespace", "stream": "index"},
    ),
    (lc, "trion_init"): Row(
        lc.trion_init,
        {"shape": (6, 4), "config": TRION, "xp": np},
        {"shape": "shape", "config": "config", "xp": "namespace"},
    ),
    (lc, "dct_adamw_step"): Row(
        _positional(lc.dct_adamw_step, "gradient", "state", "config"),
        {"gradient": X, "state": STATE, "config": DCT},
        {"gradient": "matrix", "state": "state", "config": "config", "refresh": "refresh"},
    ),
    (lc, "trion_step"): Row(
        _positional(lc.trion_step, "gradient", "state", "config"),
        {"gradient": X, "state": lc.trion_init((6, 4), TRION, xp=np), "config": TRION},
        {"gradient": "matrix", "state": "state", "config": "config"},
    ),
    (lc, "dct_adamw_project"): Row(
        _positional(lc.dct_adamw_project, "gradient", "state", "config"),
        {"gradient": X, "state": STATE._replace(step=1), "config": KEPT},
        {"gradient": "matrix", "state": "state", "config": "config"},
    ),
    (lc, "dct_adamw_step_projected"): Row(
        _positional(lc.dct_adamw_step_projected, "low_rank", "state", "config"),
        {
            "low_rank": X[:, :2],
            "state": STATE._replace(step=1),
            "config": KEPT,
            "shape": (6, 4),
        },
        {"low_rank": "matrix", "state": "state", "config": "config", "shape": "shape"},
    ),
    (lc, "carry_columns"): Row(
        _positional(lc.carry_columns, "moments", "previous", "current"),
        {"moments": X[:, :2], "previous": INDICES, "current": INDICES},
        {"moments": "matrix", "previous": "indices*", "current": "indices*", "axis": "axis"},
    ),
    (lc, "column_scores"): Row(
        _positional(lc.column_scores, "coefficients"),
        {"coefficients": X},
        {"coefficients": "matrix", "axis": "axis", "norm": "choice"},
    ),
    (lc, "select_columns"): Row(
        _positional(lc.select_columns, "scores", "rank"),
        {"scores": X[0], "rank": 2},
        {"scores": "array", "rank": "count"},
    ),
    (lc, "project"): Row(
        _positional(lc.project, "matrix", "indices"),
        {"matrix": X, "indices": INDICES},
        {
            "matrix": "matrix",
            "indices": "indices",
            "axis": "axis",
            "basis": "basis",
            "method": "choice",
        },
    ),
    (lc, "lift"): Row(
        _positional(lc.lift, "low_rank", "indices", "size"),
        {"low_rank": X[:, :2], "indices": INDICES, "size": 4},
        {
            "low_rank": "matrix",
            "indices": "indices",
            "size": "count",
            "axis": "axis",
            "basis": "basis",
            "method": "choice",
        },
    ),
    (lc, "materialize"): Row(
        _positional(lc.materialize, "update"),
        {"update": lc.LowRankUpdate(X[:, :2], INDICES, -1, 4)},
        {"update": "config", "method": "optional choice"},
    ),
    **{
        (lc, name): Row(
            _positional(getattr(lc, name), "x"),
            {"x": X},
            {"x": "array", "axis": "axis", "method": "choice"},
        )
        for name in ("dct", "idct")
    },
    (lc, "dct_matrix"): Row(lc.dct_matrix, {"n": 4, "xp": np}, {"n": "count", "xp": "namespace"}),
    (lc, "DCTAdamWConfig"): Row(lc.DCTAdamWConfig, {"rank": 2}, _DCT),
    (lc, "TrionConfig"): Row(lc.TrionConfig, {"rank": 2}, _TRION),
    (lowrank_torch, "DCTAdamW"): Row(
        _torch(lowrank_torch.DCTAdamW), {"rank": 2}, {**_DCT, **_PRESET, **_GROUP}
    ),
    (lowrank_torch, "Trion"): Row(
        _torch(lowrank_torch.Trion),
        {"rank": 2},
        {**_TRION, **_PRESET, **_GROUP, "betas": "rates", "eps": "amount"},
    ),
    (lowrank_torch, "matrix_groups"): Row(
        lowrank_torch.matrix_groups,
        {"model": _LAYER},
        {
            "model": "module",
            "overrides": "mapping",
            "options": "mapping",
            "matrix": "mapping",
            "other": "mapping",
            "min_size": "index",
        },
    ),
    (lowrank_torch, "parameter_roles"): Row(
        lowrank_torch.parameter_roles,
        {"model": _LAYER},
        {"model": "module", "overrides": "mapping", "min_size": "index"},
    ),
    (lowrank_torch, "role_table"): Row(lowrank_torch.role_table, {}, {"roles": "rows"}),
    **{
        (lowrank_torch, name): Row(getattr(lowrank_torch, name), {}, {"optimizer": "optimizer"})
        for name in ("accumulate_projected", "step_in_backward")
    },
    (lowrank_torch, "compressed_gradients"): Row(
        lowrank_torch.compressed_gradients,
        {"model": _LAYER, "optimizer": None},
        {"model": "module", "optimizer": "optimizer"},
    ),
    (lowrank_torch, "for_trainer"): Row(
        lowrank_torch.for_trainer, {"cls": lowrank_torch.DCTAdamW}, {"cls": "function"}
    ),
    (lowrank_jax, "scale_by_dct_adam"): Row(
        lowrank_jax.scale_by_dct_adam,
        {"rank": 2},
        {k: v for k, v in (_DCT | _PRESET).items() if k != "betas"}
        | _FEW
        | {"matrix_axes": "tree rule"},
    ),
    (lowrank_jax, "scale_by_trion"): Row(
        lowrank_jax.scale_by_trion,
        {"rank": 2},
        _TRION | _PRESET | _FEW | {"matrix_axes": "tree rule"},
    ),
    (lowrank_jax, "dct_adamw"): Row(
        lowrank_jax.dct_adamw,
        {"learning_rate": 0.1, "rank": 2},
        {k: v for k, v in (_DCT | _PRESET).items() if k != "betas"}
        | _OPTAX
        | {"matrix_axes": "tree rule"},
    ),
    (lowrank_jax, "trion"): Row(
        lowrank_jax.trion,
        {"learning_rate": 0.1, "rank": 2},
        _TRION | _PRESET | _OPTAX | {"matrix_axes": "tree rule"},
    ),
    (lowrank_jax, "axes_by_name"): Row(
        lowrank_jax.axes_by_name,
        {"path": "layer/kernel", "leaf": X},
        {"path": "path", "min_size": "index"},
    ),
    (lowrank_jax, "matrix_mask"): Row(
        lowrank_jax.matrix_mask, {"tree": TREE}, {"matrix_axes": "tree rule"}
    ),
    (lowrank_jax, "summary"): Row(
        lowrank_jax.summary, {"optimizer": OPTAX, "params": TREE}, {"optimizer": "optimizer"}
    ),
    (lowrank_jax, "diagnostics"): Row(
        lowrank_jax.diagnostics,
        {"optimizer": OPTAX, "step": STEP},
        {"optimizer": "optimizer", "step": "step"},
    ),
    (lowrank_jax, "static_options"): Row(lowrank_jax.static_options, {}, {"factory": "function"}),
    **{
        (lowrank_jax, name): Row(
            getattr(lowrank_jax, name),
            {
                "path": "/nowhere/at/all",
                "optimizer": OPTAX,
                "state": OPTAX.init(TREE),
                "params": TREE,
            },
            {**_FILES, "state": "config"},
        )
        for name in ("save_state", "load_state")
    },
}
KINDS["indices*"] = KINDS["indices"][:-1]
KINDS["basis of a name"] = KINDS["basis"]
KINDS["optional path"] = [3.5, [2]]
KINDS["rows"] = [None, "x", 3, ["x"]]
KINDS["refresh"] = ["yes", 2, 0.5, [], 1]
#: What has no functions of its own, or is made by the library and not by its users.
TYPES = {
    *(lc.Basis, lc.Crossovers, lc.StandardOps, lc.DCTAdamWState, lc.TrionState, lc.Quantized),
    *(lc.LowRankUpdate, lc.CoefficientRest, lc.DenseRest, lc.SignRest),
    *(lowrank_torch.LowRankOptimizer, lowrank_torch.GradientHooks, lowrank_torch.Traffic),
    *(lowrank_torch.ProjectedAccumulation, lowrank_torch.ParameterRole),
    *(
        lowrank_torch.ParameterSummary,
        lowrank_torch.Summary,
        lowrank_jax.ScaleByLowRankState,
        lowrank_jax.Summary,
    ),
    *(lowrank_jax.LeafSummary, lowrank_jax.MatrixAxes, lowrank_jax.Step, lc.MatrixDiagnostics),
}
#: Trees may be anything.
TREES = {"tree", "params", "settings"}


def said_of(row: Row, argument: str, value: Any) -> str | None:
    """Say what is wrong about how a bad value is refused."""
    try:
        with optax_promotion():
            row.call(**row.good | {argument: value})
    except (TypeError, ValueError, NotImplementedError) as error:
        if not str(error).strip():
            return "an error without words"
        named = argument in str(error) or row.kinds[argument] in UNNAMED
        return None if named else f"an error that does not name it: {error}"
    except OSError as error:
        return None if argument != "path" else f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return "accepted"


#: Kinds whose errors say what was got instead of a name: an argument is the only one of its kind.
UNNAMED = {
    *("matrix", "array", "namespace", "config", "state", "module", "optimizer", "path"),
    *(
        "parameters",
        "shape",
        "basis of a name",
        "optional path",
        "function",
        "stacked",
        "tree rule",
    ),
}


def optax_promotion() -> Any:
    return jax.numpy_dtype_promotion("standard")


_ = optax

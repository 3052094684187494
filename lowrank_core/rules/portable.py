"""Optimizer state in one file that every framework reads: its format, and the checks before it is read.

The file is in the safetensors format. The state of the parameter ``NAME`` is arrays called ``NAME/FIELD``:

- of matrices, the fields of the core's state (`DCTAdamWState`, `TrionState`), made for matrices ``outputs x inputs``.
  Where a parameter is cut into several stacks of matrices they are numbered, ``NAME/FIELD.NUMBER``;
- of what AdamW steps, ``first_moment`` and ``second_moment``, all dimensions but the first flattened into one.

The file's metadata holds ``format``, ``version`` and, as JSON, ``parameters``: for every name the ``step`` count, the
``shapes`` of its stacks and the number of its rule among ``rules``, which hold the algorithm and those of its options
that state depends on. A parameter that was never stepped may have no arrays. ``checksum`` is
that of the whole file; files from before there was one have none.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

from lowrank_core._checksum import CHECKSUM, UNKNOWN, is_sealed_right, seal
from lowrank_core._files import check_plain, replacing
from lowrank_core.layout import with_fitting_rank
from lowrank_core.rules.laws import NON_NEGATIVE, check_count, check_law
from lowrank_core.rules.options import LATER_OPTIONS, structural_options
from lowrank_core.rules.rule import Rule
from lowrank_core.rules.state import ArraySpec

FORMAT = "lowrank-core optimizer state"
VERSION = 1
_METADATA = {"format", "version", "rules", "parameters", CHECKSUM}

# What safetensors calls the dtypes that state can have.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U8": "uint8",
}

#: How parameters are called in a file: a function of their own name, or a mapping of those that are called otherwise.
Names: TypeAlias = Callable[[str], str] | Mapping[str, str] | None


class Stepped(NamedTuple):
    """How a parameter is stepped, so far as its state depends on it."""

    #: Its name in the file.
    name: str
    #: The algorithm, and the options that its state depends on.
    rule: dict[str, Any]
    #: Shapes of the stacks of matrices it consists of; of what AdamW steps the shape in the file.
    shapes: tuple[tuple[int, ...], ...]
    #: Shape, dtype and law of every array of its state.
    arrays: dict[str, ArraySpec]


class Saved(NamedTuple):
    """The state of one parameter."""

    #: Steps done.
    step: int
    #: Its arrays by name, of any library; none where it was never stepped.
    arrays: dict[str, Any]


def stepped_by_rule(
    name: str, rule: Rule, config: Any, shapes: Sequence[tuple[int, ...]], dtype: str
) -> Stepped:
    """Return how a parameter that consists of stacks of matrices of ``shapes`` is stepped by a rule of the core.

    Parameters
    ----------
    name
        Its name in the file.
    rule
        The rule.
    config
        Options as the user gave them: the rank may exceed the transformed size of some of the matrices.
    shapes
        ``(..., outputs, inputs)`` of each stack.
    dtype
        Name of the dtype its gradients are computed with, ``"float32"`` or ``"float64"``.
    """
    options = {option: getattr(config, option) for option in structural_options(rule.config)}
    arrays: dict[str, ArraySpec] = {}
    for number, shape in enumerate(shapes):
        spec = with_fitting_rank(config, shape).state_spec(shape, dtype)
        ending = f".{number}" if len(shapes) > 1 else ""
        arrays |= {field + ending: spec[field] for field in spec}
    described = {"algorithm": rule.name, **options}
    return Stepped(name, described, tuple(map(tuple, shapes)), arrays)


def stepped_by_adamw(name: str, shape: Sequence[int], dtype: str) -> Stepped:
    """Return how a parameter of ``shape``, outputs before inputs, is stepped by AdamW with moments of ``dtype``."""
    flat = tuple(shape) if len(shape) <= 2 else (shape[0], math.prod(shape[1:]))
    arrays = {
        "first_moment": ArraySpec(flat, dtype),
        "second_moment": ArraySpec(flat, dtype, NON_NEGATIVE),
    }
    return Stepped(name, {"algorithm": "adamw"}, (flat,), arrays)


def file_names(own: Sequence[str], names: Names, default: Callable[[str], str] = str) -> list[str]:
    """Return what parameters are called in a file: by ``names``, or by ``default`` where these say nothing.

    Raises
    ------
    TypeError, ValueError
        If ``names`` is neither a function nor a mapping, speaks of a parameter there is not, or gives one name twice.
    """
    if names is None:
        given = [default(name) for name in own]
    elif isinstance(names, Mapping):
        for name in names:
            if name not in own:
                raise ValueError(f"names has no parameter {name!r} to rename")
        given = [names[name] if name in names else default(name) for name in own]
    elif callable(names):
        given = [names(name) for name in own]
    else:
        raise TypeError(f"names must be a function or a mapping, got {names!r}")
    first: dict[str, str] = {}
    for name, called in zip(own, given, strict=True):
        if not called or not isinstance(called, str):
            raise TypeError(f"names must give a name, got {called!r} for {name!r}")
        if called in first:
            raise ValueError(
                f"names must give every parameter a name of its own, got {called!r} for {first[called]!r} "
                f"and {name!r}"
            )
        first[called] = name
    return given


def write(
    path: str | os.PathLike[str],
    parameters: Sequence[tuple[Stepped, Saved]],
    save_file: Callable[..., None],
) -> None:
    """Write the state of ``parameters`` to ``path``, which is whole at any moment: the old file or the new one.

    Parameters
    ----------
    path
        The file; one that is there is replaced.
    parameters
        Each with its state, arrays of the library that ``save_file`` takes.
    save_file
        Function of safetensors that takes arrays by name, a path and ``metadata``.

    Raises
    ------
    ValueError
        If a state is not one that the parameter's options ask for.
    """
    rules: list[dict[str, Any]] = []
    rows: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for stepped, saved in parameters:
        held = {
            key: ArraySpec(tuple(array.shape), str(array.dtype).rpartition(".")[2])
            for key, array in saved.arrays.items()
        }
        if held or saved.step:
            _check_arrays("the optimizer's state", stepped, held)
        if stepped.rule not in rules:
            rules.append(stepped.rule)
        number = rules.index(stepped.rule)
        rows[stepped.name] = {"step": saved.step, "rule": number, "shapes": stepped.shapes}
        arrays |= {f"{stepped.name}/{key}": array for key, array in saved.arrays.items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "rules": json.dumps(rules),
        "parameters": json.dumps(rows),
        CHECKSUM: UNKNOWN,
    }
    with replacing(path) as aside:
        save_file(arrays, aside, metadata=metadata)
        seal(aside)


def read(
    path: str | os.PathLike[str], parameters: Sequence[Stepped], safetensors: Any, framework: str
) -> dict[str, Saved]:
    """Return the state of every one of ``parameters``, by name, after all of the file has been compared with them.

    Parameters
    ----------
    path
        A file that `write` has written.
    parameters
        All parameters that an optimizer has state of.
    safetensors, framework
        The library, and what it calls the one whose arrays are returned.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no plain file, not whole, of another format or version, not of these parameters stepped in this way, or
        holds numbers that their state cannot have; the message names the first difference.
    """
    with _opened(path, safetensors, framework) as file:
        rows = _header(path, file.metadata() or {})
        found: dict[str, dict[str, ArraySpec]] = {name: {} for name in rows}
        for array in sorted(file.keys()):
            name, _, key = array.rpartition("/")
            part = file.get_slice(array)
            dtype = part.get_dtype()
            spec = ArraySpec(tuple(part.get_shape()), _DTYPES.get(dtype, dtype))
            found.setdefault(name, {})[key] = spec
        _check_names(path, parameters, rows, found)
        for stepped in parameters:
            _check_rule(path, stepped, rows[stepped.name])
            if found[stepped.name] or rows[stepped.name]["step"]:
                _check_arrays(str(path), stepped, found[stepped.name])
        arrays = {
            name: {key: file.get_tensor(f"{name}/{key}") for key in found[name]} for name in rows
        }
    for stepped in parameters:
        for key, array in arrays[stepped.name].items():
            _, dtype, law = stepped.arrays[key]
            check_law(f"{path} must be right: {key} of {stepped.name!r}", array, dtype, law)
    return {name: Saved(rows[name]["step"], arrays[name]) for name in rows}


def algorithms_in(
    path: str | os.PathLike[str], safetensors: Any, framework: str
) -> dict[str, object]:
    """Return the algorithm that stepped each parameter of a file, by name; nothing of its state is read.

    Parameters
    ----------
    path, safetensors, framework
        As in `read`, which raises the same.
    """
    with _opened(path, safetensors, framework) as file:
        rows = _header(path, file.metadata() or {})
    return {name: row["rule"].get("algorithm") for name, row in rows.items()}


@contextmanager
def _opened(path: str | os.PathLike[str], safetensors: Any, framework: str) -> Iterator[Any]:
    """Open a plain file, errors of safetensors naming the path."""
    check_plain(path)
    try:
        with safetensors.safe_open(path, framework=framework) as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"path must be a whole safetensors file, got {path}: {error}") from error


def _header(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return what the metadata say of every parameter: its step count, rule and shapes."""
    kind, version = metadata.get("format"), metadata.get("version")
    if kind != FORMAT:
        raise ValueError(f"path must be a file that save_state wrote, got {path} of format {kind}")
    if version != str(VERSION):
        raise ValueError(
            f"path must be of version {VERSION}, which this lowrank-core reads, got {path} of version {version}"
        )
    if CHECKSUM in metadata and not is_sealed_right(path):
        raise ValueError(f"path must be a file as it was written, got {path} of another checksum")
    try:
        # A name with a flipped bit in it, maybe that of the checksum.
        if unknown := metadata.keys() - _METADATA:
            raise LookupError(*sorted(unknown))
        rows, rules = json.loads(metadata["parameters"]), json.loads(metadata["rules"])
        for name, row in rows.items():
            shapes = tuple(tuple(map(_integer, shape)) for shape in row["shapes"])
            rows[name] = {
                "step": check_count(f"step of {name!r}", _integer(row["step"])),
                "rule": dict(rules[_integer(row["rule"])]),
                "shapes": shapes,
            }
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"path must have whole metadata, got {path}: {error!r}") from error
    return dict(rows)


def _integer(value: Any) -> int:
    """Return a number of JSON that is an integer of at least 0."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no integer of at least 0")
    return value


def _check_names(
    path: object, parameters: Sequence[Stepped], rows: Mapping[str, object], found: Iterable[str]
) -> None:
    wanted = [stepped.name for stepped in parameters]
    lacking = [name for name in wanted if name not in rows]
    excess = [name for name in found if name not in wanted]
    if lacking:
        instead = f"; it has one of {excess[0]!r}, which this optimizer has not" if excess else ""
        raise ValueError(f"{path} must have a state of {lacking[0]!r}, got none{instead}")
    if excess:
        raise ValueError(
            f"{path} must have no state but that of this optimizer's parameters, got one of {excess[0]!r}"
        )


def _check_rule(path: object, stepped: Stepped, row: Mapping[str, Any]) -> None:
    rule = row["rule"]
    for option in dict.fromkeys((*stepped.rule, *rule)):
        missing = LATER_OPTIONS.get(option, "no such option")
        wanted, got = stepped.rule.get(option, "no such option"), rule.get(option, missing)
        if wanted != got:
            raise ValueError(
                f"{path} must have been saved with {option}={wanted!r} for {stepped.name!r}, got {got!r}"
            )
    if stepped.shapes != row["shapes"]:
        here, there = (" and ".join(map(str, of)) for of in (stepped.shapes, row["shapes"]))
        raise ValueError(
            f"{path} must be of this model, in which {stepped.name!r} is of shape {here}, outputs before inputs; "
            f"got {there}"
        )


def _check_arrays(what: str, stepped: Stepped, found: Mapping[str, ArraySpec]) -> None:
    for key in sorted({*stepped.arrays, *found}):
        wanted, got = stepped.arrays.get(key), found.get(key)
        if wanted is None or got is None or wanted[:2] != got[:2]:
            raise ValueError(
                f"{what} must fit the options: {key} of {stepped.name!r} is {_described(wanted)} by these, got "
                f"{_described(got)}"
            )


def _described(spec: ArraySpec | None) -> str:
    return "absent" if spec is None else f"{spec.dtype} of shape {spec.shape}"

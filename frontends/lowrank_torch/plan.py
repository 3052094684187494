"""How much memory training a model needs, told from its shapes alone: no weights are loaded, no array is made.

    python -m lowrank_torch.plan PATH [--optimizer NAME ...] [--rank R] [--world N] [--shard fsdp2]

PATH is a `config.json` of Hugging Face (models of other kinds than Llama's need Transformers), a safetensors file, of
which only the header is read, or a folder with either. From Python, `estimates` takes any model, such as one made under
``torch.device("meta")``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import nn

from lowrank_core._checks import check_choice, check_integer
from lowrank_core.layout import resolve_rank
from lowrank_core.option_types import PresetName
from lowrank_core.roles import is_table_name
from lowrank_torch._dct_adamw import DCTAdamW
from lowrank_torch._report import Summary
from lowrank_torch._trion import Trion

__all__ = ["Estimate", "Row", "estimates", "model_of"]

#: Rank of the adapters in the row of LoRA, on every hidden matrix.
LORA_RANK = 16
#: bitsandbytes keeps tensors of fewer numbers in float32, and a float32 scale for each block of this many codes.
_SMALL, _BLOCK = 4096, 256
_BAR = 24
#: What a step of DCT-AdamW holds for a moment, over its largest matrix: the default preset's, without kernels.
TEMPORARY = Fraction(9, 5)
#: Types of models in Hugging Face's configurations that are made here, without Transformers.
DECODERS = ("llama", "mistral", "qwen2", "gemma")

#: How devices share a model.
Shard: TypeAlias = Literal["even", "fsdp2"]
Entries: TypeAlias = Iterable[tuple[str, tuple[int, ...], torch.dtype]]


class Row(NamedTuple):
    """What one optimizer needs on each device, in bytes."""

    #: The optimizer.
    name: str
    #: Bytes of the weights.
    weights: int
    #: Bytes of the gradients of all that is trained.
    gradients: int
    #: Bytes of the optimizer's state.
    state: int

    @property
    def total(self) -> int:
        """Bytes of all three."""
        return self.weights + self.gradients + self.state


class Estimate(tuple[Row, ...]):
    """A `Row` for every optimizer; as text, a table with a bar for each state."""

    #: Numbers in the model, and what they are kept in.
    parameters: int
    dtype: str
    #: Devices that share everything.
    world: int
    #: Bytes of the weights that FSDP2 holds whole at a time on each device, those of two blocks; 0 without it.
    gathered: int
    #: Bytes of what a step of DCT-AdamW needs beside the rows, one and a half of the largest matrix in float32.
    temporary: int

    def __str__(self) -> str:
        """Return the table, in GB (10^9 bytes)."""
        where = "one device" if self.world == 1 else f"each of {self.world} devices"
        lines = [
            f"{self.parameters:,} parameters in {self.dtype}; GB on {where}",
            f"{'':26}{'weights':>9}{'gradients':>11}{'state':>9}{'total':>9}",
        ]
        most = max(row.state for row in self)
        for row in self:
            numbers = f"{row.weights / 1e9:9.2f}{row.gradients / 1e9:11.2f}{row.state / 1e9:9.2f}{row.total / 1e9:9.2f}"
            bar = "#" * max(1, round(_BAR * row.state / most)) if most else ""
            lines.append(f"{row.name:26}{numbers}  {bar}")
        lines += [
            f"Beside these: activations, and about {self.temporary / 1e9:.2f} GB for a step of DCT-AdamW",
            f"({float(TEMPORARY):g} times the largest hidden matrix in float32; more with Trion, error feedback).",
        ]
        if self.gathered:
            lines.append(
                f"FSDP2 holds about {self.gathered / 1e9:.2f} GB of weights more, two blocks at a time."
            )
        return "\n".join(lines)


def estimates(
    model: nn.Module,
    *,
    optimizers: Sequence[str] | None = None,
    rank: int | float = 0.25,
    world: int = 1,
    shard: Shard = "even",
    **options: Any,
) -> Estimate:
    """Return what training ``model`` with each optimizer needs on each device.

    Parameters
    ----------
    model
        The model, on any device; on ``meta`` it needs no memory.
    optimizers
        Some of `OPTIMIZERS`, in their order; all of them by default.
    rank
        Of DCT-AdamW and GaLore: a number of columns, or a fraction of the transformed dimension.
    world
        Devices among which weights, gradients and state are shared out.
    shard
        How: ``"even"``, or ``"fsdp2"`` as `torch.distributed.fsdp.fully_shard` does, by whole rows of each parameter,
        of which the first device has the most.
    **options
        Other options of `DCTAdamW`, for its row.

    Raises
    ------
    TypeError, ValueError
        If there is no such optimizer, or an option is not right.

    Examples
    --------
    >>> import torch, lowrank_torch.plan
    >>> with torch.device("meta"):
    ...     model = torch.nn.Linear(4096, 4096, bias=False)
    >>> (row,) = lowrank_torch.plan.estimates(model, optimizers=["dct-adamw"], rank=512)
    >>> row.state
    16779264
    """
    check_integer("world", world, low=1)
    check_choice("shard", shard, get_args(Shard))
    names = list(OPTIMIZERS) if optimizers is None else list(optimizers)
    for name in names:
        check_choice("optimizer", name, OPTIMIZERS)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    gradients = sum(p.numel() * p.element_size() for p in trained)
    summary = DCTAdamW.for_model(model, rank=rank, **options).summary()
    item = max((p.element_size() for p in trained), default=4)
    shapes = Shapes(model, summary, rank, item)
    share = Fraction(1, world) if shard == "even" else _share_by_rows(model, world)
    rows = []
    for name in names:
        title, state = OPTIMIZERS[name]
        whole = Row(title, weights, gradients, 0)
        if name == "lora":
            # Adapters are trained in float32 beside frozen weights.
            adapters = 4 * sum(LORA_RANK * (m + n) for m, n in shapes.matrices)
            whole = Row(title, weights + adapters, adapters, 0)
        size = round(state(shapes))
        per_device = [
            math.ceil(number * share) for number in (whole.weights, whole.gradients, size)
        ]
        rows.append(Row(title, *per_device))
    made = Estimate(rows)
    made.parameters = sum(p.numel() for p in model.parameters())
    made.dtype = " and ".join(sorted({str(p.dtype).removeprefix("torch.") for p in trained}))
    made.world = world
    largest = max((4 * m * n for m, n in shapes.matrices), default=0)
    made.temporary = math.ceil(TEMPORARY * largest / world)
    made.gathered = 2 * _largest_block(model) if shard == "fsdp2" and world > 1 else 0
    return made


def _share_by_rows(model: nn.Module, world: int) -> Fraction:
    """Return the share of the numbers of ``model`` that the first of ``world`` devices has, whole rows of each."""
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    held = sum(-(-s[0] // world) * math.prod(s[1:]) if s else 1 for s in shapes)
    return Fraction(held, max(1, sum(map(math.prod, shapes))))


def _largest_block(model: nn.Module) -> int:
    """Return the bytes of the weights of the largest module that is one of a list, as the blocks of a decoder are."""
    blocks = (own for name, own in model.named_modules() if name.rpartition(".")[2].isdecimal())
    sizes = (sum(p.numel() * p.element_size() for p in own.parameters()) for own in blocks)
    return max(sizes, default=0)


class Shapes:
    """The shapes of a model that the formulas of other optimizers need.

    Parameters
    ----------
    model
        The model.
    summary
        How `DCTAdamW` steps it.
    rank
        As in `estimates`.
    item
        Bytes of a number of its weights, in which PyTorch's optimizers keep their moments.
    """

    def __init__(self, model: nn.Module, summary: Summary, rank: int | float, item: int) -> None:
        self.model, self.rank, self.item = model, rank, item
        #: Hidden matrices, as (rows, columns), those of a stack one by one.
        self.matrices: list[tuple[int, int]] = []
        self.own_state = summary.state_bytes
        #: Numbers of everything else, which every low-rank optimizer leaves to AdamW.
        self.others: list[int] = []
        for row in summary:
            size = math.prod(row.shape)
            if row.algorithm == "adamw":
                self.others.append(size)
            elif len(row.shape) == 2:
                self.matrices.append((row.shape[0], row.shape[1]))
            else:
                # Experts are stacks, of which the last two dimensions are the matrices; convolutions are near enough.
                m, n = (
                    row.shape[-2:] if row.shape[-1] > 16 else (row.shape[0], size // row.shape[0])
                )
                self.matrices += [(m, n)] * (size // (m * n))

    def low_rank(self, matrix: tuple[int, int]) -> int:
        """Return the rank of a matrix as a number of columns."""
        return min(*matrix, resolve_rank(self.rank, min(matrix)))


def _adamw(shapes: Shapes) -> float:
    return 2 * shapes.item * (sum(m * n for m, n in shapes.matrices) + sum(shapes.others))


def _adamw_8bit(shapes: Shapes) -> float:
    sizes = [m * n for m, n in shapes.matrices] + shapes.others
    return sum(2 * s * (1 + 4 / _BLOCK) if s >= _SMALL else 8 * s for s in sizes)


def _galore(shapes: Shapes) -> float:
    hidden = sum((2 * max(s) + min(s)) * shapes.low_rank(s) for s in shapes.matrices)
    return shapes.item * (hidden + 2 * sum(shapes.others))


def _apollo(shapes: Shapes) -> float:
    # Its projection is made anew of a seed.
    hidden = sum(2 * max(s) * shapes.low_rank(s) for s in shapes.matrices)
    return shapes.item * (hidden + 2 * sum(shapes.others))


def _muon(shapes: Shapes) -> float:
    return shapes.item * (sum(m * n for m, n in shapes.matrices) + 2 * sum(shapes.others))


def _lora(shapes: Shapes) -> float:
    return 8 * sum(LORA_RANK * (m + n) for m, n in shapes.matrices)


def _preset(preset: PresetName | None) -> Callable[[Shapes], float]:
    return lambda shapes: (
        DCTAdamW.for_model(shapes.model, rank=shapes.rank, preset=preset).summary().state_bytes
    )


def _trion(**options: Any) -> Callable[[Shapes], float]:
    return lambda shapes: Trion.for_model(shapes.model, rank=0.5, **options).summary().state_bytes


#: What there is to compare: for each name its title and the bytes of its state.
OPTIMIZERS: Mapping[str, tuple[str, Callable[[Shapes], float]]] = {
    "adamw": ("AdamW", _adamw),
    "adamw-8bit": ("AdamW, 8 bits", _adamw_8bit),
    "galore": ("GaLore, same rank", _galore),
    "apollo": ("APOLLO, same rank", _apollo),
    "muon": ("Muon", _muon),
    "lora": (f"LoRA, rank {LORA_RANK}, AdamW", _lora),
    "dct-adamw": ("DCT-AdamW", lambda shapes: shapes.own_state),
    "dct-adamw-plain": ("DCT-AdamW, plain", _preset(None)),
    "dct-adamw-tiny": ("DCT-AdamW, tiny", _preset("tiny")),
    "trion": ("Trion", _trion()),
    "trion-best": ("Trion, best", _trion(preset="best")),
}


def model_of(path: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the model that a file describes, on ``meta``: of the right names and shapes, without numbers.

    Parameters
    ----------
    path
        A Hugging Face `config.json`, a safetensors file, or a folder with either.
    dtype
        The dtype of the weights where a configuration says nothing else; a safetensors file states its own.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If Transformers is needed and not installed.
    ValueError
        If it is neither.
    """
    path = Path(path)
    if path.is_dir():
        weights = sorted(path.glob("*.safetensors"))
        if (path / "config.json").is_file():
            path = path / "config.json"
        elif weights:
            return _skeleton(entry for file in weights for entry in _header(file))
        else:
            raise FileNotFoundError(f"no config.json and no safetensors file in {path}")
    if path.suffix == ".safetensors":
        return _skeleton(_header(path))
    if path.suffix != ".json":
        raise ValueError(f"path must be a config.json, a .safetensors file or a folder, got {path}")
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"{path} must be a configuration of Hugging Face, with a model_type")
    if config["model_type"] in DECODERS:
        return _skeleton(_decoder(config, dtype))
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"a model of type {config['model_type']!r} is made by Transformers: pip install transformers, or give a "
            "safetensors file"
        ) from error
    kind = config.pop("model_type")
    with torch.device("meta"):
        made = transformers.AutoConfig.for_model(kind, **config)
        auto: Any = transformers.AutoModelForCausalLM
        model: nn.Module = auto.from_config(made)
    return model.to(dtype)


def _decoder(config: Mapping[str, Any], dtype: torch.dtype) -> Entries:
    """Yield the names and shapes of a decoder of Llama's kind."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    keys = head * (config.get("num_key_value_heads") or heads)
    kind = config["model_type"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width)
    }
    for number in range(config["num_hidden_layers"]):
        layer, attention = f"model.layers.{number}", f"model.layers.{number}.self_attn"
        for name, outputs in (("q_proj", heads * head), ("k_proj", keys), ("v_proj", keys)):
            shapes[f"{attention}.{name}.weight"] = (outputs, width)
            if kind == "qwen2" or config.get("attention_bias"):
                shapes[f"{attention}.{name}.bias"] = (outputs,)
        shapes[f"{attention}.o_proj.weight"] = (width, heads * head)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{layer}.mlp.{name}.weight"] = (inner, width)
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{name}.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    if not config.get("tie_word_embeddings", kind == "gemma"):
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    for name, shape in shapes.items():
        yield name, shape, dtype


def _header(path: Path) -> Entries:
    """Read the names, shapes and dtypes of a safetensors file, and nothing else of it."""
    kinds = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 10**8:
            raise ValueError(f"{path} must be a safetensors file")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in kinds:
            yield name, tuple(entry["shape"]), kinds[entry["dtype"]]


def _skeleton(entries: Entries) -> nn.Module:
    """Return modules that have parameters of these names and shapes, so that roles are told as in the model."""
    root = nn.Module()
    for name, shape, dtype in entries:
        *path, leaf = name.split(".")
        module = root
        for place, part in enumerate(path):
            child = module._modules.get(part)
            if child is None:
                last = place == len(path) - 1 and leaf == "weight" and len(shape) == 2
                child = _layer(part, shape) if last else nn.Module()
                module.add_module(part, child)
            module = child
        parameter = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
        module.register_parameter(leaf, parameter)
    return root


def _layer(name: str, shape: tuple[int, ...]) -> nn.Module:
    if is_table_name(name):
        return nn.Embedding(shape[0], shape[1], device="meta")
    return nn.Linear(shape[1], shape[0], bias=False, device="meta")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table for the file that ``arguments`` name, those of the command line by default."""
    parser = argparse.ArgumentParser(
        "python -m lowrank_torch.plan", description=__doc__.split("\n")[0]
    )
    parser.add_argument("path", help="config.json, .safetensors file, or a folder with either")
    parser.add_argument("--optimizer", nargs="+", choices=list(OPTIMIZERS), help="some rows alone")
    parser.add_argument("--rank", type=_rank, default=0.25, help="columns, or a fraction (0.25)")
    parser.add_argument("--world", type=int, default=1, help="devices that share all")
    parser.add_argument("--shard", choices=get_args(Shard), default="even", help="how they do")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--state-dtype", choices=("float32", "bfloat16", "float16"))
    given = parser.parse_args(arguments)
    try:
        model = model_of(given.path, getattr(torch, given.dtype))
        table = estimates(
            model,
            optimizers=given.optimizer,
            rank=given.rank,
            world=given.world,
            shard=given.shard,
            state_dtype=given.state_dtype,
        )
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{table}\n")
    return 0


def _rank(text: str) -> int | float:
    return float(text) if "." in text else int(text)


if __name__ == "__main__":
    sys.exit(main())

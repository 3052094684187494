"""Libraries of models, imported where they can be, and what trainers of them are tried with.

Beside PyTorch's CPU build, PyPI's torchvision does not find its own library and fails on import, and timm with it.
Models need none of its operators, so declarations of those that are asked for on import let both in.
"""

import importlib
import sys

import torch

#: Tokens that `llama` knows.
WORDS = 100

_kept = []


def import_torchvision():
    """Return torchvision, its operators declared without code where its library does not load."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)  # what it declares goes when it goes
        return importlib.import_module("torchvision")


def import_timm():
    """Return timm."""
    import_torchvision()
    return importlib.import_module("timm")


def llama():
    """Return a small Llama of Transformers, the same at each call."""
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def trainer_settings(folder, steps):
    """Return what Trainer and TRL are told: steps of two micro-batches, every other one saved, in silence."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_steps": 2,
        "logging_steps": 100,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }

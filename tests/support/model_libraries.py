"""Libraries of models, imported where they can be.

Beside PyTorch's CPU build, PyPI's torchvision does not find its own library and fails on import, and timm with it.
Models need none of its operators, so declarations of those that are asked for on import let both in.
"""

import importlib
import sys

import torch

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

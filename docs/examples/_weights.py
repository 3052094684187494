"""The first weights of the model, in a file that every framework's example reads and writes.

Names and orientation are PyTorch's. NumPy and safetensors only.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from _report import whole_file
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

#: Size of the vocabulary.
BYTES = 256

Weights = Mapping[str, NDArray[np.float32]]


class WeightsError(ValueError):
    """The file of weights is unreadable, or not of this model."""


def deviation(name: str, layers: int) -> float:
    """Standard deviation of a matrix at the start.

    Scaled down where it is added to the stream, so that the stream does not grow with the depth of the model.
    """
    into_stream = name.endswith(("attention.o.weight", "feed_forward.down.weight"))
    return 0.02 * (1 / math.sqrt(2 * layers) if into_stream else 1.0)


def feed_forward_width(width: int) -> int:
    """Three matrices at 8/3 of the width hold as much as the usual two at 4 times."""
    return math.ceil(width * 8 / 3 / 32) * 32


def first_weights(path: Path | None, own: Weights) -> Weights:
    """The weights to start from: those in the file, or, where there is none, a model's own, which are written there."""
    if path is None:
        return own
    if not path.exists():
        try:
            with whole_file(path) as part:
                save_file(dict(own), part)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"must be writable, got {path} ({error})") from None
        return own
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"must be a safetensors file, got {path} ({error})") from None
    for name in sorted(own.keys() | found.keys()):
        wanted, got = (str(of[name].shape) if name in of else "none" for of in (own, found))
        if wanted != got:
            raise WeightsError(f"must have {name} of shape {wanted}, got {got} in {path}")
    return found


def fingerprint(path: Path) -> str:
    """A short name for exactly these weights."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]

"""The least there is to training with low-rank optimizer state, in one file, in seconds.

    python docs/examples/minimal.py

A small network learns to tell ten noisy patterns apart, first with AdamW, then with DCT-AdamW at a
quarter of the columns. Three lines are about the optimizer: `for_model`, which tells hidden
matrices from everything else, `print(optimizer.summary())`, and a rate of three times AdamW's.

Needs `pip install 'lowrank-core[torch]'`.
"""

import torch
from lowrank_torch import DCTAdamW
from torch import nn
from torch.nn.functional import cross_entropy

CLASSES, PIXELS, STEPS, BATCH, RATE = 10, 64, 200, 64, 1e-3


def data(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy pictures of ten patterns, and which pattern each shows."""
    patterns = torch.randn(CLASSES, PIXELS, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return patterns[labels] + 2.0 * torch.randn(count, PIXELS, generator=generator), labels


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(PIXELS, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, CLASSES)
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Train, and return the accuracy on pictures that were not trained on."""
    images, labels = data(4096, seed=1)
    for step in range(STEPS):
        batch = torch.arange(step * BATCH, (step + 1) * BATCH) % len(images)
        loss = cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    images, labels = data(4096, seed=2)
    with torch.no_grad():
        return (model(images).argmax(dim=1) == labels).float().mean().item()


def main() -> None:
    model = network()
    accuracy = train(model, torch.optim.AdamW(model.parameters(), lr=RATE))
    state = 8 * sum(parameter.numel() for parameter in model.parameters())
    print(f"AdamW      accuracy {accuracy:.3f}, state {state:,} bytes")

    model = network()
    optimizer = DCTAdamW.for_model(model, lr=RATE)
    accuracy = train(model, optimizer)
    state = optimizer.summary().state_bytes
    print(f"DCT-AdamW  accuracy {accuracy:.3f}, state {state:,} bytes")
    print(optimizer.summary())


if __name__ == "__main__":
    main()

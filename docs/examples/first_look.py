# %% [markdown]
# # A first look at low-rank optimizer state
#
# A matrix's gradient, transformed along its rows by a fixed orthonormal basis, has most of its energy on
# few columns. DCT-AdamW keeps AdamW's two moments for these columns alone. This notebook trains a small
# network both ways, and looks at what the optimizer does on the way.

# %%
import lowrank_torch
import torch
from lowrank_torch import plot
from torch import nn

torch.manual_seed(0)
patterns = torch.randn(10, 64)
labels = torch.randint(10, (4096,))
images = patterns[labels] + 2.0 * torch.randn(4096, 64)


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10)
    )


# %% [markdown]
# ## Who gets what
#
# `for_model` tells hidden matrices from everything else: heads, embeddings, norms and biases get full AdamW.
# Printed, the summary is a table with the bytes of state beside those of AdamW.

# %%
model = network()
optimizer = lowrank_torch.DCTAdamW.for_model(model, lr=1e-3)
print(optimizer.summary())


# %% [markdown]
# ## Train
#
# The loop is that of any PyTorch optimizer. `record_diagnostics` measures one step in so many.


# %%
def train(model, optimizer, watch=None):
    losses = []
    for step in range(200):
        batch = slice(64 * (step % 64), 64 * (step % 64) + 64)
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if watch is not None:
            watch += optimizer.diagnostics()
    return losses


optimizer.record_diagnostics(every=10)
history = []
ours = train(model, optimizer, history)
model = network()
adamw = train(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
print(
    f"mean loss of the last 20 steps: DCT-AdamW {sum(ours[-20:]) / 20:.2f}, AdamW {sum(adamw[-20:]) / 20:.2f}"
)

# %% [markdown]
# ## What the columns hold
#
# The share of each gradient's energy on the chosen quarter of the columns, over the steps.

# %%
# %matplotlib inline
plot.energy(history)

# %% [markdown]
# And which columns the second layer chose: dark where one is chosen. Columns that stay keep their moments.

# %%
plot.columns(history, "2.weight")

# %% [markdown]
# ## Where to go on
#
# [Which optimizer, which options](../choose.md), [Plan your memory](../memory.md), [Tune it](../tune.md).

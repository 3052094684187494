"""A name means the same in PyTorch and in JAX: both frontends ask the core's lists of names."""

import jax
import pytest
import torch
from jax import numpy as jnp
from lowrank_jax._rules import decide
from lowrank_torch import parameter_roles
from torch import nn

pytestmark = [pytest.mark.usefixtures("torch", "optax"), pytest.mark.compiles_nothing]

HEADS = [
    *("lm_head", "score", "qa_outputs", "classifier.out_proj", "logits_dense", "readout"),
    *("bbox_predictor", "mlm_predictions", "vocab_proj", "unembedder", "embed_out", "head.fc"),
    *("aux_head", "output", "fc", "out", "blocks.0.lm_head", "layers.1.classifier"),
]
HIDDEN = [
    *("pre_classifier", "text_projection", "linear_pos", "embed_in", "embeddings_project"),
    *("blocks.0.output", "layers.0.attention.output", "blocks.0.mlp.fc", "time_embed.dense"),
    *("blocks.0.head_mix", "encoder.layers.0.out", "to_latent", "blocks.0.mlp.gate"),
]
ROUTERS = ["moe.gate", "blocks.0.moe.router", "blocks.0.ffn_router", "blocks.0.moe.gating"]
TABLES = ["tok", "pos_embed", "rel_pos_table", "prompt_tokens", "codebook", "centroids", "lookup"]
VECTORS = ["A_log", "time_decay", "expert_bias", "gamma", "norm_scale", "time_mix_k"]


def in_torch(path, module):
    """The role and the algorithm of what ``module`` has at ``path``, the last of a small model."""
    model = nn.Module()
    model.add_module("first", nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256)))
    node, (*folders, last) = model, path.split(".")
    for folder in folders:
        node.add_module(folder, nn.Module())
        node = getattr(node, folder)
    if isinstance(module, nn.Parameter):
        node.register_parameter(last, module)
    else:
        node.add_module(last, module)
        if "moe" in folders:
            node.add_module("experts", nn.Linear(256, 256))
    (row,) = [row for row in parameter_roles(model) if row.name.startswith(path)]
    return row.role, row.algorithm


def in_jax(path, *shape):
    return decide(path.replace(".", "/"), jax.ShapeDtypeStruct(shape, jnp.float32)).axes is not None


@pytest.mark.parametrize(
    ("path", "outputs", "role"),
    [
        *((path, 200, "table") for path in HEADS),
        *((path, 200, "matrix") for path in HIDDEN),
        *((path, 48, "table") for path in ROUTERS),
    ],
)
def test_layers(path, outputs, role):
    assert in_torch(path, nn.Linear(256, outputs, bias=False)) == (role, "")
    assert in_jax(f"{path}.kernel", 256, outputs) == (role == "matrix")


@pytest.mark.parametrize("path", [*TABLES, *VECTORS])
def test_parameters(path):
    role = "table" if path in TABLES else "vector"
    parameter = nn.Parameter(torch.ones(64, 48))
    assert in_torch(f"block.{path}", parameter) == (role, "")
    assert not in_jax(f"block.{path}", 64, 48)

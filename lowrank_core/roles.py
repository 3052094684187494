"""Names that models give to what is no hidden matrix: output heads, tables, routers, gains.

Both frontends read parameter names by these functions, so that a model has the same roles in PyTorch and in JAX. A
*name* is one component of a path: ``"lm_head"`` of ``model.lm_head.weight``.
"""

from __future__ import annotations

import re

#: Modules that are output heads, in lower case: no two frameworks agree on one.
HEADS = frozenset(
    {
        "lm_head",
        "head",
        "output",
        "output_layer",
        "classifier",
        "logits",
        "readout",
        "unembed",
        "unembedder",
        "unembedding",
    }
)

# Heads wherever they stand, even in a repeated block (early exits): nothing else is called so.
_HEADS_ANYWHERE = frozenset(
    {"lm_head", "classifier", "logits", "unembed", "unembedder", "unembedding"}
)

# Endings of a head's name, with or without a prefix (`qa_outputs`, `bbox_predictor`, `start_logits`).
_HEAD_ENDING = re.compile(
    r"(^|_)(heads?|classifiers?|scores?|predictors?|predictions?|preds?|outputs|logits?"
    r"|unembed(ding)?|output_layer)$|logits$|(^|_)(logits|vocab|pred)_(dense|layer|proj|projector)$"
    r"|^(seq_relationship|conv_out|final_layer|embed_out)$|^aux\d*$"
)
# What comes before a head (`pre_classifier`, `conv_head`), and projections into a shared space: hidden layers.
_NO_HEAD = re.compile(
    r"^(pre|proj|projection|contrastive|multi|conv|self)_(?!out$)|^pre(logits|classifier|head)$|norm"
)

#: Names of a last linear layer that is a head, and of nothing if it is not the last.
LAST_LAYERS = frozenset(
    {
        *("fc", "fc1", "fc2", "fc3", "fc4", "final", "linear", "out", "out_proj", "output_proj"),
        *("output_projection", "proj_out", "to_out", "last_linear"),
    }
)

_TABLE_WORDS = frozenset(
    {
        *("embed", "embeds", "embedding", "embeddings", "emb", "embs", "wte", "wpe"),
        *("pos", "position", "positions", "positional", "table"),
        *(
            "token",
            "tokens",
            "prompt",
            "prompts",
            "prefix",
            "probe",
            "latent",
            "latents",
            "queries",
        ),
        *("codebook", "codebooks", "codevectors", "prototypes", "centroids"),
        *("embedder", "lookup", "tok", "vocab"),
    }
)
_DYNAMICS = re.compile(r"^(A|[Aa]_logs?|D|Ds|dt|log_dt)$")
_TIME_MIX = re.compile(r"^(time_(mix|maa|decay|first|faaaa)|x_[rwkvag]$)")
_ROUTERS = frozenset(
    {
        *("router", "gate", "wg", "gating", "gating_network", "gate_network"),
        *("gate_logits", "router_weights", "switch"),
    }
)
# A router's experts are far fewer than its inputs; a gate of a hidden layer is about as wide.
_FEW_EXPERTS = 4


def name_words(name: str) -> frozenset[str]:
    """Return the words of a name, in lower case: ``relPosTable`` and ``rel_pos_table`` have three."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return frozenset(re.split(r"[^a-z]+", apart.lower())) - {""}


def is_head_name(name: str, *, in_block: bool = False) -> bool:
    """Return whether a module of this name is an output head, or holds one.

    In a repeated block (``in_block``) only what is called nothing else counts: `output` there is a hidden projection.
    """
    lower = name.lower()
    if in_block:
        return lower in _HEADS_ANYWHERE
    return lower in HEADS or (
        _HEAD_ENDING.search(lower) is not None and _NO_HEAD.search(lower) is None
    )


def is_router(name: str, outputs: int, inputs: int, *, near_experts: bool) -> bool:
    """Return whether a matrix of a module of this name chooses experts; ``near_experts`` says that some are beside it.

    A gate may also be one of a hidden layer, which is about as wide as its inputs.
    """
    lower = name.lower()
    if lower.endswith("router") or lower == "router_weights":
        return True
    return lower in _ROUTERS and (near_experts or outputs * _FEW_EXPERTS <= inputs)


def is_table_name(name: str) -> bool:
    """Return whether a parameter of this name is looked up or added by place: positions, tokens, codebooks."""
    return bool(name_words(name) & _TABLE_WORDS)


def is_bias_name(name: str) -> bool:
    """Return whether a parameter of this name is added: biases of experts have two dimensions, (experts, out)."""
    return any(word.startswith("bias") for word in name_words(name))


def is_gain_name(name: str) -> bool:
    """Return whether a parameter of this name multiplies elementwise: dynamics of state spaces, time mixes, gains."""
    if _TIME_MIX.match(name):
        # The two factors of a small dense layer are called after what they make.
        return re.search(r"_w\d$", name) is None
    return _DYNAMICS.match(name) is not None or bool(
        name_words(name) & {"gamma", "gain", "gains", "scale", "scales", "norm"}
    )

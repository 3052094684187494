"""Which parameters are hidden matrices: told by module, by storage and by name, never by shape alone."""

import pytest
import torch
from lowrank_torch import DCTAdamW, matrix_groups, parameter_roles
from torch import nn

pytestmark = pytest.mark.usefixtures("torch")


def roles(model, **options):
    return {row.name: row.role for row in parameter_roles(model, **options)}


def reasons(model, **options):
    return {row.name: row.reason for row in parameter_roles(model, **options)}


class LanguageModel(nn.Module):
    def __init__(self, vocabulary=50, width=8, head="lm_head"):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.up = nn.Linear(width, 32)
        self.norm = nn.LayerNorm(32)
        self.down = nn.Linear(32, width)
        setattr(self, head, nn.Linear(width, vocabulary, bias=False))


def test_transformer_parts():
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(8, 2),
            "norm": nn.LayerNorm(8),
            "rnn": nn.LSTM(8, 12, num_layers=2),
            "mix": nn.Bilinear(4, 5, 6),
            "scale": nn.ParameterList([nn.Parameter(torch.ones(()))]),
        }
    )
    found = roles(model)
    matrices = {name for name, role in found.items() if role == "matrix"}
    assert matrices == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "rnn.weight_ih_l1",
        "rnn.weight_hh_l1",
        "mix.weight",
    }
    assert {role for name, role in found.items() if name not in matrices} == {"vector"}
    assert reasons(model, min_size=1)["attention.in_proj_weight"] == "weight of MultiheadAttention"


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_are_tables(kind):
    model = nn.Sequential(kind(20, 6))
    assert roles(model) == {"0.weight": "table"}
    assert reasons(model) == {"0.weight": f"weight of {kind.__name__}"}


@pytest.mark.parametrize(
    "head", ["lm_head", "head", "output", "classifier", "unembed", "output_layer"]
)
def test_head_is_told_by_its_name(head):
    model = LanguageModel(head=head)
    model.tokens = nn.Embedding(60, 8)  # of another size than the head
    assert roles(model)[f"{head}.weight"] == "table"
    assert reasons(model)[f"{head}.weight"] == f"output head by name ({head})"
    assert roles(model)["down.weight"] == "matrix"


def test_last_layer_as_wide_as_the_vocabulary_is_a_head():
    model = LanguageModel(head="words")
    assert roles(model)["words.weight"] == "table"
    assert reasons(model)["words.weight"] == "last layer, 50 outputs like an embedding's rows"
    assert roles(LanguageModel(vocabulary=50, head="words"))["up.weight"] == "matrix"


def test_last_layer_of_another_width_is_a_matrix():
    model = LanguageModel(head="words")
    model.words = nn.Linear(8, 40)
    assert roles(model)["words.weight"] == "matrix"


def test_byte_model_as_wide_as_its_vocabulary_keeps_its_matrices():
    blocks = [nn.Linear(256, 256) for _ in range(6)]
    model = nn.Sequential(nn.Embedding(256, 256), *blocks)
    assert [row.role for row in parameter_roles(model) if len(row.shape) == 2] == [
        "table",
        *["matrix"] * 5,
        "table",
    ]


def test_tied_head_is_one_table():
    model = LanguageModel(head="project")
    model.project.weight = model.tokens.weight
    assert list(roles(model)).count("tokens.weight") == 1
    assert "project.weight" not in roles(model)
    assert roles(model)["tokens.weight"] == "table"


@pytest.mark.parametrize("order", ["table first", "head first"])
def test_tied_by_sharing_memory_is_a_table(order):
    model = nn.Module()
    table, hidden = nn.Embedding(50, 8), nn.Linear(8, 50)
    hidden.weight = nn.Parameter(table.weight.detach())
    model.one, model.other = (table, hidden) if order == "table first" else (hidden, table)
    model.last = nn.Linear(8, 9)
    name = "other" if order == "table first" else "one"
    assert roles(model)[f"{name}.weight"] == "table"
    assert reasons(model)[f"{name}.weight"] == "shares memory with an embedding"
    assert roles(model)["last.weight"] == "matrix"


def test_parameters_in_one_flat_buffer_are_told_apart():
    flat = torch.zeros(50 * 8 + 8 * 8)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 9))
    model[0].weight = nn.Parameter(flat[:400].view(50, 8))
    model[1].weight = nn.Parameter(flat[400:].view(8, 8))
    assert roles(model)["1.weight"] == "matrix"


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_models_without_data_have_the_same_roles(kind):
    def build():
        model = LanguageModel(head="words")
        model.twin = nn.Linear(8, 50)
        model.twin.weight = model.tokens.weight
        model.last = nn.Linear(8, 9)
        return model

    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta") if kind == "meta" else FakeTensorMode():
        empty = build()
        found = parameter_roles(empty)
        groups = matrix_groups(empty)
    assert found == parameter_roles(build())
    assert [len(group["params"]) for group in groups] == [
        len(group["params"]) for group in matrix_groups(build())
    ]


def test_convolutions_are_flattened_and_experts_stacked():
    model = nn.ModuleDict(
        {
            "conv1": nn.Conv1d(4, 6, 3),
            "conv2": nn.Conv2d(4, 6, 3),
            "conv3": nn.Conv3d(4, 6, 3),
            "back": nn.ConvTranspose2d(4, 6, 3),
            "experts": nn.ParameterDict(
                {
                    "up": nn.Parameter(torch.zeros(5, 8, 6)),
                    "deep": nn.Parameter(torch.zeros(2, 5, 8, 6)),
                }
            ),
        }
    )
    found = {row.name: (row.role, row.batch_dims) for row in parameter_roles(model)}
    for name in ("conv1", "conv2", "conv3", "back"):
        assert found[f"{name}.weight"] == ("matrix", 0)
        assert found[f"{name}.bias"] == ("vector", 0)
    assert found["experts.up"] == ("matrix", 1)
    assert found["experts.deep"] == ("matrix", 2)
    groups = matrix_groups(model, min_size=1)
    # A convolution backwards is kept as (in, out).
    assert [(g.get("batch_dims"), g.get("transposed", False)) for g in groups] == [
        *((0, False), (0, True), (1, False), (2, False), (None, False)),
    ]
    rows = {row.name: row for row in DCTAdamW(groups, rank=3).summary()}
    assert (rows["conv2.weight"].rank, rows["conv2.weight"].axis) == (3, -2)
    assert (rows["experts.up"].rank, rows["experts.up"].axis) == (3, -1)


def test_frozen_parameters_are_left_out():
    model = LanguageModel()
    model.up.weight.requires_grad_(False)
    model.tokens.weight.requires_grad_(False)
    assert "up.weight" not in roles(model)
    listed = [p for group in matrix_groups(model) for _, p in group["params"]]
    assert all(parameter.requires_grad for parameter in listed)
    assert len(listed) == len(list(model.parameters())) - 2
    # A frozen table still says how many words there are.
    assert roles(LanguageModel(head="words"))["words.weight"] == "table"


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ({"up.weight": "table"}, {"up.weight": "table"}),
        ({"*.weight": "vector"}, None),
        ({"up.*": "vector", "*.weight": "table"}, None),
        ({"lm_head.weight": "matrix"}, {"lm_head.weight": "matrix"}),
        ({"tokens.weight": "matrix"}, {"tokens.weight": "matrix"}),
    ],
    ids=str,
)
def test_overrides_win_and_the_first_match_counts(overrides, changed):
    plain, found = roles(LanguageModel()), roles(LanguageModel(), overrides=overrides)
    if changed is None:
        first, *rest = overrides.values()
        changed = {name: rest[0] if rest else first for name in plain if name.endswith(".weight")}
        if rest:
            changed |= {"up.weight": first, "up.bias": first}
    assert found == plain | changed
    pattern = next(iter(overrides))
    assert f"override {pattern!r}" in reasons(LanguageModel(), overrides=overrides).values()


@pytest.mark.parametrize("shape", [(8192, 64), (64, 8192)])
def test_matrix_that_looks_like_a_vocabulary_is_warned_of(shape):
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False, device="meta"))
    with pytest.warns(UserWarning, match=r"0.weight of shape .* looks like a vocabulary") as seen:
        matrix_groups(model)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert matrix_groups(model, overrides={"0.weight": "table"})[0]["algorithm"] == "adamw"


@pytest.mark.parametrize("shape", [(8192, 4096), (4096, 64)])
def test_large_hidden_matrix_is_not_warned_of(shape):
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False, device="meta"))
    assert len(matrix_groups(model)) == 1  # a warning would be an error


def test_groups_are_named_disjoint_and_cover_everything():
    model = LanguageModel()
    model.conv = nn.Conv2d(3, 4, 3)
    model.experts = nn.Parameter(torch.zeros(2, 6, 5))
    groups = matrix_groups(model, min_size=1)
    listed = [(name, parameter) for group in groups for name, parameter in group["params"]]
    named = dict(model.named_parameters())
    assert len(listed) == len(named)
    assert {name: id(parameter) for name, parameter in listed} == {
        name: id(parameter) for name, parameter in named.items()
    }
    optimizer = DCTAdamW(groups, rank=3)
    assert {row.name for row in optimizer.summary()} == set(named)
    low_rank = {row.name for row in optimizer.summary() if row.algorithm == "dct_adamw"}
    assert low_rank == {"up.weight", "down.weight", "conv.weight", "experts"}


def test_options_of_the_groups():
    model = LanguageModel()
    matrix, table, vector = matrix_groups(
        model, matrix={"lr": 0.3, "rank": 5}, other={"lr": 0.1}, min_size=1
    )
    assert (matrix["lr"], matrix["rank"], matrix["batch_dims"]) == (0.3, 5, 0)
    assert "algorithm" not in matrix
    assert (table["lr"], table["algorithm"]) == (0.1, "adamw")
    assert "weight_decay" not in table
    assert (vector["lr"], vector["algorithm"], vector["weight_decay"]) == (0.1, "adamw", 0.0)
    *_, vector = matrix_groups(model, other={"weight_decay": 0.2})
    assert vector["weight_decay"] == 0.2
    optimizer = DCTAdamW(matrix_groups(model, matrix={"rank": 5}, min_size=1), rank=3)
    assert {row.rank for row in optimizer.summary()} == {5, None}


def test_roles_without_a_matrix_make_no_empty_group():
    groups = matrix_groups(nn.Sequential(nn.Embedding(20, 6), nn.LayerNorm(6)))
    assert [group["algorithm"] for group in groups] == ["adamw", "adamw"]
    assert matrix_groups(nn.Linear(40, 70, bias=False))[0]["batch_dims"] == 0


def test_matrix_too_small_gets_adamw_at_the_other_groups_rate():
    model = nn.Sequential(nn.Linear(31, 64, bias=False), nn.Linear(64, 32, bias=False))
    small, large = parameter_roles(model)
    assert (small.role, small.algorithm, large.role, large.algorithm) == (
        "matrix",
        "adamw",
        "matrix",
        "",
    )
    assert small.reason == "weight of Linear; smaller side 31 is below min_size=32"
    groups = matrix_groups(model, matrix={"lr": 0.3}, other={"lr": 0.1})
    assert [(g["params"][0][0], g["lr"], g.get("algorithm")) for g in groups] == [
        ("1.weight", 0.3, None),
        ("0.weight", 0.1, "adamw"),
    ]
    assert [row.algorithm for row in parameter_roles(model, min_size=31)] == ["", ""]
    assert [row.algorithm for row in parameter_roles(model, overrides={"0.*": "matrix"})] == [
        "",
        "",
    ]


def test_groups_have_names_that_differ():
    model = LanguageModel(width=64)
    model.experts = nn.Parameter(torch.zeros(2, 64, 64))
    model.tokens_by_place = nn.Parameter(torch.zeros(4, 64))
    model.tokens_by_place._no_weight_decay = True
    names = [group["name"] for group in matrix_groups(model)]
    assert names == ["matrix", "matrix, batch_dims=1", "table", "table, no decay", "vector"]


def test_options_by_pattern_are_over_the_role():
    model = nn.ModuleDict({"qkv": nn.Linear(64, 128, bias=False), "out": nn.Linear(64, 64)})
    own = {"split_sizes": [64, 32, 32]}
    groups = matrix_groups(model, matrix={"rank": 8}, options={"*kv.weight": {**own, "rank": 4}})
    found = {name: (g.get("split_sizes"), g.get("rank")) for g in groups for name, _ in g["params"]}
    assert found == {
        "qkv.weight": ([64, 32, 32], 4),
        "out.weight": (None, 8),
        "out.bias": (None, None),
    }
    rows = {row.name: row for row in DCTAdamW(groups, rank=9).summary()}
    assert rows["qkv.weight"].rank == 4
    with pytest.raises(
        ValueError, match=r"options must match parameters of the model, got \['\*qv'\]"
    ):
        matrix_groups(model, options={"*qv": {"rank": 3}})


# Of the compiler's own imports.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", ["compile", "checkpoint", "parametrize", "weight_norm"])
def test_head_is_seen_through_wrappers(wrap):
    head = nn.Linear(64, 96, bias=False)
    if wrap == "compile":
        head = torch.compile(head)
    elif wrap == "checkpoint":
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        head = checkpoint_wrapper(head)
    elif wrap == "parametrize":
        nn.utils.parametrize.register_parametrization(head, "weight", nn.Identity())
    else:
        nn.utils.parametrizations.weight_norm(head)
    model = nn.ModuleDict({"block": nn.Linear(64, 64, bias=False), "lm_head": head})
    found = roles(model)
    assert found.pop("block.weight") == "matrix"
    assert "matrix" not in found.values()

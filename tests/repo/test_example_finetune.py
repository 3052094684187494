"""The fine-tuning example: what it compares, what it writes, what it refuses."""

import importlib
import json
import string
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from example_helpers import refused
from model_libraries import import_torchvision

# Warnings of Transformers and PEFT about themselves are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
WIDTH, RANK = 64, 16
# Of the model's vocabulary: letters, alone and inside a word, and the special ones.
WORDS = 2 * len(string.ascii_lowercase) + 5


@pytest.fixture
def example(monkeypatch):
    import_torchvision()
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("finetune")
    sys.modules.pop("finetune", None)


@pytest.fixture
def folder(example, tmp_path):
    """A model of the kind of all-MiniLM-L6-v2, as small as can be and untrained, that reads letters."""
    transformers = importlib.import_module("transformers")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [prefix + letter for prefix in ("", "##") for letter in string.ascii_lowercase]
    vocabulary = {piece: number for number, piece in enumerate((*special, *pieces))}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def runs(example, folder, tmp_path, monkeypatch, capsys):
    """What every method left behind after three steps, by its name."""
    monkeypatch.setattr(example, "MOST", 12)
    small = {
        name: replace(method, options={**method.options, "rank": RANK})
        if isinstance(method.options.get("rank"), int)
        else method
        for name, method in example.METHODS.items()
    }
    monkeypatch.setattr(example, "METHODS", small)
    results = tmp_path / "results.json"
    given = {"model": folder, "steps": 3, "seed": 0, "batch": 4, "seq_len": 16, "json": results}
    words = [w for name, v in given.items() for w in ("--" + name.replace("_", "-"), str(v))]
    assert example.main(words) == 0
    content = json.loads(results.read_text(encoding="utf-8"))
    assert content["settings"]["steps"] == 3
    assert [run["method"] for run in content["runs"]] == list(small)
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in small)
    return {run["method"]: run for run in content["runs"]}


def test_compares_accuracy_state_and_time(example, runs):
    adamw, dct, lora = (runs[name] for name in ("AdamW", "DCT-AdamW", "LoRA"))
    # Two moments of every number and a step count of every parameter.
    assert adamw["state_bytes"] == 8 * adamw["trained_numbers"] + 4 * 25
    # The seven matrices of the layer and the pooler: one moment of 16 of 64 columns, and means of rows and columns.
    matrices = [(WIDTH, WIDTH)] * 5 + [(2 * WIDTH, WIDTH)] * 2
    saved = sum(8 * m * n - 4 * (m * RANK + RANK + m + n) for m, n in matrices)
    assert adamw["state_bytes"] - dct["state_bytes"] == pytest.approx(saved, rel=0.01)
    assert dct["trained_numbers"] == adamw["trained_numbers"] > 4 * lora["trained_numbers"]
    for name, run in runs.items():
        assert run["rate"] == example.METHODS[name].rate
        assert 0 <= run["accuracy"] <= 1
        assert run["seconds"] > 0


@pytest.mark.slow
def test_words_are_low_rank_or_frozen_where_that_is_said(runs):
    dct, too, frozen = (runs[f"DCT-AdamW{more}"] for more in ("", ", words too", ", words frozen"))
    words = dct["trained_numbers"] - frozen["trained_numbers"]
    assert words == WORDS * WIDTH
    assert dct["state_bytes"] - frozen["state_bytes"] == pytest.approx(8 * words, rel=0.01)
    # There are fewer words than numbers for each, and so columns of the table are transformed.
    held = 4 * (WIDTH * RANK + RANK + WORDS + WIDTH)
    assert too["state_bytes"] - frozen["state_bytes"] == pytest.approx(held, rel=0.01)
    assert runs["LoRA, DCT-AdamW"]["state_bytes"] < runs["LoRA"]["state_bytes"]


def test_rates_and_methods_can_be_chosen(example, folder, monkeypatch, capsys):
    monkeypatch.setattr(example, "MOST", 12)
    command = ["--model", str(folder), "--steps", "1", "--seq-len", "16", "--method", "AdamW"]
    assert example.main([*command, "--lr", "1e-3", "2e-3"]) == 0
    shown = capsys.readouterr().out
    assert "AdamW, rate 0.001, seed 0" in shown
    assert "AdamW, rate 0.002, seed 0" in shown


def test_texts_are_of_all_packages_and_none_is_on_both_sides(example):
    training, test = example.rows()
    assert {label for _, label in training} == {label for _, label in test} == set(range(8))
    assert not {text for text, _ in training} & {text for text, _ in test}
    assert training == example.rows()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--model", "nowhere"], "--model must be a folder with a config.json, got nowhere"),
    ],
)
def test_wrong_arguments_are_refused_in_a_line(example, arguments, message, capsys):
    assert message in refused(example, arguments, capsys)

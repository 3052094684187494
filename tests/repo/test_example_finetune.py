"""The fine-tuning example: what it compares, what it writes, what it refuses."""

import importlib
import json
import string
import sys
from pathlib import Path

import pytest
import torch
from example_helpers import refused
from model_libraries import import_torchvision

# Warnings of Transformers and PEFT about themselves are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
WIDTH = 64


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


def test_compares_accuracy_state_and_time(example, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "RANK", 16)
    monkeypatch.setattr(example, "MOST", 12)
    results = tmp_path / "results.json"
    given = {"model": folder, "steps": 3, "seed": 0, "batch": 4, "seq_len": 16, "json": results}
    words = [w for name, v in given.items() for w in ("--" + name.replace("_", "-"), str(v))]
    assert example.main(words) == 0
    content = json.loads(results.read_text(encoding="utf-8"))
    assert content["settings"]["steps"] == 3
    adamw, dct, lora = content["runs"]
    assert [run["method"] for run in content["runs"]] == ["AdamW", "DCT-AdamW", "LoRA"]
    # Two moments of every number and a step count of every parameter.
    assert adamw["state_bytes"] == 8 * adamw["trained_numbers"] + 4 * 25
    # The seven matrices of the layer and the pooler: moments of 16 of 64 columns, and which.
    matrices = [(WIDTH, WIDTH)] * 5 + [(2 * WIDTH, WIDTH)] * 2
    saved = sum(8 * rows * (columns - 16) - 4 * 16 for rows, columns in matrices)
    assert adamw["state_bytes"] - dct["state_bytes"] == pytest.approx(saved, rel=0.01)
    assert dct["trained_numbers"] == adamw["trained_numbers"] > 4 * lora["trained_numbers"]
    for run in content["runs"]:
        assert 0 <= run["accuracy"] <= 1
        assert run["seconds"] > 0
    shown = capsys.readouterr().out
    assert shown.count("DCT-AdamW") == 2


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

"""TRL's trainer of chat models, the real package, with the factory and with an optimizer of the model."""

import importlib

import pytest
import torch
from lowrank_torch import DCTAdamW, Trion, for_trainer
from model_libraries import WORDS, import_torchvision, llama, trainer_settings

# Warnings of these packages about themselves are not ours to mend.
pytestmark = [pytest.mark.usefixtures("torch"), pytest.mark.filterwarnings("ignore")]

SETTINGS = {"lr": 0.01, "rank": 8}


def by_factory(optimizer, model):
    return {"optimizer_cls_and_kwargs": for_trainer(optimizer, **SETTINGS)}


def by_model(optimizer, model):
    return {"optimizers": (optimizer.for_model(model, **SETTINGS), None)}


def tokenizer():
    """Words that are numbers, since no vocabulary can be fetched here."""
    tokenizers = importlib.import_module("tokenizers")
    words = {f"w{number}": number for number in range(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w1"))
    fast = importlib.import_module("transformers").PreTrainedTokenizerFast
    return fast(tokenizer_object=made, pad_token="w0", eos_token="w2", unk_token="w1")


def trained(trl, optimizer, how, folder, **resume):
    """A trainer after four steps of two micro-batches, every gradient clipped."""
    draw = torch.Generator().manual_seed(5)
    rows = torch.randint(3, WORDS, (16, 6), generator=draw).tolist()
    data = importlib.import_module("datasets").Dataset.from_dict({"input_ids": rows})
    arguments = trl.SFTConfig(
        **trainer_settings(folder, 4),
        max_grad_norm=0.1,
        bf16=False,
        gradient_checkpointing=False,
    )
    model = llama()
    trainer = trl.SFTTrainer(
        model,
        arguments,
        train_dataset=data,
        processing_class=tokenizer(),
        **how(optimizer, model),
    )
    trainer.train(**resume)
    return trainer


@pytest.mark.parametrize(
    ("optimizer", "how"),
    [
        (DCTAdamW, by_factory),
        (Trion, by_model),
        pytest.param(DCTAdamW, by_model, marks=pytest.mark.slow),
        pytest.param(Trion, by_factory, marks=pytest.mark.slow),
    ],
    ids=["DCTAdamW-factory", "Trion-for_model", "DCTAdamW-for_model", "Trion-factory"],
)
def test_trl_accumulates_clips_and_resumes_to_the_same_bits(optimizer, how, tmp_path):
    import_torchvision()
    trl = pytest.importorskip("trl")
    straight = trained(trl, optimizer, how, tmp_path)
    inner = straight.optimizer.optimizer
    found = {row.name: row.algorithm for row in inner.summary()}
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == "adamw"
    assert found["model.layers.0.mlp.up_proj.weight"] == optimizer.rule.name
    assert {int(state["step"]) for state in inner.state.values()} == {4}
    half = str(tmp_path / "checkpoint-2")
    resumed = trained(trl, optimizer, how, tmp_path / "b", resume_from_checkpoint=half)
    named = zip(straight.model.named_parameters(), resumed.model.parameters(), strict=True)
    for (name, found), wanted in named:
        assert torch.equal(found, wanted), name
    assert not torch.equal(llama().lm_head.weight, straight.model.lm_head.weight)

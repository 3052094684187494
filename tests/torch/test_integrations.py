"""Optimizers that others make, wrap and resume: Trainer, Accelerate, Lightning, PEFT and timm, the real packages."""

import importlib
import logging

import pytest
import torch
from lowrank_torch import DCTAdamW, Trion, for_trainer, matrix_groups, step_in_backward
from model_libraries import import_timm, import_torchvision, llama, trainer_settings
from torch import nn

# Warnings of these packages about themselves are not ours to mend.
pytestmark = [pytest.mark.usefixtures("torch"), pytest.mark.filterwarnings("ignore")]

OPTIMIZERS = [DCTAdamW, Trion]


@pytest.fixture(autouse=True)
def _libraries():
    import_torchvision()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64)
        self.lm_head = nn.Linear(64, 100, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.lm_head(x + self.down(self.up(x).relu()))


def loss_of(model, tokens):
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def batches(count):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 100, (4, 6), generator=generator) for _ in range(count)]


def net():
    torch.manual_seed(3)
    return Net()


def roles(optimizer):
    return {row.name: row.algorithm for row in optimizer.summary()}


def same(model, other):
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_for_model_is_the_groups_and_logs_a_line(optimizer, caplog):
    one, other = net(), net()
    with caplog.at_level(logging.INFO, logger="lowrank_torch"):
        first = optimizer.for_model(one, lr=0.01, rank=8, other={"lr": 1e-3})
    second = optimizer(matrix_groups(other, other={"lr": 1e-3}), lr=0.01, rank=8)
    for tokens in batches(3):
        for model, made in ((one, first), (other, second)):
            loss_of(model, tokens).backward()
            made.step()
            made.zero_grad()
    same(one, other)
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith(
        f"{optimizer.__name__}: matrix 2 (16,384 numbers), table 2 (12,800 numbers), "
    )
    assert "vector 2 (192 numbers); state " in line
    assert line.endswith(f"AdamW's {8 * (16384 + 12800 + 192) / 1e6:.1f} MB")


def trainer(optimizer, folder, steps):
    transformers = pytest.importorskip("transformers")
    data = [{"input_ids": row, "labels": row} for batch in batches(8) for row in batch]
    arguments = transformers.TrainingArguments(
        **trainer_settings(folder, steps), lr_scheduler_type="constant"
    )
    return transformers.Trainer(
        llama(),
        arguments,
        train_dataset=data,
        optimizer_cls_and_kwargs=for_trainer(optimizer, lr=1e-3, rank=8),
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trainer_tells_roles_and_resumes_to_the_same_bits(optimizer, tmp_path):
    straight = trainer(optimizer, tmp_path / "a", 4)
    straight.train()
    found = roles(straight.optimizer.optimizer)
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == "adamw"
    assert found["model.layers.0.mlp.up_proj.weight"] == optimizer.rule.name
    resumed = trainer(optimizer, tmp_path / "b", 4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    same(straight.model, resumed.model)
    assert not torch.equal(llama().lm_head.weight, straight.model.lm_head.weight)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_accelerate_accumulates_clips_and_resumes_as_a_plain_loop(optimizer, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    plain = net()
    own = optimizer.for_model(plain, lr=0.01, rank=8)
    model = net()
    model, wrapped = accelerator.prepare(model, optimizer.for_model(model, lr=0.01, rank=8))
    for place, tokens in enumerate(batches(8)):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, tokens))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            wrapped.step()
            wrapped.zero_grad()
        (loss_of(plain, tokens) / 2).backward()
        if place % 2:
            nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
            own.step()
            own.zero_grad()
        if place == 3:
            accelerator.save_state(str(tmp_path))
    same(accelerator.unwrap_model(model), plain)
    accelerator.load_state(str(tmp_path))
    for tokens in batches(8)[4:]:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, tokens))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            wrapped.step()
            wrapped.zero_grad()
    same(accelerator.unwrap_model(model), plain)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_in_backward_take_what_accelerate_has_prepared(optimizer):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    plain, model = net(), net()
    own = optimizer.for_model(plain, lr=0.01, rank=8)
    model, wrapped = accelerator.prepare(model, optimizer.for_model(model, lr=0.01, rank=8))
    step_in_backward(wrapped)
    for tokens in batches(2):
        accelerator.backward(loss_of(model, tokens) * 2)
        wrapped.step()
        wrapped.zero_grad()
        loss_of(plain, tokens).backward()
        own.step()
        own.zero_grad()
    for found, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        # One by one and together, parameters are rounded in other ways.
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    first, second = batches(2)
    with accelerator.accumulate(model):
        accelerator.backward(loss_of(model, first))
        wrapped.step()
        wrapped.zero_grad()
    with accelerator.accumulate(model), pytest.raises(RuntimeError, match="accumulation_steps=1"):
        accelerator.backward(loss_of(model, second))


def test_hooks_take_what_lightning_has_wrapped():
    pytest.importorskip("lightning")
    wrappers = [
        importlib.import_module("lightning.pytorch.core.optimizer").LightningOptimizer,
        importlib.import_module("lightning.fabric.wrappers")._FabricOptimizer,
    ]
    for arguments in ((), (None,)):
        model = net()
        optimizer = DCTAdamW.for_model(model, lr=0.01, rank=8)
        wrapped = wrappers[len(arguments)](optimizer, *arguments)
        with step_in_backward(wrapped):
            loss_of(model, batches(1)[0]).backward()
        assert all(p.grad is None for p in model.parameters())
        assert all(int(optimizer.state[p]["step"]) == 1 for p in model.parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lightning_unfreezes_a_backbone(optimizer):
    lightning = pytest.importorskip("lightning")
    callback = importlib.import_module("lightning.pytorch.callbacks").BackboneFinetuning
    model = net()
    for parameter in model.up.parameters():
        parameter.requires_grad_(False)
    made = optimizer.for_model(model, lr=0.01, rank=8)
    count = len(made.param_groups)
    callback.unfreeze_and_add_param_group(model.up, made, train_bn=True)
    assert len(made.param_groups) == count + 1
    before = model.up.weight.detach().clone()
    loss_of(model, batches(1)[0]).backward()
    made.step()
    assert not torch.equal(model.up.weight, before)
    assert lightning.__version__


def lightning_module(lightning, optimizer):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, tokens, _):
            return loss_of(self.net, tokens)

        def configure_optimizers(self):
            made = optimizer.for_model(self, lr=0.01, rank=8)
            schedule = torch.optim.lr_scheduler.ConstantLR(made, factor=0.5, total_iters=2)
            return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Module()


def fit(lightning, optimizer, folder, epochs, **resume):
    module = lightning_module(lightning, optimizer)
    # Two groups of one name are an error of this callback.
    monitor = lightning.pytorch.callbacks.LearningRateMonitor()
    logger = lightning.pytorch.loggers.CSVLogger(str(folder))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=[monitor],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        gradient_clip_val=0.1,
        accumulate_grad_batches=2,
    )
    loader = torch.utils.data.DataLoader(batches(4), batch_size=None)
    trainer.fit(module, loader, **resume)
    return trainer, module


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lightning_clips_accumulates_and_resumes_to_the_same_bits(optimizer, tmp_path):
    lightning = pytest.importorskip("lightning")
    trainer, straight = fit(lightning, optimizer, tmp_path, 2)
    assert roles(trainer.optimizers[0])["net.lm_head.weight"] == "adamw"
    trainer, _ = fit(lightning, optimizer, tmp_path, 1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit(lightning, optimizer, tmp_path, 2, ckpt_path=str(tmp_path / "half.ckpt"))
    same(straight, resumed)


def test_peft_trains_what_is_trainable_with_the_head_by_adamw():
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_labels=40,
    )
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=32, target_modules=["query"])
    model = peft.get_peft_model(transformers.BertForSequenceClassification(config), lora)
    optimizer = DCTAdamW.for_model(model, lr=0.01, rank=8)
    found = roles(optimizer)
    assert {
        name.rpartition("query.")[2]: kind for name, kind in found.items() if "query" in name
    } == {
        "lora_A.default.weight": "dct_adamw",
        "lora_B.default.weight": "dct_adamw",
    }
    heads = [kind for name, kind in found.items() if "classifier" in name]
    assert heads == ["adamw", "adamw"]
    frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
    tokens = batches(1)[0]
    model(input_ids=tokens, labels=torch.arange(4)).loss.backward()
    before = {name: p.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    # Of a pair that starts with B = 0 the gradient of A is zero.
    moved = {
        name for name, p in model.named_parameters() if name in before and (p != before[name]).any()
    }
    assert {name for name in before if "lora_A" not in name} <= moved
    assert all(
        torch.equal(a, b)
        for a, b in zip(frozen, (p for p in model.parameters() if not p.requires_grad), strict=True)
    )


@pytest.fixture
def timm_optim():
    """timm's optimizers, with ours registered by its dotted name."""
    import_timm()
    optim = importlib.import_module("timm.optim")
    registry = importlib.import_module("timm.optim._optim_factory").default_registry
    registry.register(optim.OptimInfo("dctadamw", "lowrank_torch.DCTAdamW", has_betas=True))
    return optim


def vision(**options):
    return import_timm().create_model("vit_tiny_patch16_224", img_size=32, depth=1, **options)


def test_timm_makes_it_by_dotted_name_with_groups_by_role(timm_optim):
    model = vision(num_classes=40)
    optimizer = timm_optim.create_optimizer_v2(
        model, opt="dctadamw", lr=1e-3, weight_decay=0.1, param_group_fn=matrix_groups, rank=8
    )
    assert isinstance(optimizer, DCTAdamW)
    found = roles(optimizer)
    assert found["head.weight"] == found["pos_embed"] == "adamw"
    assert found["blocks.0.mlp.fc1.weight"] == "dct_adamw"
    decay = {name: g["weight_decay"] for g in optimizer.param_groups for name in g["param_names"]}
    assert (decay["pos_embed"], decay["head.weight"]) == (0.0, 0.1)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()


@pytest.mark.filterwarnings("default")
def test_groups_without_names_warn_of_the_head(timm_optim):
    with pytest.warns(UserWarning, match=r"have no names.*\(1000, 192\).*output head"):
        timm_optim.create_optimizer_v2(vision(), opt="dctadamw", lr=1e-3, rank=8)

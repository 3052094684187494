"""The planner: its state is that of a real run, its files are read without weights, its table is the README's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import lowrank_torch
import pytest
import torch
from lowrank_torch import plan

pytestmark = pytest.mark.usefixtures("torch")

ROOT = Path(__file__).resolve().parents[2]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
LLAMA_7B = LLAMA | {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}


@pytest.fixture
def config(tmp_path):
    def write(values):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(values))
        return path

    return write


def kept(optimizer):
    """Bytes of all tensors that an optimizer keeps but step counts."""
    return sum(
        value.nbytes
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step" and torch.is_tensor(value)
    )


def stepped(model, make):
    optimizer = make(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


MAKERS = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters()),
    "dct-adamw": lambda model: lowrank_torch.DCTAdamW.for_model(model, rank=0.25),
    "dct-adamw-plain": lambda model: lowrank_torch.DCTAdamW.for_model(
        model, preset=None, rank=0.25
    ),
    "dct-adamw-tiny": lambda model: lowrank_torch.DCTAdamW.for_model(
        model, preset="tiny", rank=0.25
    ),
    "trion": lambda model: lowrank_torch.Trion.for_model(model, rank=0.5),
    "trion-best": lambda model: lowrank_torch.Trion.for_model(model, rank=0.5, preset="best"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_state_is_that_of_a_run(config, name):
    shapes = plan.model_of(config(LLAMA))
    (row,) = plan.estimates(shapes, optimizers=[name])
    real = shapes.to_empty(device="cpu")
    measured = kept(stepped(real, MAKERS[name]))
    assert row.state == pytest.approx(measured, rel=0.05)
    assert row.weights == row.gradients == sum(p.nbytes for p in real.parameters())


PROCESS = """
import gc, json, pathlib, sys
sys.modules["numba"] = None  # what it holds itself is not the model's
import torch, lowrank_torch
from lowrank_torch import plan

make, folder = {make}, pathlib.Path(sys.argv[1])


def resident(key="VmRSS"):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def run(values):
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    model = plan.model_of(path).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
        parameter.grad = torch.ones_like(parameter)
    optimizer = make(model)
    optimizer.step()
    optimizer.step()
    return model, optimizer


small = {values} | {{"hidden_size": 64, "intermediate_size": 176, "vocab_size": 300}}
run(small)  # what is imported and kept once is not the model's
gc.collect()
before = resident()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the highest mark so far
kept = run({values})
gc.collect()
print(resident() - before, resident("VmHWM") - before)
"""

# Large enough that what the interpreter allocates beside is small.
LLAMA_31M = LLAMA | {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 8000,
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adamw", "lambda model: torch.optim.AdamW(model.parameters(), fused=True)"),
        ("dct-adamw", "lambda model: lowrank_torch.DCTAdamW.for_model(model, rank=0.25)"),
        pytest.param(
            "dct-adamw-tiny",
            "lambda model: lowrank_torch.DCTAdamW.for_model(model, rank=0.25, preset='tiny')",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "trion",
            "lambda model: lowrank_torch.Trion.for_model(model, rank=0.5)",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["adamw", "dct-adamw", "dct-adamw-tiny", "trion"],
)
def test_total_is_what_a_process_holds(config, tmp_path, name, make):
    estimate = plan.estimates(plan.model_of(config(LLAMA_31M)), optimizers=[name])
    # The C library gives back to the system what is freed, so that the process holds what is kept.
    own = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS.format(make=make, values=LLAMA_31M), str(tmp_path)],
        capture_output=True,
        check=True,
        env=os.environ | own,
        text=True,
        timeout=300,
    )
    held, peak = map(int, done.stdout.split())
    assert estimate[0].total == pytest.approx(held, rel=0.05)
    if name == "dct-adamw":  # the note below the table
        assert estimate[0].total + estimate.temporary == pytest.approx(peak, rel=0.05)


def test_muon_is_counted_as_torch_keeps_it(config):
    shapes = plan.model_of(config(LLAMA))
    (row,) = plan.estimates(shapes, optimizers=["muon"])
    real = shapes.to_empty(device="cpu")
    groups = lowrank_torch.matrix_groups(real)
    of = {group["name"]: [parameter for _, parameter in group["params"]] for group in groups}
    for parameter in real.parameters():
        parameter.grad = torch.ones_like(parameter)
    muon = torch.optim.Muon(of["matrix"])
    adamw = torch.optim.AdamW([*of["table"], *of["vector"]])
    muon.step()
    adamw.step()
    assert row.state == pytest.approx(kept(muon) + kept(adamw), rel=0.05)


def test_moments_of_torch_are_in_the_dtype_of_the_weights(config):
    narrow = plan.model_of(config(LLAMA), torch.bfloat16)
    ours, theirs = plan.estimates(narrow, optimizers=["dct-adamw", "adamw"])
    wide = plan.estimates(plan.model_of(config(LLAMA)), optimizers=["dct-adamw", "adamw"])
    assert (ours.state, 2 * theirs.state) == (wide[0].state, wide[1].state)


def test_shapes_of_a_configuration_are_those_of_transformers(config):
    from model_libraries import import_torchvision

    import_torchvision()
    transformers = pytest.importorskip("transformers")
    for kind in plan.DECODERS:
        values = LLAMA | {"head_dim": 16, "model_type": kind}
        known = transformers.AutoConfig.for_model(**values)
        with torch.device("meta"):
            real = transformers.AutoModelForCausalLM.from_config(known)
        own = plan.model_of(config(values))
        assert {n: p.shape for n, p in own.named_parameters()} == {
            n: p.shape for n, p in real.named_parameters()
        }, kind
        names = [lowrank_torch.parameter_roles(model) for model in (own, real)]
        roles = [{row.name: row.role for row in rows} for rows in names]
        assert roles[0] == roles[1], kind


def test_weights_file_is_read_by_its_header_alone(tmp_path, config):
    safetensors = pytest.importorskip("safetensors.torch")
    model = plan.model_of(config(LLAMA)).to_empty(device="cpu")
    path = tmp_path / "model.safetensors"
    safetensors.save_model(model, str(path))
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    path.write_bytes(whole[:header])  # no numbers follow
    read = plan.model_of(path)
    assert all(parameter.is_meta for parameter in read.parameters())
    assert plan.estimates(read) == plan.estimates(model)


def test_devices_share_evenly(config):
    model = plan.model_of(config(LLAMA))
    for one, eighth in zip(plan.estimates(model), plan.estimates(model, world=8), strict=True):
        for whole, part in zip(one[1:], eighth[1:], strict=True):
            assert part == -(-whole // 8)


@pytest.mark.parametrize("name", ["adamw", "dct-adamw", "trion"])
def test_shards_are_those_of_fsdp2(config, tmp_path, name):
    from torch import distributed
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    # Of 300 words and 176 rows eight devices have no equal shares.
    shapes = plan.model_of(config(LLAMA))
    estimate = plan.estimates(shapes, optimizers=[name], world=8, shard="fsdp2")
    real = shapes.to_empty(device="cpu")
    # Collectives of a fake group return at once: this is the first of eight devices.
    distributed.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    try:
        mesh = distributed.init_device_mesh("cpu", (8,))
        for layer in real.model.layers.children():
            fully_shard(layer, mesh=mesh)
        fully_shard(real, mesh=mesh)
        optimizer = stepped(real, MAKERS[name])
        weights = sum(p.to_local().nbytes for p in real.parameters())
        # Which columns there are and their energies are whole on every device, and too few to count in a real model.
        whole = sum(
            optimizer.state[p][name].nbytes * 7 // 8
            for p in real.parameters()
            for name in ("indices", "energy")
            if name in optimizer.state[p]
        )
        state = local_bytes(optimizer) - whole
    finally:
        distributed.destroy_process_group()
    (row,) = estimate
    assert row.weights == row.gradients == weights
    assert row.state == pytest.approx(state, rel=0.05)
    assert estimate.gathered == 2 * sum(
        p.nbytes for p in shapes.model.layers.get_submodule("0").parameters()
    )
    assert "FSDP2 holds about" in str(estimate)


def local_bytes(optimizer):
    """Bytes that an optimizer keeps on this device."""
    tensors = [
        value.to_local() if hasattr(value, "to_local") else value
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step" and torch.is_tensor(value)
    ]
    return sum(tensor.nbytes for tensor in tensors)


def test_apollo_is_as_large_as_published(config):
    # 7B at rank 256 in bfloat16: 1.6 GB without embeddings and head (H. Zhu et al., arXiv 2412.05270).
    model = plan.model_of(config(LLAMA_7B), torch.bfloat16)
    (row,) = plan.estimates(model, optimizers=["apollo"], rank=256)
    others = 2 * 2 * (2 * 32000 * 4096 + 65 * 4096)
    assert (row.state - others) / 1e9 == pytest.approx(1.6, rel=0.05)


def test_program_prints_the_table(config, capsys):
    assert plan.main([str(config(LLAMA_7B)), "--optimizer", "adamw", "dct-adamw"]) == 0
    printed = capsys.readouterr().out
    assert "6,738,415,616 parameters in float32; GB on one device" in printed
    assert re.search(r"^AdamW +26\.95 +26\.95 +53\.91 +107\.81  #{24}$", printed, re.MULTILINE)
    assert re.search(r"^DCT-AdamW +26\.95 +26\.95 +8\.59 ", printed, re.MULTILINE)


def test_readme_shows_what_the_planner_computes(config):
    model = plan.model_of(config(LLAMA_7B))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| ([^|]+) \| ([\d.]+) \|$", text, re.MULTILINE))
    names = ["adamw", "dct-adamw", "dct-adamw-tiny", "trion-best"]
    rows = plan.estimates(model, optimizers=names)
    assert list(stated.values()) == [f"{row.state / 1e9:.1f}" for row in rows]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "[]", "must be a configuration of Hugging Face, with a model_type"),
        ("config.yaml", "", r"must be a config\.json, a \.safetensors file or a folder"),
        ("other.txt", "", r"must be a config\.json, a \.safetensors file or a folder"),
    ],
)
def test_what_is_no_model_is_an_error(tmp_path, capsys, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SystemExit):
        plan.main([str(path)])
    assert re.search(message, capsys.readouterr().err)


def test_summary_prints_a_table_with_totals_beside_adamw():
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Linear(256, 64))
    text = str(lowrank_torch.DCTAdamW.for_model(model, rank=16).summary())
    lines = text.splitlines()
    assert lines[0].split() == ["name", "shape", "algorithm", "rank", "axis", "state", "AdamW's"]
    assert lines[1].split() == [
        "0.weight",
        "256",
        "x",
        "64",
        "dct_adamw",
        "16",
        "-1",
        "17,728",
        "131,072",
    ]
    assert lines[-2:] == [
        "32,768 of 33,088 numbers, in 2 of 4 parameters, are stepped at low rank",
        "state 38,016 bytes, 14 % of AdamW's 264,704",
    ]

"""Training, saving and loading open, start, reach and unpickle nothing but the path that is given."""

import re
import subprocess
import sys

import pytest
from packages import module_names

CHILD = """
import sys, warnings
from pathlib import Path

FRAMEWORK, FOLDER = sys.argv[1], Path(sys.argv[2])


def torch_run():
    import torch
    from lowrank_torch import DCTAdamW

    weight, bias = (torch.nn.Parameter(torch.ones(s)) for s in ((12, 8), (5,)))
    optimizer = DCTAdamW([("weight", weight), ("bias", bias)], rank=3)

    def train():
        for parameter in (weight, bias):
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()

    return train, optimizer.save_state, optimizer.load_state


def jax_run():
    import jax
    import lowrank_jax

    params = {"layer": {"kernel": jax.numpy.ones((12, 8)), "bias": jax.numpy.ones(5)}}
    axes = {"layer": {"kernel": lowrank_jax.MatrixAxes(1, 0), "bias": None}}
    optimizer = lowrank_jax.dct_adamw(0.1, rank=3, matrix_axes=axes)
    kept = [optimizer.init(params)]

    def train():
        _, kept[0] = optimizer.update(params, kept[0], params)

    def save(path):
        lowrank_jax.save_state(path, optimizer, kept[0], params)

    def load(path):
        kept[0] = lowrank_jax.load_state(path, optimizer, kept[0], params)

    return train, save, load


train, save, load = {"torch": torch_run, "jax": jax_run}[FRAMEWORK]()
# Modules are imported where they are first needed.
train(), save(FOLDER / "first"), load(FOLDER / "first"), train()
seen = []
WATCHED = ("open", "os.", "socket.", "subprocess.", "pickle.", "shutil.", "ctypes.dlopen", "urllib.")


def hook(event, arguments):
    if event.startswith(WATCHED):
        seen.append((event, [str(one) for one in arguments]))


sys.addaudithook(hook)
train(), save(FOLDER / "given"), train(), load(FOLDER / "given"), train()
found, seen = list(seen), []
for event, arguments in found:
    print(event, *arguments, sep="\\t")
"""


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_nothing_but_the_given_path_is_opened(framework, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, framework, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [line.split("\t") for line in done.stdout.splitlines()]
    allowed = (str(tmp_path / "given"), str(tmp_path / ".given.part"))
    # Descriptors are of files that have been opened: what they are called is in an event before.
    others = [
        event
        for event in events
        if not event[0].startswith(("open", "os.", "shutil."))
        or not (event[1].startswith(allowed) or event[1].isdecimal())
    ]
    assert not others
    assert any(event[0] == "open" for event in events)


FORBIDDEN = (
    r"\b(pickle|marshal|shelve|socket|urllib|requests|http|subprocess|ctypes)\b(?=\.|$)",
    r"(?<![.\w])(eval|exec|compile|__import__)\(",
    r"\bos\.(system|popen|exec\w*|spawn\w*)\(",
)


def test_source_calls_nothing_that_runs_data():
    found = []
    for name, path in module_names():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            code = line.partition("#")[0]
            if code.lstrip().startswith(("import ", "from ")) or "(" in code:
                found += [f"{name}:{number}" for rule in FORBIDDEN if re.search(rule, code)]
    assert not found


def test_three_files_look_at_environment_variables():
    read = re.compile(r"os\.environ|getenv")
    found = [name for name, path in module_names() if read.search(path.read_text(encoding="utf-8"))]
    assert set(found) <= {
        "lowrank_core.ops.crossovers_file",
        "lowrank_core.calibration",
        "lowrank_backends._torch_rows",
    }

"""The language-model example on two processes: what one comes to, and what is left when one of them is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.usefixtures("torch")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
STEPS, KILLED_AT, SAVED_EVERY = 8, 5, 2
# The second process ends without a word, as if the machine had taken it.
DIES = f"""
import os, signal, sys
sys.path.insert(0, {str(EXAMPLES)!r})
import pretrain_lm, _job
show = _job.LiveReport.show
def die(self, run):
    show(self, run)
    if os.environ["RANK"] == "1" and run.step == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
_job.LiveReport.show = die
sys.exit(pretrain_lm.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(40):
        lines = (f"number {number} times {factor} is {number * factor}" for factor in range(20))
        (folder / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def arguments(text, folder, *more):
    return [
        *("--text", str(text), "--steps", str(STEPS), "--d-model", "32", "--layers", "1"),
        *("--heads", "2", "--batch", "4", "--seq-len", "16", "--rank", "4"),
        *("--output", str(folder / "curves.png"), "--json", str(folder / "figures.json")),
        *("--optimizer", "dct-adamw", *more),
    ]


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **more}


def two(program, *given):
    """Two processes that know of each other; exit statuses, outputs, and seconds until both have ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, *program, *given, "--parallel", "fsdp"],
            env=environment(**place, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    begun = time.monotonic()
    try:
        outputs = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [p.returncode for p in processes], outputs, time.monotonic() - begun


@pytest.mark.slow
def test_two_processes_come_to_what_one_does(text, tmp_path):
    curves = {}
    for way in (None, "ddp", "tp"):
        folder = tmp_path / str(way)
        folder.mkdir()
        more = [] if way is None else ["--parallel", way]
        start = [sys.executable]
        if way is not None:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        # Sides as they are whole under tensor parallelism differ from matrix to matrix.
        wide = ["--optimizer", "adamw"] if way == "tp" else ["--optimizer", "adamw", "dct-adamw"]
        subprocess.run(
            [*start, str(EXAMPLES / "pretrain_lm.py"), *arguments(text, folder), *wide, *more],
            env=environment(),
            check=True,
            capture_output=True,
            timeout=150,
        )
        found = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
        curves[way] = {run["optimizer"]: run["training"] for run in found["runs"]}
    for way in ("ddp", "tp"):
        for name, losses in curves[way].items():
            assert losses == pytest.approx(curves[None][name], abs=1e-4), (way, name)


@pytest.mark.slow
def test_killed_process_ends_the_others_and_the_run_goes_on_to_the_same_bits(text, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    given = ["--checkpoint-every", str(SAVED_EVERY), "--checkpoint"]
    plain = [str(EXAMPLES / "pretrain_lm.py")]
    checkpoints = []
    for folder, program in ((whole, plain), (cut, ["-c", DIES])):
        folder.mkdir()
        checkpoints.append(folder / "saved.pt")
        line = arguments(text, folder, *given, str(checkpoints[-1]))
        codes, outputs, seconds = two(program, *line)
        if folder is whole:
            assert codes == [0, 0], outputs
            continue
        assert codes == [1, -signal.SIGKILL], outputs
        assert "process 0: cannot go on" in outputs[0]
        # It does not wait for the process group to lose its patience.
        assert seconds < 110
        saved = torch.load(checkpoints[-1], weights_only=True)
        assert len(saved["runs"][0]["training"]) == KILLED_AT - KILLED_AT % SAVED_EVERY
        codes, outputs, _ = two(plain, *line)
        assert codes == [0, 0], outputs
    one, other = (torch.load(path, weights_only=True) for path in checkpoints)
    assert one["runs"][0]["training"] == other["runs"][0]["training"]
    same_bits(one["training"]["model"], other["training"]["model"])
    same_bits(one["training"]["optimizer"]["state"], other["training"]["optimizer"]["state"])


def same_bits(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same_bits(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_parallel_without_torchrun_gets_one_line(text, tmp_path):
    line = arguments(text, tmp_path, "--parallel", "fsdp")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "pretrain_lm.py"), *line],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "start them with torchrun" in done.stderr
    assert len(done.stderr.splitlines()) == 1

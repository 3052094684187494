"""Everything about GPUs in one script, for a bare machine that has one: ``python tests/gpu/run.py --out gpu.json``.

It needs PyTorch with CUDA and what `NEEDED` lists; JAX and CuPy are tested where they are. It installs nothing, not
even this checkout, takes less than eight minutes (``--seconds``), and writes what it has found after every section, so
that nothing is lost where it is cut off.
Times are medians of CUDA events, in milliseconds, the L2 cache overwritten before each; all ratios are of one process.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = "no GPU: PyTorch finds no CUDA device, so nothing was run"
#: Distributions that have to be there besides PyTorch, by the modules that they bring.
NEEDED = {
    "array_api_compat": "array-api-compat",
    "hypothesis": "hypothesis",
    "numpy": "numpy",
    "pytest": "pytest",
}
#: Shapes of single matrices, and what one layer of Llama-7B consists of.
SHAPES = ((1024, 1024), (2048, 2048), (4096, 4096), (8192, 8192), (11008, 4096))
LLAMA_LAYER = ((4096, 4096),) * 4 + ((11008, 4096),) * 2 + ((4096, 11008),)
BASELINE = "AdamW(fused)"


def words_per_weight(rank_share: float, *, chooses: bool = True) -> float:
    """Words of memory that a step moves for each weight, counted: columns chosen at this step or not.

    The sums read the gradient. The rows read it again, read and write the weight, and read and write two moments that
    are ``rank_share`` as wide.
    """
    return (1 if chooses else 0) + 3 + 4 * rank_share


#: The gradient read; weight and both moments read and written.
ADAMW_WORDS = 7


def ratios(times: dict[str, float], baseline: str = BASELINE) -> dict[str, float]:
    """Each of ``times`` over that of the baseline, what has no time left out."""
    base = times[baseline]
    found = {name: t / base for name, t in times.items() if isinstance(t, (int, float))}
    return {name: round(ratio, 3) for name, ratio in found.items() if name != baseline}


class Run:
    """Sections that are run while there is time, each written down as soon as it is done."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.found = path, {}
        self._begun = time.monotonic()
        self._seconds = seconds

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._seconds - (time.monotonic() - self._begun)

    def section(self, name: str, work: Callable[[], Any], *, needs: float = 5) -> None:
        """Do ``work`` if there are ``needs`` seconds left; an error is what is found."""
        begun = time.monotonic()
        if self.left < needs:
            self.found[name] = {"left out": f"{self.left:.0f} s left, needs {needs:.0f} s"}
        else:
            try:
                self.found[name] = work()
            except Exception as error:  # noqa: BLE001 - the other sections are worth having
                self.found[name] = {"error": f"{type(error).__name__}: {str(error)[-600:]}"}
        took = time.monotonic() - begun
        print(f"{name}, {took:.1f} s: {self.found[name]}", flush=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Versions of what is installed of the libraries that count."""
    found = {}
    for name in ("torch", "triton", "jax", "cupy-cuda12x", "cupy-cuda13x", "numpy", "pytest"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def missing() -> list[str]:
    """What `NEEDED` lists and is not there."""
    return [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]


@cache
def described() -> Path:
    """A folder that says of this checkout what its installed distribution would: by which adapters are found."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = Path(tempfile.mkdtemp()) / "site"
    about = folder / f"lowrank_core-{project['version']}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Name: lowrank-core\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {where}" for name, where in points.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def environment() -> dict[str, str]:
    """The environment of a child: the packages of this checkout, installed or not."""
    paths = (ROOT, ROOT / "backends", ROOT / "frontends", ROOT / "tests" / "support", described())
    given = os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, paths), given])}


def pytest_gpu(library: str, files: Sequence[str], seconds: float) -> dict[str, Any]:
    """The tests of ``files`` on one array library, on the GPU."""
    if importlib.util.find_spec(library) is None:
        return {"left out": f"{library}: not installed"}
    own = environment() | {"LOWRANK_TEST_BACKENDS": library}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command, cwd=ROOT, env=own, check=False, capture_output=True, text=True, timeout=seconds
    )
    return {"exit": done.returncode, "end": done.stdout[-700:]}


def kernels() -> dict[str, Any]:
    """The kernels beside float64, on the GPU."""
    own = environment() | {"LOWRANK_KERNELS_ON": "cuda"}
    program = str(ROOT / "tests" / "support" / "triton_runs.py")
    names = [
        *("sums 768", "sums 96 high", "rows 96 discard, tensors", "rows 768 sign"),
        *("rows 40 normalized, a stack, columns kept", "rows 96 bounded", "interrupted"),
        *("rows 4096 sign highest", "rows 4096 sign high", "rows 8192 sign high"),
        *("optimizer, the default on a stack", "optimizer, moments rounded at random"),
    ]
    done = subprocess.run(
        [sys.executable, program, *names], env=own, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Gpu:
    """What is timed on the device, at one shape or several."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self._flush = torch.empty(96 * 2**20, dtype=torch.uint8, device="cuda")

    def milliseconds(self, work: Callable[[], Any], repeats: int = 11) -> float:
        """The median time of ``work`` on the device."""
        torch = self.torch
        for _ in range(3):
            work()
        times = []
        for _ in range(repeats):
            self._flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return round(statistics.median(times), 4)

    def bounds(self, shape: tuple[int, int]) -> dict[str, float]:
        """A copy, and a product with a square matrix, which a transform without an FFT is."""
        torch = self.torch
        x = torch.randn(*shape, device="cuda")
        y, basis = torch.empty_like(x), torch.randn(shape[1], shape[1], device="cuda")
        torch.set_float32_matmul_precision("high")
        found = {"copy": self.milliseconds(lambda: y.copy_(x))}
        found["product, tf32"] = self.milliseconds(lambda: torch.mm(x, basis, out=y))
        low, narrow = x.bfloat16(), basis.bfloat16()
        found["product, bfloat16"] = self.milliseconds(lambda: low @ narrow)
        return found

    def optimizers(self, shapes: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """A step of every optimizer on matrices of ``shapes``, in milliseconds, and over fused AdamW."""
        import lowrank_torch

        torch = self.torch
        own = lowrank_torch.DCTAdamW
        makers: dict[str, Callable[[Any], Any]] = {
            BASELINE: lambda p: torch.optim.AdamW(p, 1e-6, fused=True),
            "DCTAdamW": lambda p: own(p, 1e-6),
            "DCTAdamW, tiny": lambda p: own(p, 1e-6, preset="tiny"),
            "DCTAdamW, plain": lambda p: own(p, 1e-6, preset=None),
            "DCTAdamW, plain, discard": lambda p: own(p, 1e-6, preset=None, residual="discard"),
            "DCTAdamW, plain, columns every 20": lambda p: own(
                p, 1e-6, preset=None, refresh_every=20
            ),
            "Trion": lambda p: lowrank_torch.Trion(p, 1e-6, rank=0.25),
            "Trion, best": lambda p: lowrank_torch.Trion(p, 1e-6, rank=1.0, preset="best"),
            "GaLore (basis='svd'), between its SVDs": lambda p: own(
                p, 1e-6, preset="galore", refresh_every=10**6
            ),
        }
        if hasattr(torch.optim, "Muon"):
            makers["Muon"] = lambda p: torch.optim.Muon(p, 1e-6)
        found: dict[str, Any] = {}
        for precision in ("high", "highest"):
            torch.set_float32_matmul_precision(precision)
            times: dict[str, Any] = {}
            for name, make in makers.items():
                if "GaLore" in name and max(map(max, shapes)) > 4096:
                    continue  # its first SVD takes longer than all else
                parameters = [torch.nn.Parameter(torch.randn(s, device="cuda")) for s in shapes]
                for parameter in parameters:
                    parameter.grad = torch.randn_like(parameter) * 1e-3
                stepper = make(parameters)
                times[name] = self.milliseconds(stepper.step)
                del stepper, parameters
            found[precision] = {"ms": times, f"over {BASELINE}": ratios(times)}
        return found

    def passes(self, shape: tuple[int, int]) -> dict[str, Any]:
        """Both kernels alone, over a copy."""
        from lowrank_core import ops_for_namespace

        torch = self.torch
        ops = ops_for_namespace(torch)
        x = torch.randn(*shape, device="cuda")
        kernels = ops.row_kernels([x], [x], [()])
        if kernels is None:
            return {"left out": f"the kernels do not take {shape}"}
        y = torch.empty_like(x)
        found: dict[str, Any] = {"copy": self.milliseconds(lambda: y.copy_(x))}
        for precision in ("high", "highest"):
            torch.set_float32_matmul_precision(precision)
            rows = kernels([x], [y], [None], ops)
            found[f"sums, {precision}"] = self.milliseconds(partial(rows.sums, ("l2",)))
            for rest in ("discard", "sign", "normalized"):
                chosen, stepped = self._choice_and_rows(rows, rest)
                found[f"choice, {rest}, {precision}"] = self.milliseconds(chosen)
                found[f"rows, {rest}, {precision}"] = self.milliseconds(stepped)
        return found | {"over a copy": ratios(found, "copy")}

    def _choice_and_rows(self, passes: Any, rest: str) -> Any:
        """The choice of columns, and the rows with columns that are chosen, as functions to be timed."""
        from lowrank_core import DCTAdamWConfig, dct_adamw_init
        from lowrank_core.ops.rows import RowMoments, RowWrite
        from lowrank_core.rules.dct_adamw_rows import dct_adamw_rows
        from lowrank_core.rules.reductions import run
        from lowrank_core.rules.rule import bind

        config = DCTAdamWConfig(rank=0.25, side="right", residual=rest)
        shape = tuple(passes.gradients[0].shape)
        matrix = bind(config, shape, passes.ops, passes.gradients[0].device)
        state = dct_adamw_init(shape, config, xp=self.torch, device="cuda")
        sums = passes.sums(config.norms(True))
        # So that the choice is timed without them.
        rows: Any = SimpleNamespace(sums=lambda norms: sums)
        moments = RowMoments(state.first_moment, state.second_moment, None)

        def choice() -> Any:
            return run(dct_adamw_rows(rows, state, matrix, True))[0]

        job, how = choice(), RowWrite(1e-6, 0.1)
        return choice, partial(passes.step, [moments], job, [how])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every section, and return the exit status: 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--seconds", type=float, default=460)
    given = parser.parse_args(arguments)
    if lacking := missing():
        print(f"missing: pip install {' '.join(lacking)}")
        return 3
    import torch

    if not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    # Here and in the processes to come: without it optimizers step without kernels.
    os.environ["LOWRANK_KERNELS"] = "1"
    sys.path[:0] = environment()["PYTHONPATH"].split(os.pathsep)[:5]
    run, gpu = Run(given.out, given.seconds), Gpu()
    device = torch.cuda.get_device_properties(0)
    about = {"name": device.name, "processors": device.multi_processor_count}
    about |= {"date": time.strftime("%Y-%m-%d"), "versions": versions()}
    run.section("device", lambda: about)
    run.section("kernels beside float64", kernels, needs=60)
    own = ["tests/gpu/test_on_gpu.py", "tests/gpu/test_graphs_on_gpu.py", "-m", "gpu"]
    run.section("graphs, waits, compiled steps", lambda: pytest_gpu("torch", own, 120), needs=60)
    for shape in SHAPES:
        label = f"{shape[0]} x {shape[1]}"
        run.section(f"bounds, {label}", lambda shape=shape: gpu.bounds(shape))
        run.section(f"passes, {label}", lambda shape=shape: gpu.passes(shape))
        run.section(f"optimizers, {label}", lambda shape=shape: gpu.optimizers([shape]), needs=20)
    run.section("optimizers, a layer of Llama-7B", lambda: gpu.optimizers(LLAMA_LAYER), needs=30)
    for library in ("torch", "cupy", "jax"):
        marked = ["tests/core/test_transforms.py", "tests/core/test_dct_adamw.py"]
        some = [*marked, "-m", "gpu"] if library == "torch" else marked
        allowed = max(1.0, min(run.left, 90.0))
        run.section(
            f"tests on {library}",
            lambda f=some, n=library, s=allowed: pytest_gpu(n, f, s),
            needs=30,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

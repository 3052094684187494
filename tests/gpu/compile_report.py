"""What the compiler makes of the kernels for GPUs that need not be here: registers, spills, shared memory.

``python tests/gpu/compile_report.py --sizes 1024 4096 --chips 90`` prints a table in Markdown. Triton's wheel brings
the assembler and the disassembler; no driver is needed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from lowrank_backends._triton_lift import chosen_columns, lift_rows
from lowrank_backends._triton_rows import step_rows
from lowrank_backends._triton_sums import column_sums
from lowrank_backends._triton_tables import Factors, factors, holds, padded
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SIZES = (768, 1024, 2048, 4096, 5120, 8192)
CHIPS = (80, 90, 100)
#: Bytes of shared memory that one program may have.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
#: Residual policies of the kernel of rows; the sign takes the most.
RESTS = ("discard", "sign", "normalized", "bounded")
PRECISIONS = ("high", "highest")
_STRIDES = (
    "g_row",
    "w_row",
    "m_row",
    "more_row",
    "row_stride",
    "g_matrix",
    "w_matrix",
    "m_matrix",
    "more_matrix",
    "matrix_stride",
    "count",
    "rows",
)


class Report(NamedTuple):
    """What one compiled kernel takes."""

    #: A thread.
    registers: int
    #: Bytes of stack a thread.
    stack: int
    #: Bytes of shared memory a program.
    shared: int
    #: Loads and stores of spilled registers in a loop.
    spills: int
    #: Instructions in all.
    instructions: int


def report(kernel: str, n: int, chip: int, precision: str = "high") -> Report:
    """Return what a kernel takes: ``"sums"``, at rank ``n / 4`` that of rows by its residual policy, or one of Trion's.

    Those are ``"sums of both"``, ``"columns"`` and ``"lift"``, with a momentum.
    """
    cut = factors(n)
    if cut is None:
        raise ValueError(f"n must be a length that the kernels take, got {n}")
    tables = _typed("*fp32", "phases") | _typed("*fp16", "outer inner")
    if kernel in ("sums", "sums of both"):
        types = _typed("*fp32", "x more part") | tables
        constants = {"ABSOLUTE": False, "ADDED": kernel != "sums"}
        return compiled(column_sums, _constants(cut, precision) | constants, types, chip, cut)
    if kernel == "columns":
        types = _typed("*fp32", "x more out scratch") | _typed("*i32", "slot") | tables
        constants = {"PR": padded(n // 4), "ADDED": True}
        return compiled(chosen_columns, _constants(cut, precision) | constants, types, chip, cut)
    if kernel == "lift":
        types = _typed("*fp32", "g w m coefficients update") | _typed("*i32", "position") | tables
        types |= _typed("fp32", "rate decay share")
        constants = {"RANDOM": False, "RATE_AT": False, "DECAY_AT": False}
        return compiled(lift_rows, _constants(cut, precision) | constants, types, chip, cut)
    arrays = "g w first_moment second_moment row_energy scratch eps_of share_of column scale"
    types = _typed("*fp32", arrays) | _typed("*i32", "slot old") | tables
    types |= _typed("fp32", "rate decay weight1 weight2 weight3 b1 b2 b3 eps")
    constants = _constants(cut, precision) | {
        "PR": padded(n // 4), "REST": kernel, "FACTORED": kernel == "bounded", "MOVED": True,
        "RANDOM": False, "RATE_AT": False, "DECAY_AT": False, "WEIGHTS_AT": False,
    }  # fmt: skip
    return compiled(step_rows, constants, types, chip, cut)


def _typed(kind: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


def _constants(cut: Factors, precision: str) -> dict[str, Any]:
    names = {"n": cut.n, "N1": cut.n1, "N2": cut.n2, "P1": cut.p1, "P2": cut.p2}
    return {**names, "SPLIT": precision == "highest"}


def compiled(
    kernel: Any, constants: dict[str, Any], types: dict[str, str], chip: int, cut: Factors
) -> Report:
    """Compile ``kernel`` for ``chip`` (90 is sm_90); ``types`` of arguments, where these are no integers."""
    names = kernel.arg_names
    signature = {a: "constexpr" if a in constants else types.get(a, "i32") for a in names}
    aligned = [a for a in names if types.get(a, "").startswith("*") or a in _STRIDES]
    attributes = {(names.index(a),): [["tt.divisibility", 16]] for a in aligned}
    values = {(names.index(a),): v for a, v in constants.items()}
    source = ASTSource(kernel, signature, values, attributes)
    options = {"num_warps": cut.warps, "maxnreg": cut.registers, "num_stages": 1}
    options["enable_fp_fusion"] = True
    made = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"no registers in what cuobjdump says: {usage!r}")
    count = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE))
    shared = made.metadata.shared
    return Report(int(found[1]), int(found[2]), shared, spills_in_loops(code), count)


def _tool(name: str, *arguments: str) -> str:
    command = [str(TOOLS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def spills_in_loops(code: str) -> int:
    """Return how many spill instructions stand between a loop's label and its branch back, in a disassembly."""
    labels: dict[str, int] = {}
    spills, loops = [], []
    for place, line in enumerate(code.splitlines()):
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = place
        elif re.search(r"\b(LDL|STL)\b", line):
            spills.append(place)
        elif jump := re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line):
            start = labels.get(jump[1])
            # A jump to itself is how the assembler pads the end.
            if start is not None and place - start > 8:
                loops.append((start, place))
    return sum(any(start < s < end for start, end in loops) for s in spills)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--chips", type=int, nargs="+", default=CHIPS)
    parser.add_argument(
        "--kernels", nargs="+", default=("sums", "sign", "sums of both", "columns", "lift")
    )
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    given = parser.parse_args()
    print(
        "| n | chip | kernel | precision | warps | registers | stack, B | spills in loops | shared, B |"
    )
    print("|---:|---|---|---|---:|---:|---:|---:|---:|")
    for n in given.sizes:
        cut = factors(n)
        warps = None if cut is None else cut.warps
        for chip in given.chips:
            for kernel in given.kernels:
                for precision in given.precisions:
                    if cut is None or not holds(cut, precision == "highest", chip):
                        print(f"| {n} | sm_{chip} | {kernel} | {precision} | not taken | | | | |")
                        continue
                    r = report(kernel, n, chip, precision)
                    taken = f"{r.registers} | {r.stack} | {r.spills} | {r.shared}"
                    line = f"| {n} | sm_{chip} | {kernel} | {precision} | {warps} | {taken} |"
                    print(line, flush=True)


if __name__ == "__main__":
    main()

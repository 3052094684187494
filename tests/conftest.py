"""Which array libraries a run covers, how they are set up for tests, and what the run says about it."""

import importlib
import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

# One thread a process where several processes share the cores. Before any library reads it.
if "PYTEST_XDIST_WORKER" in os.environ:
    for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_variable, "1")

import hypothesis
import pytest

# Library -> the module whose functions its users pass around as `xp`.
NAMESPACES = {
    "numpy": "numpy",
    "array_api_strict": "array_api_strict",
    "torch": "torch",
    "jax": "jax.numpy",
    "cupy": "cupy",
}
# CuPy needs a GPU to compute anything, so it is required only where it is asked for by name.
BY_DEFAULT = ("numpy", "array_api_strict", "torch", "jax")
VARIABLE = "LOWRANK_TEST_BACKENDS"


def _required() -> tuple[str, ...]:
    """Libraries that must be tested; whatever else is installed is left alone."""
    listed = os.environ.get(VARIABLE, "")
    names = tuple(name.strip() for name in listed.split(",") if name.strip())
    return names or BY_DEFAULT


REQUIRED = _required()

# The same examples in every run, and no time limit on a busy machine.
hypothesis.settings.register_profile(
    "seeded", derandomize=True, deadline=None, max_examples=25, print_blob=False
)
hypothesis.settings.load_profile("seeded")

if "jax" in REQUIRED and importlib.util.find_spec("jax") is not None:
    import jax

    # Without 64 bits float64 tests would run in float32; lax promotion would hide a dtype mixed up.
    # Programs as small as those of tests take longer to compile than to run.
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")


def why_not(library: str) -> str | None:
    """Why ``library`` cannot compute here, or ``None`` if it can."""
    if importlib.util.find_spec(library) is None:
        return "not installed"
    if library == "cupy":
        cupy = importlib.import_module("cupy")
        if not cupy.is_available():
            return "imported, but no GPU was found: its computations were not run"
    return None


def _namespace(library: str) -> ModuleType:
    """The namespace of ``library`` for a test: a failure if it is required and absent, else a skip."""
    if library not in REQUIRED and library != "cupy":
        pytest.skip(f"{library}: not listed in {VARIABLE}")
    reason = why_not(library)
    if reason is not None and library in REQUIRED:
        pytest.fail(f"{library}: {reason}, and {VARIABLE} requires it", pytrace=False)
    if reason is not None:
        pytest.skip(f"{library}: {reason}")
    return importlib.import_module(NAMESPACES[library])


@pytest.fixture(scope="session")
def xp(request: pytest.FixtureRequest) -> ModuleType:
    """The array namespace of each library in turn, as its users know it."""
    return _namespace(request.param)


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    """PyTorch, for a test that is about PyTorch alone."""
    return _namespace("torch")


@pytest.fixture(scope="session")
def jnp() -> ModuleType:
    """``jax.numpy``, for a test that is about JAX alone."""
    return _namespace("jax")


@pytest.fixture
def optax(jnp: ModuleType) -> Iterator[ModuleType]:
    """Optax, which mixes dtypes that only JAX's ordinary promotion brings together."""
    import jax
    import optax

    with jax.numpy_dtype_promotion("standard"):
        yield optax


@pytest.fixture(scope="session")
def cupy() -> ModuleType:
    """CuPy with a GPU, for a test that is about CuPy alone."""
    return _namespace("cupy")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``xp`` on every required library, and on CuPy where there is a GPU.

    A test that names its libraries itself, ``parametrize("xp", ["torch"], indirect=True)``, has them.
    """
    named = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    taken = {name for names in named for name in ([names] if isinstance(names, str) else names)}
    if "xp" not in metafunc.fixturenames or "xp" in taken:
        return
    libraries = list(REQUIRED)
    if "cupy" not in libraries and why_not("cupy") is None:
        libraries.append("cupy")
    marks = {"cupy": pytest.mark.gpu}
    metafunc.parametrize(
        "xp",
        [pytest.param(name, id=name, marks=marks.get(name, ())) for name in libraries],
        indirect=True,
        scope="session",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note on every test which libraries it exercises, and leave most parameters of one on JAX to the slow tests.

    JAX compiles every operation anew for every shape, which takes longer than all else. So by default a test with many
    parameters is tried on JAX with the first and the last of them; `-m slow` tries the others. Tests marked with
    `compiles_nothing` are tried with all.
    """
    singles = {"torch": "torch", "jnp": "jax", "cupy": "cupy"}
    on_jax: dict[str, list[pytest.Item]] = {}
    for item in items:
        names = getattr(item, "fixturenames", ())
        used = {library for fixture, library in singles.items() if fixture in names}
        callspec = getattr(item, "callspec", None)
        if callspec is not None and "xp" in callspec.params:
            used.add(callspec.params["xp"])
        for library in sorted(used):
            item.user_properties.append(("library", library))
        if "jax" in used and item.get_closest_marker("compiles_nothing") is None:
            on_jax.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for alike in on_jax.values():
        for item in alike[1:-1]:
            item.add_marker(pytest.mark.slow)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run where a library that must be tested is unknown or absent."""
    for library in REQUIRED:
        if library not in NAMESPACES:
            raise pytest.UsageError(
                f"{VARIABLE} must list libraries out of {', '.join(NAMESPACES)}, got {library!r}"
            )
        if importlib.util.find_spec(library) is None:
            raise pytest.UsageError(
                f"{library} must be tested but is not installed: install the extra 'dev', or list "
                f"in {VARIABLE} the libraries to test, out of {', '.join(NAMESPACES)}"
            )


def _version(library: str) -> str:
    distributions = (library, "cupy-cuda12x", "cupy-cuda13x") if library == "cupy" else (library,)
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return ""


def pytest_report_header() -> str:
    """Say before the tests which libraries are required."""
    return f"array libraries required: {', '.join(REQUIRED)}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say after the tests what ran on each array library, and what did not."""
    counts: dict[str, Counter[str]] = {library: Counter() for library in NAMESPACES}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, library in getattr(report, "user_properties", ()):
                if name == "library":
                    counts[library][outcome] += 1
    terminalreporter.section("array libraries")
    for library, count in counts.items():
        label = f"{library} {_version(library)}".strip()
        if library not in REQUIRED and library != "cupy":
            text = f"not tested: not listed in {VARIABLE}"
        else:
            parts = [f"{number} {outcome}" for outcome, number in count.items() if number]
            text = ", ".join(parts) or "no test of this run uses it"
            reason = why_not(library)
            text += f" ({reason})" if reason is not None else ""
        terminalreporter.write_line(f"{label}: {text}")

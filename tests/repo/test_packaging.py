"""What the installed distribution is, whatever folder the tests run from.

These tests need pytest and nothing else, so that they also run on the built wheel where no
framework is installed.
"""

import ast
import re
import subprocess
import sys
from importlib import metadata

import pytest
from packages import PACKAGES, module_names, package_folder

DISTRIBUTION = "lowrank-core"
FRAMEWORKS = ("numpy", "scipy", "torch", "jax", "jaxlib", "cupy", "cupyx", "optax", "matplotlib")

# What each package may import beside the standard library and itself.
ALLOWED = {
    "lowrank_core": {"array_api_compat"},
    "lowrank_backends": {"lowrank_core"},
    "lowrank_torch": {"lowrank_core", "torch", "safetensors", "transformers"},
    "lowrank_jax": {"lowrank_core", "jax", "optax", "safetensors"},
}
# An adapter module may also import the one library that it adapts.
ADAPTED = {
    "lowrank_backends.numpy": {"numpy", "scipy"},
    "lowrank_backends.torch": {"torch"},
    "lowrank_backends._numba_codes": {"numpy"},
    "lowrank_backends._numba_dct": {"numba", "numpy"},
    "lowrank_backends._numba_lanes": {"numba", "llvmlite"},
    "lowrank_backends._numba_launch": {"torch", "numpy"},
    "lowrank_backends._numba_lift": {"numpy"},
    "lowrank_backends._numba_panels": {"numpy"},
    "lowrank_backends._numba_rows": {"numpy"},
    "lowrank_backends._numba_step": {"numpy"},
    "lowrank_backends._numba_tables": {"numpy"},
    "lowrank_backends._numba_write": {"numpy"},
    "lowrank_backends._torch_cosine": {"torch", "numpy"},
    "lowrank_backends._torch_memory": {"torch", "numpy"},
    "lowrank_backends._torch_panels": {"torch"},
    "lowrank_backends._torch_rows": {"torch"},
    "lowrank_backends._torch_threads": {"torch"},
    "lowrank_backends._triton_dct": {"triton"},
    "lowrank_backends._triton_launch": {"torch"},
    "lowrank_backends._triton_lift": {"triton"},
    "lowrank_backends._triton_rounding": {"triton"},
    "lowrank_backends._triton_rows": {"triton"},
    "lowrank_backends._triton_sums": {"triton"},
    "lowrank_backends._triton_tables": {"torch"},
    "lowrank_backends.jax": {"jax"},
    "lowrank_backends._jax_blocks": {"jax"},
    "lowrank_backends._jax_rows": {"jax"},
    "lowrank_backends.cupy": {"cupy", "cupyx"},
    # Nothing but the frontends' modules of that name imports it: whoever does so wants pictures.
    "lowrank_core.plot": {"matplotlib"},
}
ENTRY_POINTS = {
    "numpy": "lowrank_backends.numpy:NumpyOps",
    "torch": "lowrank_backends.torch:TorchOps",
    "jax": "lowrank_backends.jax:JaxOps",
    "cupy": "lowrank_backends.cupy:CupyOps",
}


def imported_roots(source: str) -> set[str]:
    """Top-level names that a module imports anywhere, for types alone and by literal name too."""
    roots = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                roots |= {alias.name.split(".")[0] for alias in names}
            case ast.ImportFrom(module=str(module), level=0):
                roots.add(module.split(".")[0])
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ) if not name.startswith("."):
                roots.add(name.split(".")[0])
    return roots


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which every warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


MODULES = [pytest.param(name, path, id=name) for name, path in module_names()]


def test_every_package_has_modules_to_check():
    assert {param.id.split(".")[0] for param in MODULES} == set(PACKAGES)


@pytest.mark.parametrize(
    ("source", "roots"),
    [
        ("import torch.nn as nn, os.path", {"torch", "os"}),
        ("from jax.numpy import sin", {"jax"}),
        ("from . import layout\nfrom .ops import Ops", set()),
        ("def f():\n    import cupy", {"cupy"}),
        ("if TYPE_CHECKING:\n    import numpy", {"numpy"}),
        ("importlib.import_module('torch.fft')", {"torch"}),
        ("import_module('.ops', __package__)", set()),
        ("__import__('optax')", {"optax"}),
        ("'import torch'  # import jax", set()),
    ],
)
def test_import_reader_sees_every_form(source, roots):
    assert imported_roots(source) == roots


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_module_imports_only_what_its_package_may(name, path):
    package = name.split(".")[0]
    allowed = {package, *ALLOWED[package], *ADAPTED.get(name, ()), *sys.stdlib_module_names}
    excess = imported_roots(path.read_text(encoding="utf-8")) - allowed
    assert not excess, f"{name} may not import {sorted(excess)}"


def test_importing_the_core_is_silent_and_loads_no_framework():
    result = run_python(
        "import sys, lowrank_core; "
        f"loaded = sorted(set({FRAMEWORKS!r}) & set(sys.modules)); "
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("package", PACKAGES)
def test_package_declares_its_types(package):
    assert (package_folder(package) / "py.typed").is_file()


def test_version_of_metadata_and_module_agree():
    result = run_python("import lowrank_core; print(lowrank_core.__version__)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == metadata.version(DISTRIBUTION)


def test_entry_points_name_the_adapters():
    points = metadata.distribution(DISTRIBUTION).entry_points.select(group="lowrank_core.ops")
    assert {point.name: point.value for point in points} == ENTRY_POINTS


@pytest.mark.parametrize("value", ENTRY_POINTS.values())
def test_entry_point_leads_to_a_class(value):
    module, _, name = value.partition(":")
    paths = dict(module_names())
    assert module in paths, f"there is no module {module}"
    tree = ast.parse(paths[module].read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_only_the_core_dependency_is_required():
    required = {
        re.match(r"[\w.-]+", requirement)[0]
        for requirement in metadata.requires(DISTRIBUTION) or []
        if "extra ==" not in requirement
    }
    # An editable install requires what maps the packages, beside the project's own dependencies.
    assert required - {"editables"} == {"array-api-compat"}


@pytest.mark.parametrize(
    ("package", "missing", "line"),
    [
        ("lowrank_torch", "torch", "pip install 'lowrank-core\\[torch\\]'"),
        ("lowrank_jax", "jax", "pip install 'lowrank-core\\[jax\\]'"),
        ("lowrank_jax", "optax", "pip install 'lowrank-core\\[jax\\]'"),
    ],
)
def test_import_without_the_framework_names_the_line_that_installs_it(package, missing, line):
    result = run_python(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name: None if name == {missing!r} else found(name)\n"
        f"import {package}"
    )
    assert re.search(f"ImportError: {package} needs .*: {line}", result.stderr), result.stderr


def test_core_run_as_a_program_reports_versions_and_adapters():
    result = subprocess.run(
        [sys.executable, "-m", "lowrank_core"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout.startswith(f"lowrank-core {metadata.version(DISTRIBUTION)}, Python 3.")
    for name in ENTRY_POINTS:
        assert re.search(rf"^{name}( \d|:)", result.stdout, re.MULTILINE), result.stdout

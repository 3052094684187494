"""Sphinx configuration; built with every warning an error, see CONTRIBUTING.md."""

import sys
from importlib.metadata import version as distribution_version
from pathlib import Path

# The renderer of formulas lies beside this file.
sys.path.insert(0, str(Path(__file__).parent))

project = "lowrank-core"
author = "The lowrank-core developers"
copyright = f"2026, {author}"  # noqa: A001 - the name Sphinx reads
release = distribution_version("lowrank-core")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "mathml",
]
html_math_renderer = "mathml"
exclude_patterns = ["_build"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"lowrank-core {release}"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Addresses of a repository and of hosted pages belong here and into [project.urls] once there are some.
# What is copied is code, not what it printed.
copybutton_selector = "div.highlight-python pre, div.highlight-bash pre, div.highlight-toml pre"

# CuPy is optional, and its adapter's documentation does not need it.
autodoc_mock_imports = ["cupyx"]
autodoc_member_order = "bysource"
maximum_signature_line_length = 88

# Docstrings say shape and dtype in words ("(..., m, n), real floating-point"), which tells a
# reader more than the annotation `Array`, and which is no class name to be looked up: these
# settings leave the annotations out and print the words as text.
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_attr_annotations = False

# Names in single backticks link where there is a page for them, and are code where there is none.
default_role = "py:obj"
nitpicky = True
# Names of other projects: their inventories are not fetched, so that the build needs no network.
nitpick_ignore_regex = [
    (r"py:obj", r".*"),
    (r"py:.*", r"(array_api_compat|collections|jax|numpy|optax|torch|typing)\..*"),
]

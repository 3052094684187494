"""Sphinx configuration; built with every warning an error, see CONTRIBUTING.md."""

from importlib.metadata import version as distribution_version

project = "lowrank-core"
author = "The lowrank-core developers"
copyright = f"2026, {author}"  # noqa: A001 - the name Sphinx reads
release = distribution_version("lowrank-core")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"lowrank-core {release}"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": False}
autodoc_typehints = "signature"

# Docstrings describe arguments in words ("array of shape (m, n)"), which are not class names to
# be looked up: these settings print them as text.
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = True

nitpicky = True
# Names of other projects: their inventories are not fetched, so that the build needs no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(array_api_compat|collections|jax|numpy|optax|torch|typing)\..*"),
]

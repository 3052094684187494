"""Sphinx configuration; built with every warning an error, see CONTRIBUTING.md."""

import re
import sys
import sysconfig
from html import unescape
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

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
# Browsers ask for one in any case.
html_favicon = "_static/icon.svg"
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

# What readers type into the search who do not know a page's words yet; a test holds that the pages are there.
SEARCHED = {
    "quickstart-pytorch": "train, train a model, train a PyTorch model, training loop, example",
    "quickstart-jax": "train a JAX model, Optax",
    "choose": "half of AdamW's memory, which options for half of AdamW's memory, half of AdamW's state, "
    "half AdamW memory, half memory, less memory, which options",
    "memory": "memory, how much memory for a 7B, memory for a 7B, memory 7B, GPU memory, VRAM",
    "fine-tune": "finetune, fine-tuning, fine-tune, Hugging Face Trainer, HuggingFace, SFT, LoRA",
    "tune": "loss, loss does not move, loss not decreasing, loss does not fall, learning rate",
    "distributed": "distributed, shard over 8 GPUs, 8 GPUs, multi-GPU, several GPUs, FSDP, DDP, ZeRO",
    "checkpoints": "resume, resume training, save and load, stop and resume, checkpoint",
    "migrate": "migrate from GaLore, switch from AdamW, GaLore, APOLLO, Fira, Muon, Dion",
    "troubleshoot": "out of memory, OOM, error, NaN",
}

# Folders of the machine that builds: a default value can bring one onto an API page.
MACHINE = (sysconfig.get_path("purelib"), str(Path(__file__).resolve().parents[1]))


def breakable(cell: re.Match[str]) -> str:
    """Let long code in a table's cell break after a separator, so that narrow columns cut no word.

    ``residual="error_feedback"`` becomes ``residual=<wbr>"error_<wbr>feedback"``: unlike CSS's
    ``overflow-wrap: anywhere`` this leaves numbers and words whole, and copies as it is.
    """
    separators = r"(?<=[/_=(])(?=[^/_=()])|(?<=::)|(?<=,)(?=\S)|(?<=\.)(?=[a-z_])"

    def broken(code: re.Match[str]) -> str:
        # Names of usual length break on a phone alone: no column of a wide page is so narrow.
        mark = "<wbr>" if len(unescape(code[0])) > 15 else '<wbr class="narrow">'
        return re.sub(separators, mark, code[0])

    whole = re.sub(r"(?<=arXiv:)(?=\d)", '<wbr class="narrow">', cell[0])
    return re.sub(r'(?<=<span class="pre">)[^<]+', broken, whole)


def finish(_app: Sphinx, page: str, _: str, context: dict[str, Any], __: Any) -> None:
    """Mend and check a page's HTML before it is written."""
    body = context.get("body", "")
    context["body"] = re.sub(r"<td\b.*?</td>", breakable, body, flags=re.DOTALL)
    for folder in MACHINE:
        if folder in body:
            getLogger(__name__).warning("%s shows the path %s", page, folder)


def mark(_: Sphinx, page: str, source: list[str]) -> None:
    """Put the phrases of `SEARCHED` below a page's title: whole ones as index entries, single words as keywords.

    The search puts main entries (``!``) before other results, and the rest of the index after them.
    """
    if page in SEARCHED:
        entries = ", ".join(f"! {phrase}" for phrase in SEARCHED[page].split(", "))
        words = f"```{{eval-rst}}\n.. meta::\n   :keywords: {SEARCHED[page]}\n```"
        below = f"\n```{{index}} {entries}\n```\n{words}\n"
        source[0] = re.sub(r"\A# .*\n", lambda title: title[0] + below, source[0])


def setup(app: Sphinx) -> None:
    """Connect what is said above to the build."""
    app.connect("source-read", mark)
    app.connect("html-page-context", finish)

"""The documentation is true: its code runs and prints what it says, its names exist, its pictures are current."""

import dataclasses
import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PUBLIC = ("lowrank_core", "lowrank_torch", "lowrank_jax")
ADAPTERS = {
    "lowrank_backends.numpy.NumpyOps",
    "lowrank_backends.torch.TorchOps",
    "lowrank_backends.jax.JaxOps",
    "lowrank_backends.cupy.CupyOps",
}


def _snippets():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        return importlib.import_module("snippets")


snippets = _snippets()
PAGES = snippets.PAGES


def text_of(name):
    return PAGES[name].read_text(encoding="utf-8")


def code_of(name):
    return [block.source for block in snippets.blocks_of(text_of(name)) if block.runs]


@pytest.mark.parametrize("name", [name for name in PAGES if code_of(name)])
def test_code_of_page_runs_and_prints_what_it_says(name):
    for block, printed in snippets.printed_by(name, text_of(name)):
        assert printed == block.source, f"{name}, line {block.line}: run docs/snippets.py"


@pytest.mark.parametrize("name", ["README.md", "start.md", "core.md", "backends.md", "options.md"])
def test_page_has_code_to_run(name):
    assert code_of(name)


def page(text):
    return textwrap.dedent(text).replace("~~~", "```")


def test_page_that_fails_is_told_by_its_line():
    text = page("""\
        ~~~python
        x = 1
        ~~~
        words
        ~~~python
        y = x
        raise ValueError(y)
        ~~~
        """)
    with pytest.raises(snippets.PageError, match=r'File "some\.md", line 7'):
        list(snippets.printed_by("some.md", text))


def test_page_that_warns_fails():
    text = page("~~~python\nimport warnings\nwarnings.warn('careful')\n~~~\n")
    with pytest.raises(snippets.PageError, match="careful"):
        list(snippets.printed_by("some.md", text))


def test_output_is_that_of_the_block_before_it():
    text = page("""\
        ~~~python
        x = 1
        print(x)
        ~~~
        ~~~python
        print(x + 1)
        ~~~
        <!-- output -->
        ~~~text
        3
        ~~~
        """)
    assert [printed for _, printed in snippets.printed_by("some.md", text)] == ["2\n"]
    assert snippets.rewritten("some.md", text) == text.replace("3\n", "2\n")


def test_block_is_left_out_only_with_a_reason():
    text = page("""\
        <!-- no-run: needs a GPU -->
        ~~~python
        a
        ~~~
        <!-- no-run: -->
        ~~~python
        b
        ~~~
        ~~~bash
        c
        ~~~
        """)
    assert [block.runs for block in snippets.blocks_of(text)] == [False, True, False]


def test_start_page_shows_the_example_of_the_readme():
    (example,) = code_of("README.md")
    assert code_of("start.md")[0] == example


def api_names():
    return re.findall(
        r"^\.\. auto(?:function|class|data):: (\S+)$", text_of("api.md"), re.MULTILINE
    )


def test_every_public_name_is_on_the_api_page_and_no_other():
    public = {
        f"{package}.{name}"
        for package in PUBLIC
        for name in getattr(importlib.import_module(package), "__all__", ())
    }
    assert sorted(api_names()) == sorted(public | ADAPTERS)


def test_options_page_states_every_option_and_its_default():
    core = importlib.import_module("lowrank_core")
    text = text_of("options.md")
    for title, config in (("DCT-AdamW", core.DCTAdamWConfig), ("Trion", core.TrionConfig)):
        section = text.split(f"\n## Options of {title}\n")[1].split("\n## ")[0]
        stated = dict(
            re.findall(r"^\| `(\w+)` \| (?:`([^`]+)`|required) \|", section, re.MULTILINE)
        )
        defaults = {
            field.name: "" if field.default is dataclasses.MISSING else repr(field.default)
            for field in dataclasses.fields(config)
        }
        assert {name: value.replace('"', "'") for name, value in stated.items()} == defaults


def test_tests_that_the_documentation_names_exist():
    named = set()
    for name in PAGES:
        named |= set(re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text_of(name)))
    for file, test in named:
        assert (ROOT / file).is_file(), file
        if test:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert f"\ndef {test}(" in source, f"{file}::{test}"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The pictures as `docs/pictures.py` draws them now."""
    folder = tmp_path_factory.mktemp("pictures")
    subprocess.run(
        [sys.executable, "-W", "error", str(DOCS / "pictures.py"), str(folder)],
        capture_output=True,
        timeout=120,
        check=True,
    )
    return folder


def test_pictures_are_what_their_script_draws(drawn):
    pyplot = importlib.import_module("matplotlib.pyplot")
    np = importlib.import_module("numpy")
    names = sorted(path.name for path in drawn.iterdir())
    assert names
    assert names == sorted(path.name for path in (DOCS / "_static").glob("*.png"))
    for name in names:
        new, committed = (pyplot.imread(folder / name) for folder in (drawn, DOCS / "_static"))
        assert new.shape == committed.shape, name
        # Versions of Matplotlib smooth edges differently; one bar that moved is more than this.
        assert float(np.mean(np.abs(new - committed))) < 2e-3, name


def test_pictures_are_shown_and_small():
    text = "".join(map(text_of, PAGES))
    for picture in (DOCS / "_static").glob("*.png"):
        assert f"_static/{picture.name}" in text
        assert picture.stat().st_size < 150_000

"""The documentation is true: its code runs and prints what it says, its names exist, its pictures are current."""

import dataclasses
import importlib
import json
import re
import statistics
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PUBLIC = (
    *("lowrank_core", "lowrank_torch", "lowrank_torch.plan", "lowrank_torch.plot"),
    *("lowrank_jax", "lowrank_jax.plot"),
)
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


# What a newcomer copies first; the code of all other pages takes minutes.
FIRST = ("README.md", "install.md", "quickstart-pytorch.md", "quickstart-jax.md", "core.md")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FIRST else pytest.mark.slow)
        for name in PAGES
        if code_of(name)
    ],
)
def test_code_of_page_runs_and_prints_what_it_says(name):
    for block, printed in snippets.printed_by(name, text_of(name)):
        assert printed == block.source, f"{name}, line {block.line}: run docs/snippets.py"


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "quickstart-pytorch.md",
        "quickstart-jax.md",
        "fine-tune.md",
        "core.md",
        "options.md",
    ],
)
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


def test_block_runs_after_the_first_of_its_page_alone():
    text = page("""\
        ~~~python
        x = 1
        ~~~
        ~~~python
        y = x
        print(y)
        ~~~
        <!-- output -->
        ~~~text
        3
        ~~~
        """)
    assert [printed for _, printed in snippets.printed_by("some.md", text)] == ["1\n"]
    assert snippets.rewritten("some.md", text) == text.replace("3\n", "1\n")
    needs_the_second = text + "~~~python\nprint(y)\n~~~\n".replace("~~~", "```")
    with pytest.raises(snippets.PageError, match="name 'y' is not defined"):
        list(snippets.printed_by("some.md", needs_the_second))


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


def test_quick_start_begins_with_the_example_of_the_readme():
    assert code_of("quickstart-pytorch.md")[0].startswith(code_of("README.md")[0])


# References are looked up and not read; the list of defects and the benchmarks are records.
LONG = {"options.md", "differences.md", "benchmarks.md", "reliability.md"}


@pytest.mark.parametrize("name", [name for name in PAGES if name not in LONG])
def test_page_is_short(name):
    text = re.sub(r"^```.*?^```", "", text_of(name), flags=re.MULTILINE | re.DOTALL)
    # The bars of a table are no words.
    words = re.findall(r"\S*\w\S*", text)
    assert len(words) <= 1500, len(words)


@pytest.mark.parametrize("name", PAGES)
def test_code_is_no_wider_than_the_column(name):
    marked = re.compile(r"<!-- command: [\w-]+ -->\n\Z")
    for match in snippets.FENCE.finditer(text_of(name)):
        if match[1] in ("python", "bash", "text") and not marked.search(
            text_of(name), 0, match.start()
        ):
            # What a page prints is not held by the formatter: 90 characters are what the column has room for.
            limit = {"text": 90}.get(match[1], 84 if name == "README.md" else 88)
            assert max(map(len, match[2].splitlines())) <= limit, match[2]


def test_every_page_is_in_the_sidebar_once():
    index = text_of("index.md")
    listed = re.findall(
        r"^([\w-]+)$", "".join(re.findall(r"```{toctree}(.*?)```", index, re.DOTALL)), re.MULTILINE
    )
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert sorted(listed) == sorted(pages)


@pytest.fixture
def searched(monkeypatch):
    """For each page the phrases by which the search finds it first."""
    monkeypatch.syspath_prepend(str(DOCS))
    found = importlib.import_module("conf").SEARCHED
    sys.modules.pop("conf")
    return {f"{page}.md": phrases.split(", ") for page, phrases in found.items()}


def test_phrases_of_the_search_name_pages_that_exist(searched):
    assert set(searched) <= set(PAGES)


@pytest.mark.parametrize(
    ("task", "page"),
    [
        ("train", "quickstart-pytorch.md"),
        ("fine-tune", "fine-tune.md"),
        ("how much memory for a 7B", "memory.md"),
        ("which options for half of AdamW's memory", "choose.md"),
        ("resume", "checkpoints.md"),
        ("shard over 8 GPUs", "distributed.md"),
        ("migrate from GaLore", "migrate.md"),
        ("loss does not move", "tune.md"),
    ],
)
def test_task_is_two_clicks_from_code_that_runs(searched, task, page):
    assert [name for name, phrases in searched.items() if task in phrases] == [page]
    # The page about tasks is the first of the sidebar.
    assert f"]({page}" in text_of("tasks.md")
    assert code_of(page)


def test_fine_tuning_table_is_what_was_measured():
    runs = json.loads((DOCS / "results" / "finetune.json").read_text(encoding="utf-8"))["runs"]
    counts = Counter((run["method"], run["rate"]) for run in runs)
    told = [tried for tried, count in counts.items() if count == 3]
    assert {"AdamW", "DCT-AdamW", "Trion", "LoRA"} <= {method for method, _ in told}
    for method, rate in told:
        own = [run for run in runs if (run["method"], run["rate"]) == (method, rate)]
        found = [run["accuracy"] for run in own]
        assert sorted(run["seed"] for run in own) == [0, 1, 2]
        numbers = (
            f"{statistics.fmean(found):.3f}",
            f"{min(found):.3f}-{max(found):.3f}",
            f"{own[0]['state_bytes'] / 1e6:.1f}",
            f"{own[0]['trained_numbers'] / 1e6:.2f}",
        )
        assert f"| {' | '.join(numbers)} |" in text_of("fine-tune.md"), method


@pytest.mark.parametrize("name", [name for name in PAGES if "$" in text_of(name)])
def test_formulas_become_mathml_whole(name):
    convert = importlib.import_module("latex2mathml.converter").convert
    prose = re.sub(r"^```.*?^```|`[^`]*`", "", text_of(name), flags=re.MULTILINE | re.DOTALL)
    for formula in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", prose, re.DOTALL):
        made = convert("".join(formula))
        assert "\\" not in made, formula


def test_options_of_other_optimizers_are_on_the_page_about_migrating():
    names = importlib.import_module("lowrank_core.option_names")
    text = text_of("migrate.md")
    missing = [option for option in names.FOREIGN if not re.search(rf"`{option}\b", text)]
    assert not missing


def api_names():
    text = "".join(text_of(name) for name in PAGES if name.startswith("api-"))
    return re.findall(r"^\.\. auto(?:function|class|data):: (\S+)$", text, re.MULTILINE)


def test_every_public_name_is_on_an_api_page_and_no_other():
    public = {
        f"{package}.{name}"
        for package in PUBLIC
        for name in getattr(importlib.import_module(package), "__all__", ())
        if not name.startswith("__")
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
        named |= set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text_of(name)))
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

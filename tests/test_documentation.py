"""The documentation is run: examples in docstrings, code and command lines of README and CONTRIBUTING, links, citation."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import pytest
from click.testing import CliRunner

import figures.__main__
import numerics.cli.anatomy
import numerics.cli.neurons
import numerics.cli.predict
import numerics.cli.program
import numerics.cli.simulate
import numerics.cli.solve
import numerics.cli.sweep
import numerics.phase_diagram
import numerics.random_box
import theory.__main__
import theory.losses
from figures.build import FIGURES
from numerics.solution.observables.registry import REGISTRY, forget
from theory.losses import BUILT_IN

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md")

NAMESAKES = {"numerics.solve", "numerics.simulate", "numerics.sweep"}
"""Modules that are functions of the same name once imported; what they hold is tested where it is defined."""

OPTIONAL = {"numerics.explorer": "ipywidgets", "numerics.predict.estimators": "sklearn"}
"""Modules that need an extra, and the package they need."""

ALSO_SHOWN = (
    "numerics.optimize.optimize",
    "numerics.optimize.derivatives",
    "numerics.schedules.optimal_schedule",
    "numerics.neurons.exact.neurons_needed",
    "numerics.sweeps.axes.spaced",
    "numerics.problem.read_problem",
    "numerics.problem.write_problem",
)
"""What users meet beside the public names of the packages and the losses."""

COMMANDS = {
    "numerics": numerics.cli.program.main,
    "numerics.solve": numerics.cli.solve.solve_command,
    "numerics.simulate": numerics.cli.simulate.simulate_command,
    "numerics.sweep": numerics.cli.sweep.sweep_command,
    "numerics.phase_diagram": numerics.phase_diagram.main,
    "numerics.random_box": numerics.random_box.main,
    "numerics.neurons": numerics.cli.neurons.neurons_command,
    "numerics.anatomy": numerics.cli.anatomy.anatomy_command,
    "numerics.predict": numerics.cli.predict.predict_command,
    "figures": figures.__main__.main,
    "theory": theory.__main__.main,
}
"""Modules that are run with ``python -m``."""

TOOLS = {"venv", "pytest"}
"""Those of others."""

LONG = (
    r"numerics\.phase_diagram( --committed)?",  # the main figure
    r"numerics\.phase_diagram .*--y .*",  # a heat map takes longer to draw than all the rest
    r"numerics\.random_box .*",
    r"numerics\.neurons",  # minutes of training
    r"numerics\.predict (FILE|.*--choose.*)",  # a file that one has; half a minute of fits
    r"figures .*",
    r"numerics .*",  # runs another one in its own process
    r"theory",
)
"""Command lines whose flags are checked, but that are not run here."""


# Examples in docstrings.


def modules_with_examples() -> list[str]:
    """Names of the modules of the three packages in which there is an example."""
    found = []
    for package in ("theory", "numerics", "figures"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if name not in NAMESAKES and ">>>" in path.read_text(encoding="utf-8"):
                found.append(name)
    return found


def imported(name: str) -> ModuleType:
    """A module; the test is skipped if it needs a package that is not installed."""
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    return importlib.import_module(name)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings(name: str, monkeypatch, tmp_path: Path) -> None:
    module = imported(name)
    monkeypatch.chdir(tmp_path)
    report = io.StringIO()
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        doctest.DocTestRunner(verbose=False).run(example, out=report.write)
    assert not report.getvalue(), report.getvalue()


def public_names() -> list[str]:
    """Dotted names of all that must have an example."""
    packages = [f"{package.__name__}.{name}" for package in (numerics, theory) for name in package.__all__]
    losses = [
        f"theory.losses.{name}"
        for name, found in vars(theory.losses).items()
        if inspect.isclass(found) and found.__module__ == "theory.losses"
    ]
    return sorted({*packages, *losses, *ALSO_SHOWN})


@pytest.mark.parametrize("name", public_names())
def test_public_names_have_examples(name: str) -> None:
    owner, _, last = name.rpartition(".")
    value = getattr(importlib.import_module(owner), last)
    if inspect.isclass(value) or callable(value):
        text = inspect.getdoc(value)
    else:  # a constant: shown by the module that defines it
        text = inspect.getdoc(importlib.import_module(f"{owner}.{numerics._HOME[last]}"))
        assert text is not None
        assert last in text
    assert text is not None, f"{name} has no docstring"
    assert re.search(r"Examples\n-{8}\n+(.*\n+)*?>>> ", text), f"{name} has no section of examples"


# The pages.


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, text and first line."""

    language: str
    text: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    """All fenced blocks, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        yield Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1)


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def command_lines(page: str) -> list[tuple[str, list[str]]]:
    """(module, arguments) of everything called ``python -m MODULE ...``, in blocks and between backticks."""
    lines = [line for block in blocks(page) if not block.language for line in block.text.splitlines()]
    lines += [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose(page))]
    found = []
    for line in lines:
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            for k, word in enumerate(words[:-2]):
                if re.fullmatch(r"(\S*/)?python3?", word) and words[k + 1] == "-m":
                    found.append((words[k + 2], words[k + 3 :]))
    return found


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """Take away what the pages add to the lists of figures, losses and observables, and their open pictures."""
    before, observables = (dict(FIGURES), dict(BUILT_IN)), set(REGISTRY)
    try:
        yield
    finally:
        for registry, content in zip((FIGURES, BUILT_IN), before, strict=True):
            registry.clear()
            registry.update(content)
        for name in set(REGISTRY) - observables:
            forget(name)
        plt.close("all")


SHOWN = re.compile(r"^print\(.*\)  # (.*)$", re.M)
"""A line that says what it prints."""


def run_code(page: str) -> None:
    """Run the Python blocks of a page in one namespace; what a line says it prints must be what it prints."""
    space: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language != "python":
            continue
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.text, page, "exec", dont_inherit=True)
        with contextlib.redirect_stdout(printed):
            exec(code, space)
        expected = SHOWN.findall(block.text)
        assert len(expected) == len(re.findall(r"^print\(", block.text, re.M)), f"{page}:{block.line}: a silent print"
        assert printed.getvalue().splitlines() == expected, f"{page}:{block.line}"


@pytest.mark.parametrize("page", PAGES)
def test_code_and_commands(page: str, monkeypatch, tmp_path: Path) -> None:
    """Commands run after the code, in the same folder: they may read what it wrote."""
    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    with as_it_was():
        run_code(page)
        found = command_lines(page)
        assert found
        for module, arguments in found:
            if module in TOOLS:
                continue
            command, line = COMMANDS[module], shlex.join([module, *arguments])
            # Parsing finds unknown flags and values of the wrong type.
            with command.make_context(module, list(arguments)) as context:
                assert set(context.params.get("names", ())) <= set(FIGURES), line
            if any(re.fullmatch(pattern, line) for pattern in LONG):
                continue
            result = CliRunner().invoke(command, arguments)
            assert result.exit_code == 0, f"{line}: {result.output}"


@pytest.mark.parametrize("page", PAGES)
def test_tools_of_others_are_given_what_exists(page: str) -> None:
    for module, arguments in command_lines(page):
        assert module in {*COMMANDS, *TOOLS}, module
        if module == "pytest":
            for argument in arguments:
                assert not argument.startswith("tests/") or (ROOT / argument).exists(), argument


@pytest.mark.parametrize("page", PAGES)
def test_flags_that_are_mentioned_exist(page: str) -> None:
    known = {flag for command in COMMANDS.values() for option in command.params for flag in option.opts}
    for flag in re.findall(r"`(--[\w-]+)", prose(page)):
        assert flag in known, flag


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "figures/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


PLACES = re.compile(r"`((?:theory|numerics|figures|notebooks|tests)/[\w./]*)`")


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_that_are_mentioned_exist(page: str) -> None:
    text = prose(page)
    for place in PLACES.findall(text):
        assert (ROOT / place).exists(), place
    for name in re.findall(r"`((?:theory|numerics|figures)(?:\.\w+)+)", text):
        if name.endswith(".py"):
            continue
        owner, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(owner), last) or importlib.util.find_spec(name), name


def test_extras_that_are_mentioned_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r'pip install -e "\.\[(\w+)\]"', text)) <= set(project["optional-dependencies"])
    assert all(f"`{extra}`" in text for extra in project["optional-dependencies"])


def test_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    entry = next(block.text for block in blocks("README.md") if block.language == "bibtex")
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
    assert f"version = {{{project['version']}}}" in entry
    assert "The replica-distillation developers" in citation
    assert "The replica-distillation developers" in entry


def test_continuous_integration_finds_its_command() -> None:
    """``.ci/run`` takes the test command from between two marks of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"<!-- tests -->\n```\n(.*)\n```\n<!-- /tests -->", text)
    assert len(found) == 1
    assert '".[test]"' in found[0]
    assert found[0].endswith("-m pytest")

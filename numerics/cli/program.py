"""The commands of the packages under one name: ``replica-distillation``, or ``python -m numerics``.

A command is what ``python -m`` runs: a package with a ``__main__``, or a module of ``numerics`` that asks whether it is the main
one.  Both are looked for where the packages are, so that a new one is found without being listed anywhere.
"""

from __future__ import annotations

import ast
import importlib.util
import runpy
import sys
from pathlib import Path

import click

from theory.terminal import Command

PACKAGES = ("numerics", "theory", "figures")
"""Packages whose commands are found; those of ``numerics`` are called without its name."""

_GUARD = 'if __name__ == "__main__":'


def commands() -> dict[str, str]:
    """Modules that may be run, by the name of their command, in alphabetical order."""
    found = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        folder = Path(spec.origin).parent if spec and spec.origin else None
        if folder is None:
            continue
        if package != __name__.partition(".")[0]:
            found |= {package: package} if (folder / "__main__.py").is_file() else {}
            continue
        places = [path for path in folder.glob("*.py") if _GUARD in path.read_text(encoding="utf-8")]
        places += [path.parent for path in folder.glob("*/__main__.py")]
        found |= {path.stem: f"{package}.{path.stem}" for path in places if path.stem != "__main__"}
    return dict(sorted(found.items()))


def summary(module: str) -> str:
    """What the docstring of a command says behind its name; the module is read, not imported."""
    spec = importlib.util.find_spec(module)
    path = Path(spec.origin)
    path = path.with_name("__main__.py") if path.name == "__init__.py" else path
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    text = first.partition(": ")[2] or first
    return text[:1].upper() + text[1:]


class Program(Command):
    """A command whose help lists the others."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(module)) for name, module in commands().items()])


@click.command(
    cls=Program,
    context_settings={
        "help_option_names": ["-h", "--help"], "ignore_unknown_options": True, "allow_interspersed_args": False,
        "max_content_width": 100,
    },
)  # fmt: skip
@click.argument("name", required=False, metavar="[COMMAND]")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
@click.pass_context
def main(context: click.Context, name: str | None, arguments: tuple[str, ...]) -> None:
    """Theory and simulation of knowledge distillation in high dimensions.

    Runs a COMMAND, which is python -m numerics.COMMAND, theory or figures; COMMAND --help says what it takes.
    """
    if name is None:
        click.echo(context.get_help())
        return
    known = commands()
    if name not in known:
        raise click.UsageError(f"no command {name!r}; there are {', '.join(known)}")
    sys.argv = [sys.argv[0], *arguments]
    runpy.run_module(known[name], run_name="__main__", alter_sys=True)

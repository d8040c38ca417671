"""Run `python -m tools.docs [DIR]` to write the API reference into DIR, web pages from docstrings.

Needs the extra `docs`, and the checkout installed (`pip install -e '.[docs]'`).
"""

from importlib import import_module
from pathlib import Path

import click
import pdoc

from jasper_mmap.console import Command, run

MODULES = ("jasper_mmap", "jasper_mmap.errors", "jasper_converters")
"""The modules with a page: the public interface, under the installed names."""


def build(folder: Path) -> None:
    """Write a page for each of MODULES, and an index, into `folder`."""
    for name in MODULES:
        module = import_module(name)
        for public in getattr(module, "__all__", ()):
            # A name that is imported when it is first used is not in the module yet, where pdoc
            # looks for it.
            setattr(module, public, getattr(module, public))
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*MODULES, output_directory=folder)


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path), default="build/api")
def command(folder: Path) -> None:
    """Write the API reference into DIR (build/api by default)."""
    build(folder)
    click.echo(folder / "index.html")


if __name__ == "__main__":
    run(command)

"""Write the reference: browsable pages of purenn and bridge, made of signatures and docstrings.

    python tests/reference_pages.py                  # to runs/reference; open its index.html
    python tests/reference_pages.py FOLDER MODULE... # of some modules only

pdoc does the work: `pip install pdoc`.
"""

import importlib
import inspect
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pdoc
import pdoc.render

# Functions with the names of the files that they are in are no modules of their own.
EVERYTHING = ("purenn", "bridge", r"!purenn\.(layers|models)\..+", "purenn.layers.capsule", r"!.*\.capsule\..+")


def show_fields(cls: type) -> None:
    """Give a container class a constructor that says its fields, which is where pdoc looks for them.

    All containers share one constructor, and only ``inspect.signature(cls)`` knows what it takes.
    """

    def construct(self: Any, *args: Any, **kwargs: Any) -> None: ...

    fields = inspect.signature(cls)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    shown: Any = construct
    shown.__signature__ = fields.replace(parameters=[itself, *fields.parameters.values()])
    cls.__init__ = construct


def write(folder: Path, modules: Sequence[str] = EVERYTHING) -> None:
    """Write the pages; a warning of pdoc is an error."""
    for name in modules:
        if not name.startswith("!"):
            importlib.import_module(name)
    packages = [module for name, module in sys.modules.items() if name.split(".")[0] in ("purenn", "bridge")]
    classes = {value for module in packages for value in vars(module).values() if isinstance(value, type)}
    for cls in classes:
        if "__signature__" in vars(cls):
            show_fields(cls)
    pdoc.render.configure(docformat="google", show_source=False, footer_text=f"purenn {package_version()}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pdoc.pdoc(*modules, output_directory=folder)


def package_version() -> str:
    """The version of the package that is described."""
    return importlib.import_module("purenn").__version__


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/reference")
    write(target, sys.argv[2:] or EVERYTHING)
    print(f"wrote {len(list(target.rglob('*.html')))} pages: open {target / 'index.html'}")

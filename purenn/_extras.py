"""Libraries that only some parts need: imported when such a part is used, with an error that says what to install."""

import importlib
from typing import Any

from purenn.errors import MissingExtraError


def imported(name: str, where: str, does: str, library: str, extra: str) -> Any:
    """The module `name` of a library that is optional.

    Args:
        name: of the module.
        where: the function that needs it, for the error.
        does: what the library does for it: "figures are drawn by".
        library: its name for people.
        extra: the extra of this package that brings it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{where}: {does} the library {library}, which is not installed: pip install 'purenn[{extra}]'."
        ) from error

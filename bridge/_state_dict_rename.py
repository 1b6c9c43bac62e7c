"""Other names for the tensors of a state dict."""

from collections.abc import Callable, Mapping
from typing import Any

from purenn.errors import CheckpointError
from purenn.tree._checks import a_or_an

#: Beginnings of names to what stands there instead, or a function of the name.
Rename = Mapping[str, str] | Callable[[str], str | None]


def renamed(tensors: Mapping[str, Any], rename: Rename | None) -> tuple[dict[str, Any], list[str]]:
    """The tensors under their new names, and a line for each name that two of them would have."""
    _require_rules(rename)
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    problems = []
    for old, value in tensors.items():
        new = _new_name(old, rename)
        if new is None:
            continue
        if new in found:
            problems.append(f"renamed: {origin[new]} and {old} both become {new}")
            continue
        found[new], origin[new] = value, old
    return found, problems


def _require_rules(rename: Any) -> None:
    if isinstance(rename, Mapping):
        wrong = next((rule for rule in rename.items() if not all(isinstance(name, str) for name in rule)), None)
        if wrong is not None:
            raise CheckpointError(f"load_state_dict: rename must map names to names, got {wrong[0]!r}: {wrong[1]!r}.")
    elif not (rename is None or callable(rename)):
        raise CheckpointError(f"load_state_dict: rename must be a dict of names or a function, got {a_or_an(rename)}.")


def unused_rules(tensors: Mapping[str, Any], rename: Rename | None) -> list[str]:
    """A line for each beginning that no name has."""
    if rename is None or not isinstance(rename, Mapping):
        return []
    return [f"rename: no name begins with {old!r}" for old in rename if not any(_begins(name, old) for name in tensors)]


def _new_name(name: str, rename: Rename | None) -> str | None:
    if rename is None:
        return name
    if not isinstance(rename, Mapping):
        new = rename(name)
        if not (new is None or isinstance(new, str)):
            raise CheckpointError(f"load_state_dict: rename({name!r}) must be a name or None, got {new!r}.")
        return new
    hits = [old for old in rename if _begins(name, old)]
    if not hits:
        return name
    old = max(hits, key=len)
    rest = name[len(old) :].removeprefix(".")
    return ".".join(part for part in (rename[old].removesuffix("."), rest) if part)


def _begins(name: str, beginning: str) -> bool:
    # In whole parts: "layer1" is no beginning of "layer10.weight".
    whole = beginning.removesuffix(".")
    return not whole or name == whole or name.startswith(f"{whole}.")

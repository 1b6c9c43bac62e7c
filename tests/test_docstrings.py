"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import bridge
import purenn


def modules() -> list[str]:
    """All modules of both packages."""
    found = []
    for package in (purenn, bridge):
        found.append(package.__name__)
        found += [info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return found


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    """Every example of the module gives the output written below it."""
    if name.endswith("_triton_kernels"):
        pytest.importorskip("triton")
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0

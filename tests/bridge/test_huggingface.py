"""`bridge.from_module` on models of Hugging Face's transformers, if that is installed.

One setting of each architecture; ``python -m tests.bridge huggingface`` checks all of them and prints a table.
"""

import warnings
from collections.abc import Iterator

import pytest

pytest.importorskip("transformers")

from _huggingface import CHECKS, make, settings
from _huggingface_models import ARCHITECTURES

import bridge


@pytest.fixture(autouse=True)
def _their_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name: str) -> None:
    """Values, gradients, per-sample gradients and ensembles of a tiny model are those of the model and of loops."""
    *_, last = settings(name)
    one = make(name, *last)
    p = bridge.from_module(one.model)
    for check in CHECKS.values():
        check(one, p)

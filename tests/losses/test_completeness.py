"""Every loss of torch.nn is here, as a container and as a function."""

import inspect

import pytest
from torch import nn

import purenn as pn
from purenn import losses

# A deprecated alias of NLLLoss.
LEFT_OUT = {"NLLLoss2d"}
CLASSES = [
    name
    for name, cls in inspect.getmembers(nn, inspect.isclass)
    if cls.__module__ == "torch.nn.modules.loss" and name not in LEFT_OUT
]


@pytest.mark.parametrize("name", CLASSES)
def test_row_43_class_of_torch(name: str) -> None:
    """The container has torch's name, a description of each field, and parameters only if the module has any."""
    cls = getattr(losses, name)
    assert name in losses.__all__
    fields = list(inspect.signature(cls).parameters)
    assert all(f"{field}:" in cls.__doc__ for field in fields)
    if name == "LinearCrossEntropyLoss":
        assert list(pn.tree.leaves(cls.init(pn.random.key(0), 3, 4)))
    else:
        assert not pn.tree.leaves(cls())


def test_names() -> None:
    """What is exported is what the package says, in order."""
    assert sorted(losses.__all__) == list(losses.__all__)
    assert all(hasattr(losses, name) for name in losses.__all__)

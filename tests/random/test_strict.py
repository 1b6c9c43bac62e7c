"""The reuse guard: what counts as using a key twice, and what it says."""

import contextvars
import inspect
import threading

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import purenn as pn
from purenn.errors import ArgumentError, KeyReuseError


def line() -> int:
    """The line of the caller."""
    return inspect.currentframe().f_back.f_lineno


def message(first: int, second: int) -> str:
    """The whole text of the error, given the lines of both uses in this file."""
    return (
        f"a random key was used twice: first at {__file__}:{first}, then at {__file__}:{second}; give each use a key "
        "of its own: first, second = purenn.random.split(key)"
    )


def test_second_draw_raises_naming_both_places(device):
    """Two draws from one key raise, with the lines of both."""
    with pn.random.strict():
        key = pn.random.key(0, device)
        first = line() + 1
        pn.random.normal(key, 3)
        with pytest.raises(KeyReuseError) as caught:
            pn.random.uniform(key, 5)
        second = line() - 1
    assert str(caught.value) == message(first, second)


@pytest.mark.parametrize("use", [pn.random.split, lambda key: pn.random.permutation(key, 3)])
def test_every_use_counts(use, device):
    """Splitting is a use like a draw, before it and after it; an equal key made anew is the same key."""
    for first, second in ((use, pn.random.split), (pn.random.split, use)):
        with pn.random.strict():
            first(pn.random.key(0, device))
            with pytest.raises(KeyReuseError):
                second(pn.random.key(0, device))


def test_keys_used_once_pass(device):
    """Children of one key, and keys folded with different data, may each be used, beside the key itself."""
    with pn.random.strict():
        key = pn.random.key(0, device)
        for child in pn.random.split(key, 3):
            pn.random.normal(child, 2)
        other = pn.random.key(1, device)
        for step in (0, 1, torch.tensor(2)):
            pn.random.normal(pn.random.fold_in(other, step), 2)
        pn.random.normal(other, 2)


def test_same_data_twice_raises(device):
    """Folding the same data into a key twice gives the same key, so it is a reuse, as an integer or a tensor."""
    with pn.random.strict():
        key = pn.random.key(0, device)
        first = line() + 1
        pn.random.fold_in(key, 3)
        with pytest.raises(KeyReuseError) as caught:
            pn.random.fold_in(key, torch.tensor(3))
        second = line() - 1
    assert str(caught.value) == message(first, second)


@pytest.mark.parametrize(
    "refused",
    [
        lambda key: pn.random.bits(key, -1),
        lambda key: pn.random.bits(key, 2**40),
        lambda key: pn.random.split(key, -1),
        lambda key: pn.random.categorical(key, torch.zeros(2, 3), shape=3),
        lambda key: pn.random.bernoulli(key, 3, p=torch.ones(2)),
    ],
)
def test_refused_call_is_no_use(refused):
    """A call that raises for its arguments leaves the key to be used."""
    key = pn.random.key(0)
    with pn.random.strict():
        with pytest.raises(ArgumentError):
            refused(key)
        pn.random.normal(key, 2)


def test_guard_ends_with_its_block():
    """Outside the block, and after an error in it, keys may be used again."""
    key = pn.random.key(0)

    @pn.random.strict()
    def twice():
        pn.random.normal(key, 2)
        pn.random.normal(key, 2)

    with pytest.raises(KeyReuseError):
        twice()
    pn.random.normal(key, 2)
    with pn.random.strict():
        pn.random.normal(key, 2)


def test_inner_block_continues_the_outer():
    """A block within a block remembers what the outer one saw, unless it is switched off."""
    key = pn.random.key(0)
    with pn.random.strict():
        pn.random.normal(key, 2)
        with pn.random.strict(enabled=False):
            pn.random.normal(key, 2)
        with pytest.raises(KeyReuseError), pn.random.strict():
            pn.random.normal(key, 2)


def test_under_vmap_every_key_counts(device):
    """Batched keys are compared one by one, in any batch dimension, against each other and with single keys."""
    keys = pn.random.split(pn.random.key(0, device), 4)
    with pn.random.strict():
        torch.vmap(lambda key: pn.random.normal(key, 2), in_dims=1)(keys.T)
        with pytest.raises(KeyReuseError):
            pn.random.normal(keys[2], 2)
    with pn.random.strict(), pytest.raises(KeyReuseError):
        torch.vmap(lambda key: pn.random.normal(key, 2))(keys[:1].expand(3, -1))
    with pn.random.strict():
        nested = torch.vmap(torch.vmap(lambda key: pn.random.normal(key, 2)), in_dims=1)
        nested(keys.reshape(2, 2, 2))
        with pytest.raises(KeyReuseError):
            pn.random.split(keys[3])
    with pn.random.strict():
        steps = torch.arange(3, device=device)
        torch.vmap(pn.random.fold_in, in_dims=(None, 0))(keys[0], steps)
        with pytest.raises(KeyReuseError):
            pn.random.fold_in(keys[0], 2)


def test_inside_grad():
    """A key that a gradient level wraps is known by its values."""

    def loss(x, key):
        return (x * pn.random.normal(key, 2)).sum()

    key = pn.random.key(0)
    with pn.random.strict():
        torch.func.grad(loss)(torch.ones(2), key)
        with pytest.raises(KeyReuseError):
            torch.func.grad(loss)(torch.ones(2), key)


def test_traced_keys_are_known_by_object():
    """In a trace, where keys have no values yet, the same tensor used twice raises; children of a split do not."""

    def twice(key):
        return pn.random.normal(key, 2) + pn.random.normal(key, 2)

    def once(key):
        first, second = pn.random.split(key)
        return pn.random.normal(first, 2) + pn.random.normal(pn.random.fold_in(second, 1), 2)

    def folded(key):
        return pn.random.fold_in(key, 1) + pn.random.fold_in(key, 1)

    key = pn.random.key(0)
    with pn.random.strict():
        make_fx(once, tracing_mode="fake")(key)
        for function in (twice, folded):
            with pytest.raises(KeyReuseError):
                make_fx(function, tracing_mode="fake")(key)


def test_compiled_code_runs_unchecked():
    """torch.compile takes functions with draws while the guard is on."""
    torch._dynamo.reset()
    key = pn.random.key(0)
    with pn.random.strict():
        drawn = torch.compile(lambda key: pn.random.normal(key, 3), backend="eager", fullgraph=True)(key)
    assert torch.equal(drawn, pn.random.normal(key, 3))


def test_guard_belongs_to_its_thread():
    """Another thread is not guarded, unless it runs in a copy of the context; then it shares the record."""
    key, caught = pn.random.key(0), []

    def use():
        try:
            pn.random.normal(key, 2)
        except KeyReuseError as error:
            caught.append(error)

    with pn.random.strict():
        pn.random.normal(key, 2)
        for target, arguments in ((use, ()), (contextvars.copy_context().run, (use,))):
            thread = threading.Thread(target=target, args=arguments)
            thread.start()
            thread.join()
    assert len(caught) == 1


def test_places_skip_the_library():
    """A draw inside a layer is blamed on the line that calls the layer."""
    key = pn.random.key(0)
    with pn.random.strict():
        first = line() + 1
        pn.initializers.xavier_uniform(key, (2, 3))
        with pytest.raises(KeyReuseError) as caught:
            pn.initializers.normal(key, 2)
        second = line() - 1
    assert str(caught.value) == message(first, second)

"""The Transformer: torch's layers, stacks and whole model, for every option, mask and derivative."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _reference import check_equals_module, filled, numbers, same
from _transformations import check_purity, check_transformations
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import bridge
import purenn as pn
from purenn import layers, ops

SMALL: dict[str, Any] = {"d_model": 4, "nhead": 2, "dim_feedforward": 6, "dropout": 0.1}
ACTIVATIONS: dict[str, Any] = {"relu": "relu", "gelu": "gelu", "function": torch.tanh}


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


def chosen(*shape: int, seed: int, device: torch.device) -> Tensor:
    """A boolean mask that is never True in the last column."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask[..., -1] = False
    return mask.to(device)


def in_evaluation(module: nn.Module, device: torch.device) -> nn.Module:
    """The module without dropout, with numbers that are not ones and zeros in all parameters."""
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = numbers(*parameter.shape, seed=seed).to(parameter) / 2
    return module.to(device).eval()


def shaped(batch: int | None, length: int, batch_first: bool, seed: int, device: torch.device) -> Tensor:
    """An input in the order of dimensions that a layer takes."""
    if batch is None:
        return numbers(length, 4, seed=seed, device=device)
    return numbers(*((batch, length) if batch_first else (length, batch)), 4, seed=seed, device=device)


OPTIONS = st.fixed_dictionaries(
    {
        "activation": st.sampled_from(list(ACTIVATIONS)),
        "norm_first": st.booleans(),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "layer_norm_eps": st.sampled_from([1e-5, 0.1]),
    }
)
BATCH = st.sampled_from([None, 1, 2])


def made(container: Any, options: dict[str, Any], device: torch.device, **rest: Any) -> tuple[Any, dict[str, Any]]:
    """A container, and the options of torch's module of that name."""
    both = {**SMALL, **options, "activation": ACTIVATIONS[options["activation"]], "dtype": torch.float64}
    return container.init(key(device), **both, **rest), both


@given(options=OPTIONS, batch=BATCH, mask=st.sampled_from([None, "boolean", "floating"]), padding=st.booleans())
def test_encoder_layer_equals_torch(
    options: dict[str, Any], batch: int | None, mask: str | None, padding: bool, device: torch.device
) -> None:
    """Value, gradients, second gradients and names are torch's, for all options and masks."""
    p, both = made(layers.TransformerEncoderLayer, options, device)
    module = in_evaluation(nn.TransformerEncoderLayer(**both), device)
    masks: dict[str, Any] = {}
    if mask is not None:
        masks["src_mask"] = chosen(3, 3, seed=1, device=device)
    if padding:
        masks["src_key_padding_mask"] = chosen(*(() if batch is None else (batch,)), 3, seed=2, device=device)
    if mask == "floating":
        masks = {
            name: numbers(*value.shape, seed=3, device=device).masked_fill(value, -math.inf)
            for name, value in masks.items()
        }
    x = shaped(batch, 3, options["batch_first"], 0, device)
    check_equals_module(p, layers.transformer_encoder_layer, module, x, second_order=False, tolerance=1e-9, **masks)
    with sdpa_kernel(SDPBackend.MATH):
        check_equals_module(p, layers.transformer_encoder_layer, module, x, tolerance=1e-9, **masks)


@given(options=OPTIONS, batch=BATCH, masked=st.booleans(), padding=st.booleans())
def test_row_39_decoder_layer_equals_torch(
    options: dict[str, Any], batch: int | None, masked: bool, padding: bool, device: torch.device
) -> None:
    """So is a decoder layer's, with masks of the target and of the memory."""
    p, both = made(layers.TransformerDecoderLayer, options, device)
    module = in_evaluation(nn.TransformerDecoderLayer(**both), device)
    leading = () if batch is None else (batch,)
    masks: dict[str, Any] = {}
    if masked:
        masks = {"tgt_mask": chosen(3, 3, seed=1, device=device), "memory_mask": chosen(3, 4, seed=2, device=device)}
    if padding:
        masks["tgt_key_padding_mask"] = chosen(*leading, 3, seed=3, device=device)
        masks["memory_key_padding_mask"] = chosen(*leading, 4, seed=4, device=device)
    inputs = [shaped(batch, length, options["batch_first"], length, device) for length in (3, 4)]
    function = layers.transformer_decoder_layer
    check_equals_module(p, function, module, *inputs, second_order=False, tolerance=1e-9, **masks)
    with sdpa_kernel(SDPBackend.MATH):
        check_equals_module(p, function, module, *inputs, tolerance=1e-9, **masks)


@settings(max_examples=8)
@given(options=OPTIONS, batch=BATCH, norm=st.booleans(), num_layers=st.integers(1, 3), masked=st.booleans())
def test_stacks_equal_torch(
    options: dict[str, Any], batch: int | None, norm: bool, num_layers: int, masked: bool, device: torch.device
) -> None:
    """Stacks of both kinds are torch's, with and without a last normalisation."""
    mask = {"mask": chosen(3, 3, seed=1, device=device)} if masked else {}
    x, memory = (shaped(batch, length, options["batch_first"], length, device) for length in (3, 4))
    settings_of_norm: dict[str, Any] = {"eps": options["layer_norm_eps"], "bias": options["bias"]}
    last = nn.LayerNorm(4, **settings_of_norm, dtype=torch.float64) if norm else None
    rest = {"num_layers": num_layers, "norm": norm}
    p, both = made(layers.TransformerEncoder, options, device, **rest)
    layer = nn.TransformerEncoderLayer(**both)
    module = in_evaluation(nn.TransformerEncoder(layer, num_layers, last, enable_nested_tensor=False), device)
    check_equals_module(p, layers.transformer_encoder, module, x, second_order=False, tolerance=1e-9, **mask)
    p, _ = made(layers.TransformerDecoder, options, device, **rest)
    module = in_evaluation(nn.TransformerDecoder(nn.TransformerDecoderLayer(**both), num_layers, last), device)
    mask = {"tgt_mask": mask["mask"]} if masked else {}
    check_equals_module(p, layers.transformer_decoder, module, x, memory, second_order=False, tolerance=1e-9, **mask)


@settings(max_examples=8)
@given(options=OPTIONS, batch=BATCH, masked=st.booleans())
def test_row_39_transformer_equals_torch(
    options: dict[str, Any], batch: int | None, masked: bool, device: torch.device
) -> None:
    """The whole model is torch's, with all six masks."""
    sizes = {"num_encoder_layers": 2, "num_decoder_layers": 1}
    p, both = made(layers.Transformer, options, device, **sizes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "enable_nested_tensor is True")
        module = in_evaluation(nn.Transformer(**both, **sizes), device)
    leading = () if batch is None else (batch,)
    masks: dict[str, Any] = {}
    if masked:
        shapes = {"src_mask": (4, 4), "tgt_mask": (3, 3), "memory_mask": (3, 4)}
        padding = {"src_key_padding_mask": 4, "tgt_key_padding_mask": 3, "memory_key_padding_mask": 4}
        shapes |= {name: (*leading, length) for name, length in padding.items()}
        masks = {name: chosen(*shape, seed=i, device=device) for i, (name, shape) in enumerate(shapes.items())}
    src, tgt = (shaped(batch, length, options["batch_first"], length, device) for length in (4, 3))
    check_equals_module(p, layers.transformer, module, src, tgt, second_order=False, tolerance=1e-8, **masks)


def test_is_causal_alone(device: torch.device) -> None:
    """In every layer and stack is_causal needs no mask and means torch's causal mask."""
    causal = ~ops.causal_mask(3, device=device)
    x, memory = shaped(2, 3, True, 0, device), shaped(2, 4, True, 1, device)
    options: dict[str, Any] = {**SMALL, "batch_first": True, "dtype": torch.float64}
    layer = in_evaluation(nn.TransformerEncoderLayer(**options), device)
    p = filled(layers.TransformerEncoderLayer.init(key(device), **options), layer)
    same(layers.transformer_encoder_layer(p, x, is_causal=True), layer(x, src_mask=causal))
    decoder = in_evaluation(nn.TransformerDecoderLayer(**options), device)
    q = filled(layers.TransformerDecoderLayer.init(key(device), **options), decoder)
    same(layers.transformer_decoder_layer(q, x, memory, tgt_is_causal=True), decoder(x, memory, tgt_mask=causal))
    whole = layers.Transformer.init(key(device), num_encoder_layers=1, num_decoder_layers=1, **options)
    causal_4 = ~ops.causal_mask(4, device=device)
    across = ~ops.causal_mask(3, 4, device=device)
    same(
        layers.transformer(whole, memory, x, src_is_causal=True, tgt_is_causal=True, memory_is_causal=True),
        layers.transformer(whole, memory, x, src_mask=causal_4, tgt_mask=causal, memory_mask=across),
    )


def test_number_of_parameters(device: torch.device) -> None:
    """The published block (512, 8, 2048) has 3,152,384 parameters, and Pre-LN as many as Post-LN."""
    for norm_first in (False, True):
        p = layers.TransformerEncoderLayer.init(
            key(device), 512, 8, 2048, 0.1, activation="gelu", norm_first=norm_first, device="meta"
        )
        assert pn.tree.count(p) == 3_152_384
        assert p.norm_first is norm_first
    assert pn.tree.count(layers.Transformer.init(key(device), device="meta")) == 44_140_544


def test_init(device: torch.device) -> None:
    """Layers of a stack start with different numbers; the whole model's matrices are Xavier's; keys decide all."""
    p = layers.TransformerEncoder.init(key(device), 2, **SMALL)
    assert not torch.equal(p.layers[0].linear1.weight, p.layers[1].linear1.weight)
    assert p.norm is None
    assert pn.tree.equal(p, layers.TransformerEncoder.init(key(device), 2, **SMALL))
    whole = layers.Transformer.init(key(device), 32, 2, 1, 1, dim_feedforward=64)
    assert whole.encoder.norm is not None
    for name, leaf in pn.tree.named_leaves(whole):
        if leaf.dim() > 1:
            bound = math.sqrt(6 / sum(leaf.shape))
            assert 0.9 * bound < leaf.abs().max() <= bound, name
    silu = layers.TransformerEncoderLayer.init(key(device), **SMALL, activation=layers.SiLU())
    assert isinstance(silu.activation, layers.SiLU)


def test_dropout(device: torch.device) -> None:
    """A key draws zeros in every block, others in each; without one all is deterministic; rate 0 changes nothing."""
    options: dict[str, Any] = {**SMALL, "dropout": 0.5, "batch_first": True, "dtype": torch.float64}
    p = layers.Transformer.init(key(device), num_encoder_layers=2, num_decoder_layers=2, **options)
    src, tgt = shaped(2, 4, True, 0, device), shaped(2, 3, True, 1, device)

    def call(key: Tensor | None) -> Tensor:
        return layers.transformer(p, src, tgt, tgt_is_causal=True, key=key)

    assert torch.equal(call(None), call(None))
    keys = pn.random.split(key(device), 2)
    several = vmap(call)(keys)
    same(several, torch.stack([call(one) for one in keys]))
    assert not torch.allclose(several[0], several[1])
    assert not torch.allclose(several[0], call(None))
    none = layers.TransformerEncoderLayer.init(key(device), **{**options, "dropout": 0.0})
    same(layers.transformer_encoder_layer(none, src, key=keys[0]), layers.transformer_encoder_layer(none, src))
    check_purity(lambda p, x, key: layers.transformer_encoder(p, x, key=key), p.encoder, src, keys[0])


@pytest.mark.parametrize("norm_first", [True, False])
def test_dropout_is_where_torch_has_it(norm_first: bool, device: torch.device) -> None:
    """With rate 1 exactly the parts vanish that vanish in torch's layer in training mode."""
    options: dict[str, Any] = {**SMALL, "dropout": 1.0, "norm_first": norm_first, "dtype": torch.float64}
    module = in_evaluation(nn.TransformerDecoderLayer(**options), device).train()
    p = filled(layers.TransformerDecoderLayer.init(key(device), **options), module)
    x, memory = shaped(2, 3, False, 0, device), shaped(2, 4, False, 1, device)
    same(layers.transformer_decoder_layer(p, x, memory, key=key(device)), module(x, memory))
    partly = pn.replace(p, dropout3=layers.Dropout(0.0), dropout2=layers.Dropout(0.0))
    module.dropout3.p = module.dropout2.p = 0.0
    same(layers.transformer_decoder_layer(partly, x, memory, key=key(device)), module(x, memory))


def test_activation_that_draws(device: torch.device) -> None:
    """An activation that takes a key is given one."""
    p = layers.TransformerEncoderLayer.init(
        key(device), **{**SMALL, "dropout": 0.0}, activation=layers.RReLU(), dtype=torch.float64
    )
    x = shaped(2, 3, False, 0, device)
    drawn = layers.transformer_encoder_layer(p, x, key=key(device, 1))
    assert torch.equal(drawn, layers.transformer_encoder_layer(p, x, key=key(device, 1)))
    assert not torch.allclose(drawn, layers.transformer_encoder_layer(p, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, device: torch.device) -> None:
    """Half precision keeps its dtype and is right to its rounding."""
    p = layers.TransformerEncoder.init(key(device), 2, **SMALL, dtype=torch.float64)
    x = shaped(2, 3, False, 0, device)
    y = layers.transformer_encoder(pn.tree.to(p, dtype), x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), layers.transformer_encoder(p, x), rtol=0.1, atol=0.1)


def test_in_a_module(device: torch.device) -> None:
    """Carried by a module, hooks of every inner layer fire, and state dicts go into torch's module and back."""
    options: dict[str, Any] = {**SMALL, "batch_first": True, "dtype": torch.float64}
    sizes = {"num_encoder_layers": 1, "num_decoder_layers": 2}
    p = layers.Transformer.init(key(device), **options, **sizes)
    module = bridge.to_module(p).eval()
    src, tgt = shaped(2, 4, True, 0, device), shaped(2, 3, True, 1, device)
    expected = layers.transformer(p, src, tgt)
    same(module(src, tgt), expected)
    theirs = nn.Transformer(**options, **sizes).to(device).eval()
    theirs.load_state_dict(module.state_dict())
    same(theirs(src, tgt), expected)
    fired: list[str] = []
    inner = {name: child for name, child in module.named_modules() if name and not name.endswith(("layers", "norm"))}
    for name, child in inner.items():
        child.register_forward_hook(lambda *_, name=name: fired.append(name))
    module(src, tgt)
    assert set(fired) == set(inner)
    torch.manual_seed(1)
    first = module.train()(src, tgt)
    assert not torch.allclose(first, expected)


TABLE: dict[str, tuple[Callable[[int], Any], Callable[..., Tensor], bool]] = {
    "encoder layer": (
        lambda seed: layers.TransformerEncoderLayer.init(
            pn.random.key(seed), 4, 2, 6, activation="gelu", dtype=torch.float64
        ),
        layers.transformer_encoder_layer,
        True,
    ),
    "encoder layer, norm first, causal": (
        lambda seed: layers.TransformerEncoderLayer.init(
            pn.random.key(seed), 4, 2, 6, activation=torch.tanh, norm_first=True, dtype=torch.float64
        ),
        lambda p, x: layers.transformer_encoder_layer(p, x, is_causal=True),
        True,
    ),
    "decoder layer": (
        lambda seed: layers.TransformerDecoderLayer.init(
            pn.random.key(seed), 4, 2, 6, batch_first=True, dtype=torch.float64
        ),
        lambda p, x: layers.transformer_decoder_layer(p, x[:, :1], x[:, 1:], tgt_is_causal=True),
        True,
    ),
    "with dropout": (
        lambda seed: {
            "p": layers.TransformerEncoderLayer.init(pn.random.key(seed), 4, 2, 6, 0.3, dtype=torch.float64),
            "key": pn.random.key(seed),
        },
        lambda p, x: layers.transformer_encoder_layer(p["p"], x, key=p["key"]),
        False,
    ),
    "transformer": (
        lambda seed: layers.Transformer.init(
            *(pn.random.key(seed), 4, 2, 1, 1), dim_feedforward=6, activation="gelu", dtype=torch.float64
        ),
        lambda p, x: layers.transformer(p, x, x[:2], tgt_is_causal=True),
        False,
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_transformations(name: str, device: torch.device) -> None:
    """Every form keeps the promises of the shared table."""
    make, function, compile = TABLE[name]
    check_transformations(
        lambda seed: pn.tree.to(make(seed), device), function, numbers(2, 3, 2, 4, device=device), compile=compile
    )


def test_lean_gradient_equals_the_others(device: torch.device) -> None:
    """pn.grad at the outermost level, inside another gradient, and torch.func give one result."""
    p = layers.TransformerEncoder.init(key(device), 2, **SMALL, dtype=torch.float64)
    x = shaped(2, 3, False, 0, device)

    def loss(p: Any) -> Tensor:
        return torch.sin(layers.transformer_encoder(p, x, is_causal=True)).sum()

    lean = pn.grad(loss)(p)
    for name, leaf in pn.tree.named_leaves(torch.func.grad(loss)(p)):
        same(dict(pn.tree.named_leaves(lean))[name], leaf)
    outer = pn.grad(lambda p: sum(g.square().sum() for g in pn.tree.leaves(pn.grad(loss)(p))))(p)
    q = pn.tree.map(lambda leaf: leaf.clone().requires_grad_(), p)
    first = torch.autograd.grad(loss(q), pn.tree.leaves(q), create_graph=True)
    by_autograd = torch.autograd.grad(sum(g.square().sum() for g in first), pn.tree.leaves(q))
    same(tuple(pn.tree.leaves(outer)), by_autograd, tolerance=1e-9)


def counting() -> Any:
    """A container that returns new state with its result."""

    @pn.container
    class Counting(pn.Layer):
        count: Tensor = pn.buffer()

    @pn.applies(Counting, stateful=True)
    def count(p: Counting, x: Tensor, *, train: bool = False) -> tuple[Tensor, Counting]:
        return x, p

    return Counting(torch.zeros(()))


ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: layers.TransformerEncoderLayer.init(pn.random.key(0), 4, 3),
        pn.errors.ArgumentError,
        "MultiheadAttention.init: embed_dim must be a positive multiple of num_heads, so that all heads have the same "
        "size, got embed_dim=4 and num_heads=3.",
    ),
    (
        lambda: layers.TransformerEncoderLayer.init(pn.random.key(0), 4, 2, activation="swish"),
        pn.errors.ArgumentError,
        "TransformerEncoderLayer.init: activation must be 'relu', 'gelu', a container or a function, got 'swish'.",
    ),
    (
        lambda: layers.TransformerDecoderLayer.init(pn.random.key(0), 4, 2, activation=counting()),
        pn.errors.ContainerError,
        "TransformerDecoderLayer.init: activation must return a tensor alone, but Counting returns its new state as "
        "well.",
    ),
    (
        lambda: layers.Transformer.init(pn.random.key(0), **SMALL)(torch.zeros(3, 2, 4), torch.zeros(3, 1, 4)),
        pn.errors.ShapeError,
        "multihead_attention: expected query [target, batch, 4], keys [source, batch, 4] and values [source, batch, "
        "4], all three with or all three without batch, got [3, 1, 4], [3, 2, 4] and [3, 2, 4]. The order of the "
        "dimensions is that of batch_first=False.",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
def test_errors(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    """What does not fit is refused with what was expected, what came, and what to do."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text

"""init_like: sizes are read from an example, for single layers and for stacks, without computing anything."""

import warnings
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import purenn as pn
from purenn import layers
from purenn.layers import init_like


def key(device: torch.device | None = None, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


def zeros(*shape: int, device: torch.device | None = None) -> Tensor:
    """An example, of which only the shape matters."""
    return torch.zeros(shape, device=device)


# Class, shapes of the inputs, what else the init needs, the sizes that must be found.
SINGLE: list[tuple[Any, list[tuple[int, ...]], dict[str, Any], dict[str, Any]]] = [
    (layers.Linear, [(2, 3, 7)], {"out_features": 4}, {"in_features": 7}),
    (layers.Linear, [(7,)], {"out_features": 4, "bias": False}, {"in_features": 7}),
    (layers.LinearActivation, [(2, 7)], {"out_features": 4, "activation": torch.tanh}, {"in_features": 7}),
    (layers.ScaledLinear, [(2, 7)], {"out_features": 4}, {"in_features": 7}),
    (layers.Bilinear, [(2, 3), (2, 5)], {"out_features": 4}, {"in1_features": 3, "in2_features": 5}),
    (layers.SwiGLU, [(2, 7)], {"hidden_features": 4}, {"in_features": 7}),
    (layers.GEGLU, [(2, 7)], {"hidden_features": 4}, {"in_features": 7}),
    (layers.AdaptiveLogSoftmaxWithLoss, [(2, 8)], {"n_classes": 9, "cutoffs": (3,)}, {"in_features": 8}),
    (layers.Conv1d, [(2, 3, 9)], {"out_channels": 4, "kernel_size": 3}, {"in_channels": 3}),
    (layers.Conv1d, [(3, 9)], {"out_channels": 4, "kernel_size": 3}, {"in_channels": 3}),
    (layers.Conv2d, [(2, 6, 9, 9)], {"out_channels": 4, "kernel_size": 3, "groups": 2}, {"in_channels": 6}),
    (layers.Conv3d, [(3, 5, 5, 5)], {"out_channels": 4, "kernel_size": 3}, {"in_channels": 3}),
    (layers.ConvTranspose1d, [(2, 3, 9)], {"out_channels": 4, "kernel_size": 3}, {"in_channels": 3}),
    (layers.ConvTranspose2d, [(2, 3, 9, 9)], {"out_channels": 4, "kernel_size": 3}, {"in_channels": 3}),
    (layers.ConvTranspose3d, [(2, 3, 5, 5, 5)], {"out_channels": 4, "kernel_size": 3}, {"in_channels": 3}),
    (layers.UnfoldConv2d, [(3, 9, 9)], {"out_channels": 4, "kernel_size": 3}, {"in_channels": 3}),
    (layers.DepthwiseSeparableConv2d, [(2, 3, 9, 9)], {"out_channels": 4, "kernel_size": 3}, {"in_channels": 3}),
    (layers.PrimaryCapsules, [(2, 32, 12, 12)], {}, {"in_channels": 32}),
    (layers.DynamicRouting, [(2, 12, 6)], {"out_caps": 3}, {"in_caps": 12, "in_dim": 6}),
    (
        layers.Capsules,
        [(2, 12, 6)],
        {"out_caps": 3, "routing": layers.AgreementRouting()},
        {"in_caps": 12, "in_dim": 6},
    ),
    (
        layers.ConvCapsules2d,
        [(2, 4, 5, 5, 6)],
        {"out_types": 3, "kernel_size": 3, "routing": layers.AgreementRouting()},
        {"in_types": 4, "in_dim": 6},
    ),
    (
        layers.ClassCapsules2d,
        [(2, 4, 5, 5, 16)],
        {"out_caps": 3, "routing": layers.EMRouting.init(3)},
        {"in_types": 4, "in_dim": 16},
    ),
    (layers.AttentionRouting, [(2, 3, 12, 6)], {"out_caps": 3}, {"in_caps": 12}),
    (layers.SqueezeExcitation, [(2, 32, 3, 3)], {}, {"channels": 32}),
    (layers.LearnableScale, [(2, 3, 5, 5)], {}, {"num_features": 3}),
    (layers.BatchNorm1d, [(2, 3)], {}, {"num_features": 3}),
    (layers.BatchNorm1d, [(2, 3, 5)], {}, {"num_features": 3}),
    (layers.BatchNorm2d, [(2, 3, 5, 5)], {"momentum": None}, {"num_features": 3}),
    (layers.BatchNorm3d, [(2, 3, 5, 5, 5)], {}, {"num_features": 3}),
    (layers.InstanceNorm1d, [(3, 5)], {"affine": True}, {"num_features": 3}),
    (layers.InstanceNorm2d, [(2, 3, 5, 5)], {"affine": True}, {"num_features": 3}),
    (layers.InstanceNorm3d, [(2, 3, 5, 5, 5)], {"affine": True}, {"num_features": 3}),
    (layers.RunningNorm, [(2, 3, 5)], {}, {"num_features": 3}),
    (layers.GroupNorm, [(2, 6, 5)], {"num_groups": 3}, {"num_channels": 6}),
    (layers.LayerNorm, [(2, 3, 7)], {}, {"normalized_shape": 7}),
    (layers.RMSNorm, [(2, 3, 7)], {}, {"normalized_shape": 7}),
    (layers.UnbiasedLayerNorm, [(2, 3, 7)], {}, {"normalized_shape": 7}),
    (layers.ZeroCenteredRMSNorm, [(2, 3, 7)], {}, {"normalized_shape": 7}),
    (layers.GatedRMSNorm, [(2, 3, 7)], {}, {"normalized_shape": 7}),
    (layers.PartialRMSNorm, [(2, 3, 7)], {}, {"normalized_shape": 7}),
    (layers.RNN, [(5, 2, 3)], {"hidden_size": 4}, {"input_size": 3}),
    (layers.LSTM, [(5, 2, 3)], {"hidden_size": 4, "num_layers": 2, "batch_first": True}, {"input_size": 3}),
    (layers.GRU, [(5, 3)], {"hidden_size": 4, "bidirectional": True}, {"input_size": 3}),
    (layers.RNNCell, [(2, 3)], {"hidden_size": 4}, {"input_size": 3}),
    (layers.LSTMCell, [(2, 3)], {"hidden_size": 4}, {"input_size": 3}),
    (layers.GRUCell, [(3,)], {"hidden_size": 4}, {"input_size": 3}),
    (layers.MultiheadAttention, [(2, 5, 8)], {"num_heads": 2}, {"embed_dim": 8}),
    (layers.SelfAttention, [(2, 5, 8)], {}, {"embed_dim": 8}),
    (layers.GroupedQueryAttention, [(2, 5, 8)], {"num_heads": 2}, {"embed_dim": 8}),
    (layers.TransformerEncoderLayer, [(2, 5, 8)], {"nhead": 2, "dim_feedforward": 6}, {"d_model": 8}),
    (layers.TransformerDecoderLayer, [(2, 5, 8)], {"nhead": 2, "dim_feedforward": 6}, {"d_model": 8}),
    (layers.TransformerEncoder, [(2, 5, 8)], {"num_layers": 2, "nhead": 2, "dim_feedforward": 6}, {"d_model": 8}),
    (layers.LearnedPosition, [(2, 5, 8)], {"max_length": 9}, {"dim": 8}),
]


@pytest.mark.parametrize(("cls", "shapes", "options", "sizes"), SINGLE)
def test_single_layers(cls: Any, shapes: Any, options: Any, sizes: Any, device: torch.device) -> None:
    """Every layer with an input size is, bit for bit, the one that its init makes with the sizes written out."""
    inputs = [zeros(*shape, device=device) for shape in shapes]
    first = () if "key" not in cls.init.__code__.co_varnames[:2] else (key(device),)
    expected = cls.init(*first, **sizes, **options, device=device)
    for got in (
        init_like(key(device), cls, *inputs, **options),
        init_like(key(device), cls.init, *inputs, **options),
        init_like(key(device), partial(cls.init, **options), *inputs),
        init_like(key(device), cls, *inputs, **options, **sizes),
    ):
        assert pn.tree.equal(got, expected)
        assert type(got) is type(expected)


def test_every_size_has_a_rule() -> None:
    """No layer whose init needs a size of its input is forgotten; what is left needs choices that no input shows."""
    names = {"in_features", "in1_features", "in_channels", "num_features", "num_channels", "normalized_shape"}
    names |= {"input_size", "embed_dim", "d_model", "channels", "in_caps", "in_types"}
    classes = [getattr(layers, name) for name in layers.__all__]
    sized = {
        cls
        for cls in classes
        if isinstance(cls, type) and hasattr(cls, "init") and names & set(cls.init.__code__.co_varnames)
    }
    covered = {cls for cls, *_ in SINGLE}
    assert {cls.__name__ for cls in sized - covered} <= {"TransformerDecoder", "Transformer", "SelfRouting"}
    decoder = init_like(key(), layers.TransformerDecoder, zeros(2, 5, 8), num_layers=1, nhead=2, dim_feedforward=4)
    assert decoder.layers[0].linear1.in_features == 8
    options = {"nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 4}
    assert init_like(key(), layers.Transformer, zeros(2, 5, 8), **options).encoder.layers[0].linear1.in_features == 8


LAZY: list[tuple[Any, Any, tuple[int, ...]]] = [
    (partial(nn.LazyLinear, 4), partial(layers.Linear.init, out_features=4), (2, 3, 7)),
    (partial(nn.LazyBatchNorm1d), layers.BatchNorm1d, (2, 3, 7)),
    (partial(nn.LazyBatchNorm2d), layers.BatchNorm2d, (2, 3, 7, 7)),
    (partial(nn.LazyBatchNorm3d), layers.BatchNorm3d, (2, 3, 7, 7, 7)),
    (
        partial(nn.LazyInstanceNorm1d, affine=True, track_running_stats=False),
        partial(layers.InstanceNorm1d, affine=True),
        (2, 3, 7),
    ),
    (
        partial(nn.LazyInstanceNorm2d, affine=True, track_running_stats=False),
        partial(layers.InstanceNorm2d, affine=True),
        (2, 3, 7, 7),
    ),
    (
        partial(nn.LazyInstanceNorm3d, affine=True, track_running_stats=False),
        partial(layers.InstanceNorm3d, affine=True),
        (2, 3, 7, 7, 7),
    ),
    *(
        (
            partial(getattr(nn, f"Lazy{name}{n}d"), 4, 3),
            partial(getattr(layers, f"{name}{n}d").init, out_channels=4, kernel_size=3),
            (*batch, 3, *[5] * n),
        )
        for name in ("Conv", "ConvTranspose")
        for n in (1, 2, 3)
        for batch in ((), (2,))
    ),
]


@pytest.mark.parametrize(("lazy", "layer", "shape"), LAZY)
def test_equals_lazy_modules(lazy: Any, layer: Any, shape: tuple[int, ...], device: torch.device) -> None:
    """Names, shapes and dtypes are those of torch's lazy module after its first call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        module = lazy().to(device)
    x = zeros(*shape, device=device)
    module(x)
    p = init_like(key(device), layer, x)
    expected = {name: (leaf.shape, leaf.dtype, leaf.device) for name, leaf in module.state_dict().items()}
    assert {name: (leaf.shape, leaf.dtype, leaf.device) for name, leaf in pn.tree.named_leaves(p)} == expected


def network(classes: int = 10) -> list[Any]:
    """Classes, inits, containers, functions and stacks, without a size of an input."""
    return [
        partial(layers.Conv2d.init, out_channels=4, kernel_size=3, padding=1),
        layers.BatchNorm2d,
        [layers.ReLU, layers.MaxPool2d(2), torch.tanh],
        layers.Flatten(),
        partial(layers.Linear.init, out_features=6),
        partial(layers.Dropout, 0.25),
        partial(layers.GroupNorm.init, 3),
        {"first": partial(layers.Linear.init, out_features=5), "act": layers.PReLU, "last": layers.LayerNorm},
        partial(layers.Linear.init, out_features=classes),
    ]


def test_a_stack(device: torch.device) -> None:
    """In a stack every layer is made for the output of the one before, and drawn from a key of its own."""
    x = torch.randn(2, 3, 8, 8, device=device)
    p = init_like(key(device), network(), x)
    assert isinstance(p, layers.Sequential)
    assert [type(layer).__name__ for layer in p] == [
        "Conv2d", "BatchNorm2d", "Sequential", "Flatten", "Linear", "Dropout", "GroupNorm", "Sequential", "Linear",
    ]  # fmt: skip
    assert (p[0].in_channels, p[1].num_features, p[4].in_features) == (3, 4, 64)
    assert p[6].num_channels == 6
    assert p[7].names == ("first", "act", "last")
    assert (p[7]["last"].normalized_shape, p[8].in_features) == ((5,), 5)
    y, new = p(x, train=True)
    assert y.shape == (2, 10)
    assert not torch.equal(new[1].running_mean, p[1].running_mean)
    keys = pn.random.split(key(device), 9)
    assert pn.tree.equal(p[4], layers.Linear.init(keys[4], 64, 6))
    first = pn.random.split(keys[7], 3)[0]
    assert pn.tree.equal(p[7]["first"], layers.Linear.init(first, 6, 5))


def test_members_that_are_there_already(device: torch.device) -> None:
    """A container in a stack is taken as it is; tokens may be the input."""
    table = layers.Embedding.init(key(device), 9, 4)
    tokens = torch.zeros(2, 5, dtype=torch.int64, device=device)
    stack = [table, partial(layers.LSTM.init, hidden_size=6), lambda out: out[0], layers.LayerNorm]
    p = init_like(key(device, 1), stack, tokens)
    assert p[0] is table
    assert (p[1].input_size, p[3].normalized_shape) == (4, (6,))
    assert p(tokens).shape == (2, 5, 6)


def test_dtype_and_device(device: torch.device) -> None:
    """Parameters are like the example: its dtype and device, unless others are asked for."""
    x = torch.zeros(2, 3, dtype=torch.float64, device=device)
    layer = partial(layers.Linear.init, out_features=4)
    assert init_like(key(device), layer, x).weight.dtype == torch.float64
    assert init_like(key(device), [layer, layers.BatchNorm1d], x)[1].running_mean.dtype == torch.float64
    assert init_like(key(device), [layer, layer], x, dtype=torch.bfloat16)[1].weight.dtype == torch.bfloat16
    assert init_like(key(device), partial(layer, dtype=torch.float16), x).weight.dtype == torch.float16
    on_meta = torch.empty(2, 3, device="meta")
    assert init_like(key(device), layer, on_meta).weight.is_meta
    assert init_like(key(device), layer, on_meta, device=device).weight.device.type == device.type
    table = partial(layers.Embedding.init, num_embeddings=5, embedding_dim=4)
    assert init_like(key(device), table, torch.zeros(2, dtype=torch.int32)).weight.dtype == torch.get_default_dtype()


def test_examples_are_not_read(device: torch.device) -> None:
    """An example with no numbers in it, or with NaN, makes the same layers."""
    expected = init_like(key(device), network(), zeros(2, 3, 8, 8, device=device))
    for x in (torch.full((2, 3, 8, 8), torch.nan), torch.empty(2, 3, 8, 8, device="meta"), zeros(0, 3, 8, 8)):
        assert pn.tree.equal(init_like(key(device), network(), x, device=device), expected)


def large_network() -> list[Any]:
    """Feed-forward blocks with 70 billion parameters."""
    block = [
        partial(layers.Linear.init, out_features=28672),
        layers.GELU,
        partial(layers.Linear.init, out_features=8192),
        layers.RMSNorm,
    ]
    return [block] * 149


def test_70_billion_parameters_on_meta(device: torch.device) -> None:
    """On the meta device a model of any size is made at once, in any dtype."""
    x = torch.empty(4, 2048, 8192, dtype=torch.bfloat16, device="meta")
    p = init_like(key(device), large_network(), x)
    assert pn.tree.count(p) > 70e9
    assert all(leaf.is_meta and leaf.dtype == torch.bfloat16 for leaf in pn.tree.leaves(p))


def test_fake_tensors() -> None:
    """Under fake tensors the layers are fake as well, of the example's device."""
    with FakeTensorMode():
        p = init_like(pn.random.key(0), large_network()[:1], torch.empty(4, 8192))
    assert pn.tree.count(p) > 469e6
    assert {(type(leaf).__name__, leaf.device.type) for leaf in pn.tree.leaves(p)} == {("FakeTensor", "cpu")}


def test_ensembles(device: torch.device) -> None:
    """Under vmap over keys many models are made, each that of its key."""
    x, keys = zeros(2, 3, 8, 8, device=device), pn.random.split(key(device), 3)
    models = pn.ensemble(lambda key: init_like(key, network(), x))(keys)
    assert pn.tree.equal(models, pn.tree.stack([init_like(key, network(), x) for key in keys]))


def test_keys_are_used_once(device: torch.device) -> None:
    """The guard against reused keys has nothing to say."""
    with pn.random.strict():
        init_like(key(device), network(), zeros(2, 3, 8, 8, device=device))


@pn.container
class Gate(pn.Layer):
    """A layer of a user, with a rule for its sizes."""

    input_sizes: ClassVar = {"in_features": -1, "control_features": (1, -1)}

    map: layers.Linear
    control: layers.Linear

    @classmethod
    def init(cls, key: Tensor, in_features: int, control_features: int, out_features: int) -> "Gate":
        """Draw both maps."""
        first, second = pn.random.split(key)
        return cls(
            layers.Linear.init(first, in_features, out_features),
            layers.Linear.init(second, control_features, out_features),
        )


@pn.applies(Gate)
def gate(p: Gate, x: Tensor, control: Tensor | None = None) -> Tensor:
    """The map, gated."""
    y = layers.linear(p.map, x)
    return y if control is None else y * torch.sigmoid(layers.linear(p.control, control))


def test_classes_of_users(device: torch.device) -> None:
    """A class that states its rule takes part, alone and in a stack, also if its init takes no device."""
    inputs = zeros(2, 3, device=device), zeros(2, 5, device=device)
    p = init_like(key(device), Gate, *inputs, out_features=4)
    assert pn.tree.equal(p, Gate.init(key(device), 3, 5, 4))
    stack = [partial(Gate.init, control_features=2, out_features=4), partial(layers.Linear.init, out_features=6)]
    q = init_like(key(device), stack, inputs[0])
    assert (q[0].map.in_features, q[1].in_features) == (3, 4)


def test_a_plain_function(device: torch.device) -> None:
    """A function alone becomes a Lambda, as in Sequential."""
    p = init_like(key(device), torch.sin, zeros(2, device=device))
    assert type(p) is layers.Lambda


LINEAR = partial(layers.Linear.init, out_features=4)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda k: init_like(k, LINEAR),
            pn.errors.ArgumentError,
            "init_like: the inputs must be tensors, and at least one, got none.",
        ),
        (
            lambda k: init_like(k, LINEAR, (2, 3)),
            pn.errors.ArgumentError,
            "init_like: the inputs must be tensors, and at least one, got tuple.",
        ),
        (
            lambda k: init_like(k, layers.Linear, zeros(2, 3)),
            pn.errors.ArgumentError,
            "init_like: Linear.init also needs 'out_features': functools.partial(Linear.init, out_features=...).",
        ),
        (
            lambda k: init_like(k, [LINEAR, [layers.ReLU(), layers.Conv1d]], zeros(2, 3, 5)),
            pn.errors.ArgumentError,
            "init_like: '1.1': Conv1d.init also needs 'out_channels', 'kernel_size': functools.partial(Conv1d.init, "
            "out_channels=..., kernel_size=...).",
        ),
        (
            lambda k: init_like(k, layers.Softmax, zeros(2, 3), dimension=1),
            pn.errors.ArgumentError,
            "init_like: Softmax has no 'dimension'; it has 'dim'.",
        ),
        (
            lambda k: init_like(k, partial(layers.Linear.init, 3, 4), zeros(2, 3)),
            pn.errors.ArgumentError,
            "init_like: give the arguments of Linear.init by name: the first one is the key.",
        ),
        (
            lambda k: init_like(k, layers.Conv2d, zeros(5, 5), out_channels=4, kernel_size=3),
            pn.errors.ShapeError,
            "init_like: Conv2d.init reads in_channels from dimension -3 of its input, got shape [5, 5]. Give an input "
            "with more dimensions, or in_channels.",
        ),
        (
            lambda k: init_like(k, layers.Bilinear, zeros(5, 5), out_features=4),
            pn.errors.ArgumentError,
            "init_like: Bilinear.init reads in2_features from input 1, counted from 0, but got 1 inputs. Give that "
            "input, or in2_features.",
        ),
        (
            lambda k: init_like(k, [partial(layers.GRU.init, hidden_size=4), LINEAR], zeros(5, 2, 3)),
            pn.errors.ArgumentError,
            "init_like: '1': Linear.init reads in_features from a tensor, but its input is a tuple. Put a function "
            "before it that takes the tensor out.",
        ),
        (
            lambda k: init_like(k, [LINEAR], zeros(2, 3), zeros(2)),
            pn.errors.ArgumentError,
            "init_like: a stack of layers has one input, got 2.",
        ),
        (
            lambda k: init_like(k, {"a": LINEAR}, zeros(2, 3), out_features=3),
            pn.errors.ArgumentError,
            "init_like: the arguments 'out_features' belong to the init of one layer: give them to that, as in "
            "functools.partial(Linear.init, out_features=10).",
        ),
        (
            lambda k: init_like(k, [LINEAR, nn.Linear(4, 3)], zeros(2, 3)),
            pn.errors.ContainerError,
            "init_like: '1': expected a container, its class or its init, a plain function, or a list or dict of "
            "these, got a Linear.",
        ),
        (
            lambda k: init_like(k, nn.Linear, zeros(2, 3)),
            pn.errors.ContainerError,
            "init_like: expected a container, its class or its init, a plain function, or a list or dict of these, "
            "got the class Linear.",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str, device: torch.device) -> None:
    """What cannot be made is refused with a text that says where and what to do."""
    with pytest.raises(error) as caught:
        call(key(device))
    assert str(caught.value) == text


def test_errors_of_layers_in_a_stack_say_where(device: torch.device) -> None:
    """An error of a layer that is run for its shape comes with a note on its place."""
    with pytest.raises(pn.errors.ShapeError) as caught:
        init_like(key(device), {"wrong": [partial(LINEAR, in_features=9), layers.ReLU]}, zeros(2, 3, device=device))
    assert caught.value.__notes__ == [
        "init_like: 'wrong.0': this happened on the meta device, where the shape of its output was to be found."
    ]

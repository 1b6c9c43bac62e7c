"""Architectures of Hugging Face's transformers, made from tiny configurations without any download."""

import copy
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import optree
import torch
from torch import Tensor, nn

import bridge
import purenn as pn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

VOCABULARY, BATCH, LENGTH, EXAMPLES = 24, 2, 6, 2
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 1}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_SEQUENCES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_AUDIO: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "conv_dim": (8, 8),
    "conv_kernel": (4, 3),
    "conv_stride": (2, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": VOCABULARY,
}

#: Class of the model -> kind of its inputs, and its configuration.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    # Encoders.
    "BertModel": ("text", _TEXT),
    "RobertaModel": ("text", {**_TEXT, "max_position_embeddings": 40}),
    "ElectraModel": ("text", {**_TEXT, "embedding_size": 16}),
    "AlbertModel": ("text", {**_TEXT, "embedding_size": 8}),
    "DistilBertModel": ("text", {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 20}),
    "MPNetModel": ("text", {**_TEXT, "max_position_embeddings": 40}),
    "DebertaV2Model": ("text", _TEXT),
    "ModernBertModel": ("text", {**_TEXT, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2}),
    # Decoders.
    "GPT2Model": ("text", {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "GPT2LMHeadModel": ("text", {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "OPTModel": ("text", {**_TEXT, "ffn_dim": 20, "word_embed_proj_dim": 16}),
    "GPTNeoXModel": ("text", _TEXT),
    "BloomModel": ("text", {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "LlamaModel": ("text", _GROUPED),
    "LlamaForCausalLM": ("text", {**_GROUPED, "tie_word_embeddings": True}),
    "MistralModel": ("text", {**_GROUPED, "sliding_window": 4}),
    "Qwen2Model": ("text", _GROUPED),
    "Qwen3Model": ("text", {**_GROUPED, "head_dim": 8}),
    "GemmaModel": ("text", {**_GROUPED, "head_dim": 8}),
    "Gemma2Model": ("text", {**_GROUPED, "head_dim": 8, "sliding_window": 4}),
    "PhiModel": ("text", _TEXT),
    "FalconModel": (
        "text",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
    # Mixtures of experts.
    "MixtralModel": ("text", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen2MoeModel": (
        "text",
        {
            **_GROUPED,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
        },
    ),
    "OlmoeModel": ("text", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    # State spaces.
    "MambaModel": ("text", {"vocab_size": VOCABULARY, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}),
    "Mamba2Model": (
        "text",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "state_size": 4,
            "num_hidden_layers": 1,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 4,
        },
    ),
    # Encoders and decoders.
    "T5Model": (
        "pair",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 20,
            "num_layers": 1,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
    ),
    "BartModel": ("pair", _SEQUENCES),
    "PegasusModel": ("pair", _SEQUENCES),
    "MarianModel": ("pair", _SEQUENCES),
    # Vision.
    "ViTModel": ("image", _VISION),
    "DeiTModel": ("image", _VISION),
    "BeitModel": ("image", _VISION),
    "Dinov2Model": ("image", _VISION),
    "SwinModel": (
        "image",
        {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
    ),
    "ConvNextModel": (
        "image",
        {"image_size": 8, "patch_size": 2, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    ),
    "ResNetModel": (
        "image",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "MobileNetV2Model": (
        "image",
        {"image_size": 32, "depth_multiplier": 0.1, "min_depth": 8, "finegrained_output": False},
    ),
    "CLIPVisionModel": ("image", _VISION),
    # Audio.
    "Wav2Vec2Model": ("sound", {**_AUDIO, "apply_spec_augment": False}),
    "HubertModel": ("sound", {**_AUDIO, "apply_spec_augment": False}),
    "WhisperModel": (
        "speech",
        {**_SEQUENCES, "num_mel_bins": 4, "max_source_positions": 6, "max_target_positions": 16},
    ),
    "ASTModel": (
        "spectrogram",
        {**_VISION, "max_length": 12, "num_mel_bins": 8, "frequency_stride": 4, "time_stride": 4},
    ),
}


#: Mixtures of experts have two forms that torch can run in float64.
_EXPERTS = dict.fromkeys(("MixtralModel", "Qwen2MoeModel", "OlmoeModel"), ("eager", "batched_mm"))
#: Computes in float32 whatever the dtype of its parameters.
_SINGLE = frozenset({"Mamba2Model"})


@attrs.frozen(eq=False)
class Architecture:
    """A model in float64, and a call of it.

    Attributes:
        model: the model, in evaluation mode.
        tolerance: to which values are compared.
        arguments: the arguments of example `n`, by names.
    """

    model: nn.Module
    tolerance: float
    arguments: Callable[[int], dict[str, Any]]


def make(name: str, attention: str, masked: bool, experts: str = "eager") -> Architecture:
    """Make a model.

    Args:
        name: one of `ARCHITECTURES`.
        attention: "eager" or "sdpa".
        masked: whether sequences are padded and have a mask that says so.
        experts: "eager" or "batched_mm", for mixtures of experts.
    """
    import transformers

    kind, options = ARCHITECTURES[name]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = {"attn_implementation": attention, "experts_implementation": experts}
        model = cls._from_config(cls.config_class(**options), **how)
    tolerance = 1e-4 if name in _SINGLE else 1e-9
    return Architecture(model.double().eval(), tolerance, lambda number: _arguments(kind, options, masked, number))


def settings(name: str) -> Iterator[tuple[str, bool, str]]:
    """The kinds of attention, whether there are masks, and the forms of experts, that an architecture has."""
    import transformers

    kind, cls = ARCHITECTURES[name][0], getattr(transformers, name)
    kinds = ["eager", "sdpa"] if cls._supports_sdpa else ["eager"]
    masks = [False, True] if kind in ("text", "pair") else [False]
    for attention in kinds:
        for masked in masks:
            for experts in _EXPERTS.get(name, ("eager",)):
                yield attention, masked, experts


def _arguments(kind: str, options: dict[str, Any], masked: bool, number: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number + 1)

    def words(length: int = LENGTH) -> Tensor:
        return torch.randint(3, VOCABULARY, (BATCH, length), generator=generator)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)

    given: dict[str, Any] = {}
    if kind in ("text", "pair"):
        given["input_ids"] = words()
        if masked:
            lengths = torch.tensor([LENGTH - 1 - number, LENGTH])
            given["attention_mask"] = (torch.arange(LENGTH) < lengths[:, None]).long()
    if kind == "pair":
        given["decoder_input_ids"] = words(4)
    if kind == "image":
        given["pixel_values"] = numbers(3, *[options.get("image_size", 16)] * 2)
    if kind == "sound":
        given["input_values"] = numbers(60)
    if kind == "spectrogram":
        given["input_values"] = numbers(12, 8)
    if kind == "speech":
        given |= {"input_features": numbers(4, 12), "decoder_input_ids": words(4)}
    return given


def _value(outputs: Any) -> Tensor:
    found = next(
        y for y in optree.tree_leaves(tuple(outputs.values())) if isinstance(y, Tensor) and y.is_floating_point()
    )
    return (found.sin() * torch.linspace(0.5, 1.5, found.numel(), dtype=found.dtype).reshape(found.shape)).sum()


def _apply(p: Any, arguments: dict[str, Any]) -> Any:
    out = p(**arguments)
    return out[0] if pn.is_stateful(p) else out


def _loss(p: Any, arguments: dict[str, Any]) -> Tensor:
    return _value(_apply(p, arguments))


def _close(one: Architecture, found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=one.tolerance, atol=one.tolerance)


def _stacked(arguments: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: torch.stack([one[name] for one in arguments]) for name in arguments[0]}


def forward(one: Architecture, p: Any) -> None:
    """The values are the model's, and neither model nor container is touched."""
    before = copy.deepcopy(one.model.state_dict())
    leaves = pn.tree.map(torch.clone, p)
    _close(one, _loss(p, one.arguments(0)), _value(copy.deepcopy(one.model)(**one.arguments(0))).detach())
    assert all(torch.equal(value, before[name]) for name, value in one.model.state_dict().items())
    assert pn.tree.equal(p, leaves)


def _gradients(model: nn.Module, arguments: dict[str, Any]) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(_value(model(**arguments)), list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(named[name]) if g is None else g for name, g in zip(named, found, strict=True)}


def gradients(one: Architecture, p: Any) -> None:
    """Gradients are the model's."""
    found = dict(pn.tree.named_leaves(pn.grad(_loss)(p, one.arguments(0))))
    for name, expected in _gradients(one.model, one.arguments(0)).items():
        _close(one, found[name], expected)


def per_sample(one: Architecture, p: Any) -> None:
    """Gradients of every example by vmap(grad) are those of a loop."""
    examples = [one.arguments(n) for n in range(EXAMPLES)]
    found = dict(pn.tree.named_leaves(pn.vmap(pn.grad(_loss), (None, 0))(p, _stacked(examples))))
    loop = [_gradients(one.model, arguments) for arguments in examples]
    for name in loop[0]:
        _close(one, found[name], torch.stack([each[name] for each in loop]))


def ensembles(one: Architecture, p: Any) -> None:
    """Several models, batched over models and over models and inputs, are those of a loop."""
    scaled = [p, pn.tree.map(lambda leaf: leaf * 1.1 if leaf.is_floating_point() else leaf, p)]
    models, examples = pn.tree.stack(scaled), [one.arguments(n) for n in range(EXAMPLES)]
    _close(one, pn.vmap(_loss, (0, None))(models, examples[0]), torch.stack([_loss(q, examples[0]) for q in scaled]))
    expected = torch.stack([_loss(q, x) for q, x in zip(scaled, examples, strict=True)])
    _close(one, pn.vmap(_loss, (0, 0))(models, _stacked(examples)), expected)


CHECKS = {"forward": forward, "gradients": gradients, "per-sample gradients": per_sample, "ensembles": ensembles}


def print_table(only: list[str] | None) -> int:
    """Check all architectures and print how many pass."""
    import transformers

    warnings.simplefilter("ignore")
    passed: Counter[str] = Counter()
    total = 0
    for name in only or ARCHITECTURES:
        for attention, masked, experts in settings(name):
            total += 1
            cells = []
            one = make(name, attention, masked, experts)
            for check, run in CHECKS.items():
                try:
                    run(one, bridge.from_module(one.model))
                    passed[check] += 1
                    cells.append("ok")
                # Whatever goes wrong is the result.
                except Exception as error:
                    cells.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            mask = "padding" if masked else "no mask"
            print(f"| {name} | {attention} | {mask} | {' | '.join(cells)} |", flush=True)
    print(f"transformers {transformers.__version__}, {len(only or ARCHITECTURES)} architectures, {total} settings:")
    print(", ".join(f"{check} {passed[check]}" for check in CHECKS))
    return int(any(passed[check] < total for check in CHECKS))

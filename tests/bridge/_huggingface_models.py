"""Tiny configurations of models of Hugging Face's transformers."""

from typing import Any

VOCABULARY = 24
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

_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 20,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
_SWITCH: dict[str, Any] = {
    **_T5,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "num_experts": 4,
}
_LONG_SEQUENCES: dict[str, Any] = {
    **_SEQUENCES,
    "max_encoder_position_embeddings": 32,
    "max_decoder_position_embeddings": 32,
    "attention_window": 4,
}
_LONG_SEQUENCES.pop("max_position_embeddings")
_JAMBA: dict[str, Any] = {
    **_GROUPED,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_d_state": 4,
    "mamba_d_conv": 2,
    "mamba_dt_rank": 4,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
}
_DEEPSEEK: dict[str, Any] = {
    **_TEXT,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_shared_experts": 1,
}
_STAGES: dict[str, Any] = {"image_size": 32, "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 16]}
_PYRAMID: dict[str, Any] = {
    **_STAGES,
    "sr_ratios": [2, 1],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
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
    "T5Model": ("pair", _T5),
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
    # Windows, global tokens, and experts that choose by values.
    "LongformerModel": ("text", {**_TEXT, "attention_window": 4, "max_position_embeddings": 40}),
    "LEDModel": ("pair", _LONG_SEQUENCES),
    "LongT5Model": ("pair", {**_T5, "local_radius": 3}),
    "BigBirdPegasusModel": ("pair", {**_SEQUENCES, "attention_type": "original_full"}),
    "SwitchTransformersModel": ("pair", _SWITCH),
    "NllbMoeModel": (
        "pair",
        {**_SEQUENCES, "num_experts": 4, "encoder_sparse_step": 1, "decoder_sparse_step": 1, "expert_capacity": 16},
    ),
    "JambaModel": ("text", _JAMBA),
    "RecurrentGemmaModel": (
        "text",
        {**_GROUPED, "lru_width": 16, "attention_window_size": 4, "block_types": ["recurrent", "attention"]},
    ),
}

#: More of them, which only ``python -m tests.bridge huggingface`` checks.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "Phi3Model": ("text", _GROUPED),
    "Olmo2Model": ("text", _GROUPED),
    "Gemma3TextModel": ("text", {**_GROUPED, "head_dim": 8, "sliding_window": 4}),
    "MptModel": ("text", {"vocab_size": VOCABULARY, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 32}),
    "CodeGenModel": (
        "text",
        {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 2},
    ),
    "StableLmModel": ("text", _GROUPED),
    "XLNetModel": ("text", {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 20}),
    "CLIPTextModel": ("text", {**_TEXT}),
    "SiglipVisionModel": ("image", _VISION),
    "Dinov2WithRegistersModel": ("image", _VISION),
    "Swinv2Model": (
        "image",
        {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
    ),
    "ConvNextV2Model": (
        "image",
        {"image_size": 8, "patch_size": 2, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    ),
    "EfficientNetModel": (
        "image",
        {"image_size": 32, "width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 256},
    ),
    "MobileViTModel": (
        "image",
        {
            "image_size": 32,
            "patch_size": 2,
            "hidden_sizes": [8, 12, 16],
            "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
    ),
    "RegNetModel": ("image", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4}),
    "WavLMModel": ("sound", {**_AUDIO, "apply_spec_augment": False, "num_buckets": 8, "max_bucket_distance": 16}),
    "Data2VecAudioModel": ("sound", {**_AUDIO, "apply_spec_augment": False}),
    "UniSpeechModel": ("sound", {**_AUDIO, "apply_spec_augment": False}),
    "Data2VecTextModel": ("text", {**_TEXT, "max_position_embeddings": 40}),
    "XLMRobertaModel": ("text", {**_TEXT, "max_position_embeddings": 40}),
    "CamembertModel": ("text", {**_TEXT, "max_position_embeddings": 40}),
    "DebertaModel": ("text", _TEXT),
    "FunnelModel": (
        "text",
        {
            "vocab_size": VOCABULARY,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
            "d_model": 16,
            "n_head": 2,
            "d_head": 8,
            "d_inner": 20,
        },
    ),
    "ConvBertModel": ("text", {**_TEXT, "embedding_size": 16}),
    "RoFormerModel": ("text", {**_TEXT, "embedding_size": 16}),
    "SqueezeBertModel": ("text", {**_TEXT, "embedding_size": 16}),
    "MobileBertModel": ("text", {**_TEXT, "embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8}),
    "NystromformerModel": ("text", {**_TEXT, "num_landmarks": 6, "segment_means_seq_len": 6}),
    "BigBirdModel": ("text", {**_TEXT, "attention_type": "original_full"}),
    "CanineModel": (
        "text",
        {
            **_TEXT,
            "downsampling_rate": 2,
            "local_transformer_stride": 4,
            "num_hash_functions": 2,
            "num_hash_buckets": 16,
            "upsampling_kernel_size": 2,
        },
    ),
    "GPTJModel": (
        "text",
        {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
    ),
    "GPTNeoModel": (
        "text",
        {
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 32,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
        },
    ),
    "GPTBigCodeModel": ("text", {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "CohereModel": ("text", _GROUPED),
    "GraniteModel": ("text", _GROUPED),
    "GraniteMoeModel": ("text", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "NemotronModel": ("text", _GROUPED),
    "Starcoder2Model": ("text", _GROUPED),
    "Qwen3MoeModel": (
        "text",
        {**_GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    ),
    "GptOssModel": (
        "text",
        {**_GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    "PhimoeModel": ("text", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "FalconMambaModel": (
        "text",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2},
    ),
    "MBartModel": ("pair", _SEQUENCES),
    "BlenderbotModel": ("pair", _SEQUENCES),
    "M2M100Model": ("pair", _SEQUENCES),
    "PLBartModel": ("pair", _SEQUENCES),
    "ProphetNetModel": (
        "pair",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "encoder_ffn_dim": 20,
            "num_encoder_layers": 1,
            "num_encoder_attention_heads": 2,
            "decoder_ffn_dim": 20,
            "num_decoder_layers": 1,
            "num_decoder_attention_heads": 2,
            "max_position_embeddings": 32,
            "ngram": 2,
            "num_buckets": 4,
            "relative_max_distance": 8,
            "pad_token_id": 0,
        },
    ),
    "PegasusXModel": ("pair", {**_SEQUENCES, "block_size": 2, "num_global_tokens": 2}),
    "MT5Model": ("pair", _T5),
    "UMT5Model": ("pair", _T5),
    "DeepseekV2Model": ("text", _DEEPSEEK),
    "DeepseekV3Model": ("text", _DEEPSEEK),
    "SegformerModel": ("image", _PYRAMID),
    "PvtV2Model": ("image", _PYRAMID),
    "GLPNModel": ("image", _PYRAMID),
    **dict.fromkeys(
        ("ErnieModel", "MegatronBertModel", "FNetModel", "SplinterModel", "IBertModel", "LayoutLMModel", "BioGptModel"),
        ("text", _TEXT),
    ),
    **dict.fromkeys(("OlmoModel", "SmolLM3Model", "DogeModel"), ("text", _GROUPED)),
    **dict.fromkeys(
        ("GlmModel", "Glm4Model", "HeliumModel", "ArceeModel", "SeedOssModel", "ApertusModel", "Ernie4_5Model"),
        ("text", {**_GROUPED, "head_dim": 8}),
    ),
    "Lfm2Model": ("text", {**_GROUPED, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    **dict.fromkeys(("BlenderbotSmallModel", "MvpModel"), ("pair", _SEQUENCES)),
    **dict.fromkeys(
        ("IJepaModel", "ViTMSNModel", "Data2VecVisionModel", "BlipVisionModel", "Aimv2VisionModel", "DINOv3ViTModel"),
        ("image", _VISION),
    ),
    **dict.fromkeys(
        ("UniSpeechSatModel", "Wav2Vec2ConformerModel"),
        ("sound", {**_AUDIO, "apply_spec_augment": False, "conv_depthwise_kernel_size": 3}),
    ),
}

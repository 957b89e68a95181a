"""Families of models by their tiny configurations: two layers, random weights, head size 32."""

VOCABULARY = 64
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
EXPERTS = dict(num_local_experts=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
# Where head_dim is not an option of its own, heads are as wide as the model allows.
WIDE = dict(hidden_size=128)
# What comes with a decoder that also sees.
VISION = dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, num_position_embeddings=16)

# Family: the class of its configuration, and what differs from SIZES.
FAMILIES = {
    "LLaMA 2": ("LlamaConfig", dict(num_key_value_heads=4)),
    "LLaMA 3": (
        "LlamaConfig",
        dict(
            rope_scaling=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            )
        ),
    ),
    "LLaMA 4 text": ("Llama4TextConfig", dict(EXPERTS, intermediate_size_mlp=96)),
    "Mistral": ("MistralConfig", dict(sliding_window=8)),
    "Mixtral": ("MixtralConfig", EXPERTS),
    "Qwen 2": ("Qwen2Config", WIDE),
    "Qwen 3": ("Qwen3Config", {}),
    "Qwen 3 MoE": ("Qwen3MoeConfig", EXPERTS),
    "Qwen 3.5": (
        "Qwen3_5Config",
        dict(
            WIDE,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=32,
            linear_value_head_dim=32,
            rope_parameters=dict(
                rope_type="default",
                rope_theta=10000.0,
                partial_rotary_factor=0.5,
                mrope_section=[4, 2, 2],
                mrope_interleaved=True,
            ),
        ),
    ),
    "Phi": ("PhiConfig", dict(WIDE, num_key_value_heads=4, partial_rotary_factor=0.5)),
    "Phi 3": ("Phi3Config", dict(WIDE, sliding_window=None, original_max_position_embeddings=128)),
    "Phi 4 mini": (
        "Phi3Config",
        dict(
            WIDE,
            sliding_window=None,
            # As many channels as ONNX Runtime's CPU rotates.
            partial_rotary_factor=0.5,
            original_max_position_embeddings=64,
            rope_scaling=dict(type="longrope", short_factor=[1.0] * 8, long_factor=[1.5] * 8),
        ),
    ),
    "Gemma 2": ("Gemma2Config", dict(sliding_window=8, query_pre_attn_scalar=32)),
    "Gemma 3": ("Gemma3TextConfig", dict(sliding_window=8, query_pre_attn_scalar=32)),
    "SmolLM 2": ("LlamaConfig", dict(tie_word_embeddings=True)),
    "SmolLM 3": ("SmolLM3Config", WIDE),
    "Granite": ("GraniteConfig", WIDE),
    "OLMo 2": ("Olmo2Config", WIDE),
    "StableLM": ("StableLmConfig", dict(WIDE, partial_rotary_factor=0.5)),
    "Nemotron": ("NemotronConfig", dict(partial_rotary_factor=0.5)),
    "GLM": ("GlmConfig", dict(partial_rotary_factor=0.5)),
    "Cohere": ("CohereConfig", WIDE),
    "LFM 2": ("Lfm2Config", dict(WIDE, layer_types=["conv", "full_attention"])),
    "gpt-oss": ("GptOssConfig", dict(EXPERTS, sliding_window=8)),
    "DeepSeek 3": (
        "DeepseekV3Config",
        dict(
            WIDE,
            q_lora_rank=32,
            kv_lora_rank=32,
            # Keys of 48 channels, values of 32. head_dim is what is rotated.
            qk_rope_head_dim=16,
            qk_nope_head_dim=32,
            v_head_dim=32,
            head_dim=16,
            num_key_value_heads=4,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=32,
        ),
    ),
}


def make(family, folder):
    """Writes a model of `family` with random weights, and a tokenizer, to `folder`."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    name, changes = FAMILIES[family]
    kind, sizes = getattr(transformers, name), {**SIZES, **changes}
    torch.manual_seed(0)
    if "text_config" in kind.sub_configs:
        vision = dict(VISION, out_hidden_size=sizes["hidden_size"])
        model = transformers.AutoModelForImageTextToText.from_config(kind(text_config=sizes, vision_config=vision))
    else:
        model = transformers.AutoModelForCausalLM.from_config(kind(**sizes))
    model.eval()
    for parameter in model.parameters():
        # Larger than usual: attention must show in the logits.
        if parameter.dim() > 1:
            parameter.data *= 3
    model.save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)

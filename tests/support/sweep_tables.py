"""Architectures of the sweep, each with its tables and vectors written down by hand.

Everything of two and more dimensions that a line does not name is a hidden matrix, of which those too small, and
depthwise convolutions, get AdamW. Patterns are those of `fnmatch`, over a parameter's whole name. The lists come from
reading the models, not from what the library says of them: change one only if the architecture is understood otherwise.
"""

from typing import Any, NamedTuple


class Case(NamedTuple):
    """One architecture: how it is made, and the roles of its parameters."""

    library: str
    #: The class in Transformers, the model's name elsewhere.
    name: str
    #: The class of its configuration; empty outside of Transformers.
    config: str
    options: dict[str, Any]
    #: Embeddings that are no input of the optimizer's own, heads, routers, positions and tokens.
    tables: tuple[str, ...]
    #: Biases, gains and the like of two and more dimensions.
    vectors: tuple[str, ...] = ()
    #: Weights that a layer keeps as (in, out).
    transposed: tuple[str, ...] = ()
    #: Stacks of matrices along the leading dimensions.
    stacks: tuple[str, ...] = ()
    #: Weights of three dimensions that are one matrix.
    flat: tuple[str, ...] = ()
    #: Fused projections that are split by themselves in equal parts, and how many.
    fused: tuple[tuple[str, int], ...] = ()

    @property
    def id(self) -> str:
        size = self.options.get("hidden_size")
        return f"{self.library}-{self.name}" + (f"-{size}" if size not in (None, 64) else "")


WIDTH = {"hidden_size": 64, "intermediate_size": 128}
BERT = {"vocab_size": 512, **WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
LLAMA = {**BERT, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
MOE = {**LLAMA, "num_local_experts": 4}
GPT2 = {"vocab_size": 512, "n_embd": 64, "n_layer": 1, "n_head": 4}
T5 = {
    "vocab_size": 512,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_heads": 4,
    "num_layers": 1,
    "num_decoder_layers": 1,
}
BART = {
    "vocab_size": 512,
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
WHISPER = {
    **BART,
    "num_mel_bins": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
WAV = {
    **BERT,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "conv_dim": [64, 64],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
}
VIT = {**WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
LABELS = {"num_labels": 100}
SWIN = {
    "embed_dim": 32,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 4,
    "image_size": 32,
    "patch_size": 4,
    **LABELS,
}
TEXT = {"vocab_size": 512, **WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}

_BERT_TABLES = (
    *("*.word_embeddings.weight", "*.position_embeddings.weight"),
    "*.token_type_embeddings.weight",
)
_LLAMA_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_GPT2_TABLES = ("transformer.wte.weight", "transformer.wpe.weight")
_GPT2_LAYERS = ("*.c_attn.weight", "*.c_proj.weight", "*.c_fc.weight")
_BIASES = ("*.r_r_bias", "*.r_s_bias", "*.r_w_bias")
_EXPERTS = ("*.experts.gate_up_proj", "*.experts.down_proj")
_TOKENS = ("*.cls_token", "*.position_embeddings")
_WEIGHT_NORM = ("*.parametrizations.weight.original0",)


def _hf(name: str, config: str, options: dict[str, Any], *tables: str, **rest: Any) -> Case:
    return Case("transformers", name, f"{config}Config", options, tables, **rest)


def _bert(name: str, config: str, *tables: str, **options: Any) -> Case:
    return _hf(name, config, {**BERT, **options}, *_BERT_TABLES, *tables)


def _llama(name: str, *, tied: bool = False) -> Case:
    return _hf(f"{name}ForCausalLM", name, LLAMA, *_LLAMA_TABLES[: 1 if tied else 2])


TRANSFORMERS = [
    # Encoders, by their heads.
    _bert("BertForPreTraining", "Bert", "cls.seq_relationship.weight"),
    _bert("BertForMaskedLM", "Bert", "cls.predictions.decoder.weight", tie_word_embeddings=False),
    _bert("BertForMultipleChoice", "Bert", "classifier.weight"),
    _bert("BertForQuestionAnswering", "Bert", "qa_outputs.weight"),
    _bert("BertForTokenClassification", "Bert", "classifier.weight", num_labels=9),
    # As wide as it has positions.
    _hf(
        "BertModel",
        "Bert",
        {**BERT, "hidden_size": 512},
        "embeddings.*_embeddings.weight",
    ),
    _bert("RobertaForSequenceClassification", "Roberta", "classifier.out_proj.weight", **LABELS),
    _bert("RobertaForMaskedLM", "Roberta", "lm_head.decoder.weight", tie_word_embeddings=False),
    _hf(
        "DebertaV2ForSequenceClassification",
        "DebertaV2",
        {
            **BERT,
            **LABELS,
            "relative_attention": True,
            "position_buckets": 32,
            "pos_att_type": ["p2c", "c2p"],
        },
        *("*.word_embeddings.weight", "*.position_embeddings.weight"),
        *("deberta.encoder.rel_embeddings.weight", "classifier.weight"),
    ),
    _bert("ElectraForPreTraining", "Electra", "discriminator_predictions.dense_prediction.weight"),
    _bert("ElectraForMultipleChoice", "Electra", "classifier.weight"),
    _bert("AlbertForPreTraining", "Albert", "sop_classifier.classifier.weight"),
    _hf(
        "DistilBertForSequenceClassification",
        "DistilBert",
        {
            "vocab_size": 512,
            "dim": 64,
            "hidden_dim": 128,
            "n_layers": 1,
            "n_heads": 4,
            **LABELS,
        },
        *("*.word_embeddings.weight", "*.position_embeddings.weight", "classifier.weight"),
    ),
    _hf(
        "XLNetForSequenceClassification",
        "XLNet",
        {
            "vocab_size": 512,
            "d_model": 64,
            "n_layer": 1,
            "n_head": 4,
            "d_inner": 128,
            **LABELS,
        },
        *("transformer.mask_emb", "transformer.word_embedding.weight", "*.seg_embed"),
        "logits_proj.weight",
        vectors=_BIASES,
        flat=("*.rel_attn.[qkvro]",),
        transposed=("*.rel_attn.[qkvr]",),
    ),
    _hf(
        "XLMForSequenceClassification",
        "XLM",
        {"vocab_size": 512, "emb_dim": 64, "n_layers": 1, "n_heads": 4, **LABELS},
        *("transformer.position_embeddings.weight", "transformer.embeddings.weight"),
        "sequence_summary.summary.weight",
    ),
    _hf(
        "FunnelForSequenceClassification",
        "Funnel",
        {
            "vocab_size": 512,
            "block_sizes": [1, 1],
            "d_model": 64,
            "n_head": 4,
            "d_head": 16,
            "d_inner": 128,
            **LABELS,
        },
        *("*.word_embeddings.weight", "*.seg_embed", "classifier.linear_out.weight"),
        vectors=_BIASES,
        flat=("*.r_kernel",),
        transposed=("*.r_kernel",),
    ),
    _hf(
        "ConvBertForSequenceClassification",
        "ConvBert",
        {**BERT, **LABELS},
        *(*_BERT_TABLES, "classifier.out_proj.weight"),
        vectors=("*.key_conv_attn_layer.bias",),
    ),
    _hf(
        "ReformerForSequenceClassification",
        "Reformer",
        {
            "vocab_size": 320,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "attention_head_size": 16,
            "feed_forward_size": 128,
            "attn_layers": ["local"],
            "axial_pos_embds_dim": [32, 32],
            "axial_pos_shape": [8, 8],
            **LABELS,
        },
        *("*.word_embeddings.weight", "*.position_embeddings.weights.[01]"),
        "classifier.out_proj.weight",
    ),
    _hf(
        "PerceiverForSequenceClassification",
        "Perceiver",
        {
            "num_latents": 64,
            "d_latents": 64,
            "d_model": 64,
            "num_blocks": 1,
            **LABELS,
            "num_self_attends_per_block": 1,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
        },
        *("*.input_preprocessor.embeddings.weight", "*.position_embeddings.weight"),
        *("perceiver.embeddings.latents", "*.output_position_encodings.position_embeddings"),
        "*.final_layer.weight",
    ),
    # Decoders.
    _hf("GPT2LMHeadModel", "GPT2", GPT2, *_GPT2_TABLES, transposed=_GPT2_LAYERS),
    _hf(
        "GPT2DoubleHeadsModel",
        "GPT2",
        GPT2,
        *(*_GPT2_TABLES, "multiple_choice_head.summary.weight"),
        transposed=_GPT2_LAYERS,
    ),
    _hf(
        "GPT2ForTokenClassification",
        "GPT2",
        {**GPT2, **LABELS},
        *(*_GPT2_TABLES, "classifier.weight"),
        transposed=_GPT2_LAYERS,
    ),
    _hf("GPTNeoXForCausalLM", "GPTNeoX", BERT, "gpt_neox.embed_in.weight", "lm_head.weight"),
    _hf(
        "BloomForCausalLM",
        "Bloom",
        {"vocab_size": 512, "hidden_size": 64, "n_layer": 1, "n_head": 4},
        "transformer.word_embeddings.weight",
    ),
    _hf(
        "OPTForCausalLM",
        "OPT",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 48,
        },
        *("model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"),
    ),
    *(_llama(name) for name in ("Llama", "Mistral", "Qwen3", "Phi3", "Olmo2", "Glm4")),
    _llama("Cohere", tied=True),
    _hf("Gemma3ForCausalLM", "Gemma3Text", LLAMA, "model.embed_tokens.weight"),
    _hf(
        "LlamaForSequenceClassification",
        "Llama",
        {**LLAMA, **LABELS},
        *("model.embed_tokens.weight", "score.weight"),
    ),
    # Experts.
    _hf("MixtralForCausalLM", "Mixtral", MOE, *_LLAMA_TABLES, "*.mlp.gate.weight", stacks=_EXPERTS),
    _hf(
        "Qwen2MoeForCausalLM",
        "Qwen2Moe",
        {
            **LLAMA,
            "num_experts": 4,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 64,
        },
        *(*_LLAMA_TABLES, "*.mlp.gate.weight"),
        stacks=_EXPERTS,
    ),
    _hf(
        "GptOssForCausalLM",
        "GptOss",
        MOE,
        *(*_LLAMA_TABLES, "*.router.weight"),
        vectors=("*.gate_up_proj_bias", "*.down_proj_bias"),
        stacks=_EXPERTS,
        transposed=_EXPERTS,
    ),
    _hf(
        "OlmoeForCausalLM",
        "Olmoe",
        {**LLAMA, "num_experts": 4},
        *(*_LLAMA_TABLES, "*.mlp.gate.weight"),
        stacks=_EXPERTS,
    ),
    _hf(
        "DeepseekV3ForCausalLM",
        "DeepseekV3",
        {
            **BERT,
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 48,
            "q_lora_rank": 48,
            "kv_lora_rank": 32,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
        },
        *(*_LLAMA_TABLES, "*.mlp.gate.weight"),
        stacks=_EXPERTS,
    ),
    _hf(
        "GraniteMoeForCausalLM",
        "GraniteMoe",
        MOE,
        *(*_LLAMA_TABLES, "*.router.weight"),
        stacks=_EXPERTS,
    ),
    _hf(
        "JetMoeForCausalLM",
        "JetMoe",
        {
            **WIDTH,
            "vocab_size": 512,
            "num_hidden_layers": 1,
            "num_key_value_heads": 2,
            "kv_channels": 16,
            "num_local_experts": 4,
        },
        *("model.embed_tokens.weight", "*.router.layer.weight"),
        stacks=("*.input_linear.weight", "*.output_linear.weight"),
    ),
    _hf(
        "Llama4ForCausalLM",
        "Llama4Text",
        {**MOE, "intermediate_size_mlp": 128, "interleave_moe_layer_step": 1},
        *(*_LLAMA_TABLES, "*.router.weight"),
        stacks=_EXPERTS,
        transposed=_EXPERTS,
    ),
    _hf(
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformers",
        {
            **T5,
            "num_layers": 2,
            "num_experts": 4,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
        },
        *("shared.weight", "*.relative_attention_bias.weight", "*.router.classifier.weight"),
    ),
    # State spaces and other recurrences.
    _hf(
        "MambaForCausalLM",
        "Mamba",
        {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 1},
        "backbone.embeddings.weight",
        vectors=("*.A_log",),
    ),
    _hf(
        "Mamba2ForCausalLM",
        "Mamba2",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 1,
            "state_size": 16,
        },
        *("backbone.embeddings.weight", "lm_head.weight"),
    ),
    _hf(
        "JambaForCausalLM",
        "Jamba",
        {
            **LLAMA,
            "num_hidden_layers": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
        },
        *(*_LLAMA_TABLES, "*.router.weight"),
        vectors=("*.A_log",),
        stacks=_EXPERTS,
    ),
    _hf(
        "RwkvForCausalLM",
        "Rwkv",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "attention_hidden_size": 64,
        },
        *("rwkv.embeddings.weight", "head.weight"),
        vectors=("*.time_mix_*",),
    ),
    _hf(
        "RecurrentGemmaForCausalLM",
        "RecurrentGemma",
        {**LLAMA, "num_hidden_layers": 3, "lru_width": 128, "head_dim": 32},
        "model.embed_tokens.weight",
        vectors=("*.input_gate_bias", "*.recurrent_gate_bias"),
        stacks=("*.input_gate_weight", "*.recurrent_gate_weight"),
    ),
    # Encoders with decoders.
    _hf(
        "T5ForConditionalGeneration", "T5", T5, "shared.weight", "*.relative_attention_bias.weight"
    ),
    _hf(
        "T5ForSequenceClassification",
        "T5",
        {**T5, **LABELS},
        *("transformer.shared.weight", "*.relative_attention_bias.weight"),
        "classification_head.out_proj.weight",
    ),
    _hf(
        "BartForSequenceClassification",
        "Bart",
        {**BART, **LABELS},
        *("model.shared.weight", "*.embed_positions.weight", "classification_head.out_proj.weight"),
    ),
    # Speech.
    _hf(
        "WhisperForConditionalGeneration",
        "Whisper",
        WHISPER,
        *("*.decoder.embed_tokens.weight", "*.decoder.embed_positions.weight"),
    ),
    _hf("WhisperForAudioClassification", "Whisper", {**WHISPER, **LABELS}, "classifier.weight"),
    _hf("Wav2Vec2ForCTC", "Wav2Vec2", WAV, "lm_head.weight", vectors=_WEIGHT_NORM),
    _hf(
        "Wav2Vec2ForPreTraining",
        "Wav2Vec2",
        {
            **WAV,
            "codevector_dim": 64,
            "proj_codevector_dim": 64,
            "num_codevectors_per_group": 40,
        },
        "quantizer.codevectors",
        vectors=_WEIGHT_NORM,
    ),
    _hf(
        "WavLMForXVector",
        "WavLM",
        {
            **WAV,
            **LABELS,
            "tdnn_dim": [64, 64],
            "tdnn_kernel": [5, 3],
            "tdnn_dilation": [1, 2],
            "xvector_output_dim": 48,
        },
        *("*.rel_attn_embed.weight", "classifier.weight", "objective.weight"),
        vectors=(*_WEIGHT_NORM, "*.gru_rel_pos_const"),
    ),
    # Vision.
    _hf(
        "ViTForImageClassification",
        "ViT",
        {**VIT, **LABELS},
        *(*_TOKENS, "classifier.weight"),
    ),
    _hf(
        "ViTForMaskedImageModeling",
        "ViT",
        VIT,
        *(*_TOKENS, "*.mask_token", "decoder.0.weight"),
    ),
    _hf(
        "ViTMAEForPreTraining",
        "ViTMAE",
        {
            **VIT,
            "decoder_hidden_size": 48,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 96,
        },
        *("*.cls_token", "*.mask_token", "decoder.decoder_pred.weight"),
    ),
    _hf(
        "DeiTForImageClassificationWithTeacher",
        "DeiT",
        {**VIT, **LABELS},
        *(*_TOKENS, "*.distillation_token", "cls_classifier.weight"),
        "distillation_classifier.weight",
    ),
    _hf(
        "BeitForImageClassification",
        "Beit",
        {
            **VIT,
            **LABELS,
            "vocab_size": 512,
            "use_relative_position_bias": True,
            "use_mask_token": True,
            "use_absolute_position_embeddings": True,
        },
        *(*_TOKENS, "*.mask_token", "*.relative_position_bias_table", "classifier.weight"),
    ),
    _hf(
        "BeitForMaskedImageModeling",
        "Beit",
        {**VIT, "vocab_size": 512, "use_shared_relative_position_bias": True},
        *("*.cls_token", "*.relative_position_bias_table", "lm_head.weight"),
    ),
    _hf(
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegisters",
        {**VIT, **LABELS},
        *(*_TOKENS, "*.mask_token", "*.register_tokens", "classifier.weight"),
    ),
    _hf(
        "SwinForImageClassification",
        "Swin",
        SWIN,
        *("*.relative_position_bias_table", "classifier.weight"),
    ),
    _hf(
        "Swinv2ForImageClassification",
        "Swinv2",
        SWIN,
        "classifier.weight",
        vectors=("*.logit_scale",),
    ),
    _hf(
        "ConvNextForImageClassification",
        "ConvNext",
        {"hidden_sizes": [32, 64], "depths": [1, 1], "num_stages": 2, **LABELS},
        "classifier.weight",
    ),
    _hf(
        "ResNetForImageClassification",
        "ResNet",
        {"hidden_sizes": [64] * 4, "depths": [1] * 4, "embedding_size": 64, **LABELS},
        "classifier.1.weight",
    ),
    _hf(
        "SegformerForSemanticSegmentation",
        "Segformer",
        {
            "hidden_sizes": [32, 64],
            "depths": [1, 1],
            "num_encoder_blocks": 2,
            "sr_ratios": [2, 1],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 48,
            "num_labels": 50,
        },
        "decode_head.classifier.weight",
    ),
    _hf(
        "MobileViTForImageClassification",
        "MobileViT",
        {"hidden_sizes": [48, 64, 64], "image_size": 64, **LABELS},
        "classifier.weight",
    ),
    # Several at once.
    _hf(
        "CLIPModel",
        "CLIP",
        {"text_config": TEXT, "vision_config": VIT, "projection_dim": 48},
        *("*.token_embedding.weight", "*.position_embedding.weight"),
    ),
    _hf(
        "SiglipVisionModel",
        "SiglipVision",
        VIT,
        *("*embeddings.position_embedding.weight", "*head.probe"),
        fused=(("*head.attention.in_proj_weight", 3),),
    ),
    _hf(
        "LlavaForConditionalGeneration",
        "Llava",
        {
            "vision_config": {"model_type": "clip_vision_model", **VIT},
            "text_config": {"model_type": "llama", **LLAMA},
        },
        *("*.position_embedding.weight", "*.embed_tokens.weight", "lm_head.weight"),
    ),
    _hf(
        "Blip2ForConditionalGeneration",
        "Blip2",
        {
            "vision_config": VIT,
            "qformer_config": {**BERT, "encoder_hidden_size": 64},
            "text_config": {
                "model_type": "opt",
                "vocab_size": 512,
                "hidden_size": 64,
                "ffn_dim": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "word_embed_proj_dim": 64,
            },
            "num_query_tokens": 4,
        },
        *("query_tokens", "*.class_embedding", "*.position_embedding"),
        *("*.embed_tokens.weight", "*.embed_positions.weight"),
    ),
    _hf(
        "PatchTSTForPrediction",
        "PatchTST",
        {
            "d_model": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "context_length": 64,
            "prediction_length": 40,
        },
        "head.projection.weight",
    ),
]


def _timm(name: str, *tables: str, options: dict[str, Any] | None = None, **rest: Any) -> Case:
    return Case("timm", name, "", options or {}, tables, **rest)


TIMM = [
    _timm("vit_tiny_patch16_224", "cls_token", "pos_embed", "head.weight"),
    _timm(
        "deit_tiny_distilled_patch16_224",
        *("cls_token", "dist_token", "pos_embed", "head.weight", "head_dist.weight"),
    ),
    _timm("cait_xxs24_224", "cls_token", "pos_embed", "head.weight"),
    _timm("beit_base_patch16_224", "cls_token", "*.relative_position_bias_table", "head.weight"),
    # Pools by attention, has no head.
    _timm("vit_base_patch16_siglip_224", "pos_embed", "attn_pool.latent"),
    _timm("eva02_tiny_patch14_224", "cls_token", "pos_embed"),
    _timm("volo_d1_224", "cls_token", "pos_embed", "aux_head.weight", "head.weight"),
    _timm("swin_tiny_patch4_window7_224", "*.relative_position_bias_table", "head.fc.weight"),
    _timm("swinv2_tiny_window8_256", "head.fc.weight", vectors=("*.logit_scale",)),
    _timm("maxvit_tiny_rw_224", "*.relative_position_bias_table", "head.fc.weight"),
    _timm("hiera_tiny_224", "pos_embed", "head.fc.weight"),
    _timm("mvitv2_tiny", "*.rel_pos_h", "*.rel_pos_w", "head.fc.weight"),
    _timm(
        "levit_128s",
        *("head.linear.weight", "head_dist.linear.weight"),
        vectors=("*.attention_biases",),
    ),
    _timm("xcit_nano_12_p16_224", "cls_token", "head.weight", vectors=("*.temperature",)),
    _timm("crossvit_tiny_240", "cls_token_[01]", "pos_embed_[01]", "head.[01].weight"),
    _timm("pvt_v2_b0", "head.weight"),
    _timm("mixer_s16_224", "head.weight"),
    _timm("gmlp_s16_224", "head.weight"),
    _timm("resmlp_12_224", "head.weight", vectors=("*.alpha", "*.beta")),
    _timm("convnextv2_atto", "head.fc.weight"),
    _timm("resnet18", "fc.weight"),
    _timm("resnext50_32x4d", "fc.weight"),
    _timm("mobilenetv3_small_100", "classifier.weight"),
    _timm("efficientnet_b0", "classifier.weight"),
    _timm("regnety_004", "head.fc.weight"),
    _timm("densenet121", "classifier.weight"),
    _timm("dm_nfnet_f0", "head.fc.weight", vectors=("*.gain",)),
    _timm("mambaout_femto", "head.fc.weight"),
    _timm(
        "botnet26t_256",
        *("*.height_rel", "*.width_rel", "head.fc.weight"),
        options={"img_size": 512},
    ),
]


def _vision(name: str, *tables: str, options: dict[str, Any] | None = None, **rest: Any) -> Case:
    return Case("torchvision", name, "", options or {}, tables, **rest)


TORCHVISION = [
    _vision("alexnet", "classifier.6.weight"),
    _vision("squeezenet1_0", "classifier.1.weight"),
    _vision("googlenet", "fc.weight", "aux[12].fc2.weight", options={"init_weights": False}),
    _vision("inception_v3", "fc.weight", "AuxLogits.fc.weight", options={"init_weights": False}),
    _vision(
        "vit_b_16",
        *("class_token", "encoder.pos_embedding", "heads.head.weight"),
        fused=(("*.in_proj_weight", 3),),
    ),
    _vision("swin_v2_t", "head.weight", vectors=("*.logit_scale",)),
    _vision("maxvit_t", "*.relative_position_bias_table", "classifier.5.weight"),
    _vision("mnasnet0_5", "classifier.1.weight"),
]

CASES = [*TRANSFORMERS, *TIMM, *TORCHVISION]

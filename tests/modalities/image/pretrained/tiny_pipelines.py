"""Tiny diffusers folders of every real class, with random weights and tokenizers made on the spot."""

import importlib
import string
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

# Type checkers see neither library's lazy exports.
diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")

WIDTH = 16  # of every text encoder but SD3's and Flux's T5
CLIP_TOKENS = 20
VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def randomise(module: nn.Module, seed: int) -> Any:
    """No weight at its initial 0 or 1: a term that starts switched off would go untested."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def clip_tokenizer() -> Any:
    letters = sorted(ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocab = {word: index for index, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=CLIP_TOKENS)


def clip(tokenizer: Any, *, projected: bool, seed: int) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return randomise(kind(config), seed)


def t5(width: int) -> tuple[Any, Any]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in string.ascii_letters + string.digits + ",."]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=0)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=width, num_layers=2, num_heads=2
    )
    return tokenizer, randomise(transformers.T5EncoderModel(config), 3)


def gemma() -> tuple[Any, Any]:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
    words += [f"<0x{byte:02X}>" for byte in range(256)] + list(string.ascii_letters)
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = transformers.GemmaTokenizer(vocab=vocab, merges=[])
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return tokenizer, randomise(transformers.Gemma2Model(config), 4)


def qwen() -> tuple[Any, Any]:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {word: index for index, word in enumerate([*special, *sorted(ByteLevel.alphabet())])}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=special[1:])
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            "bos_token_id": tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 1,
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
        },
    )
    return tokenizer, randomise(transformers.Qwen2_5_VLForConditionalGeneration(config), 5)


def kl(**config: Any) -> Any:
    vae = diffusers.AutoencoderKL(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
        **config,
    )
    return randomise(vae, 6)


def unet(**config: Any) -> Any:
    network = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        **config,
    )
    return randomise(network, 7)


def sd15() -> Any:
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=kl(),
        text_encoder=clip(tokenizer, projected=False, seed=1),
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=WIDTH),
        scheduler=diffusers.PNDMScheduler(**VP, steps_offset=1, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    tokenizer = clip_tokenizer()
    network = unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=kl(scaling_factor=0.13025),
        text_encoder=clip(tokenizer, projected=False, seed=1),
        text_encoder_2=clip(tokenizer, projected=True, seed=2),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=network,
        scheduler=diffusers.EulerDiscreteScheduler(
            **VP, steps_offset=1, timestep_spacing="leading", prediction_type="v_prediction"
        ),
    )


def pixart_alpha() -> Any:
    tokenizer, text_encoder = t5(WIDTH)
    network = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,  # a learned variance besides the noise
        num_layers=2,
        cross_attention_dim=24,
        sample_size=128,  # the size at which the network is told resolution and aspect ratio
        caption_channels=WIDTH,
    )
    return diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=kl(),
        transformer=randomise(network, 7),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    )


def pixart_sigma() -> Any:
    tokenizer, text_encoder = t5(WIDTH)
    network = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=128,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=kl(),
        transformer=randomise(network, 7),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    )


def sd3() -> Any:
    tokenizer = clip_tokenizer()
    tokenizer_3, text_encoder_3 = t5(2 * WIDTH)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=randomise(network, 7),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(tokenizer, projected=True, seed=1),
        tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, projected=True, seed=2),
        tokenizer_2=tokenizer,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    )


def flux() -> Any:
    tokenizer = clip_tokenizer()
    tokenizer_2, text_encoder_2 = t5(2 * WIDTH)
    network = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=kl(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip(tokenizer, projected=False, seed=1),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=randomise(network, 7),
    )


def sana() -> Any:
    tokenizer, text_encoder = gemma()
    network = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=32,
        timestep_scale=0.9,
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=randomise(vae, 6),
        transformer=randomise(network, 7),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def qwen_image() -> Any:
    tokenizer, text_encoder = qwen()
    network = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 0.5, 1.0],
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9, max_image_seq_len=8192
    )
    return diffusers.QwenImagePipeline(
        scheduler=scheduler,
        vae=randomise(vae, 6),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=randomise(network, 7),
    )


def build(name: str) -> Any:
    """A whole pipeline by the name of its function."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return globals()[name]()

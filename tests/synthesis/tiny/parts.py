"""Tiny parts with random weights, shaped as the published ones: eightfold VAEs, 2 x 2 packing, the same blocks."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

TEXT_WIDTH = 16
_ATTENTION: dict[str, Any] = {
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_WIDTH,
    "axes_dims_rope": (4, 4, 8),
}


def randomised(model: torch.nn.Module, std: float = 0.3) -> torch.nn.Module:
    """The model with every matrix that starts at zero made random.

    Output projections of ControlNets and BrushNets start at zero: left so, the tiny pipeline would ignore its
    condition, and no test could see one that is wired wrongly.
    """
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def clip_text_encoder(tokenizer: Any, model_class: Any = CLIPTextModel) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model_class(config).eval()


def t5_encoder(tokenizer: Any) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_ff=2 * TEXT_WIDTH,
        d_kv=8,
        num_heads=2,
        num_layers=1,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config).eval()


def kl_vae(channels: int, scaling: float, shift: float | None = None) -> AutoencoderKL:
    """With a shift as Flux has it, without as Stable Diffusion."""
    flux = {} if shift is None else {"shift_factor": shift, "use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling,
        **flux,
    ).eval()


def sdxl_unet() -> UNet2DConditionModel:
    """Nine channels in: noise, masked latents and mask. Text of two encoders side by side, six numbers of size."""
    time_width = 8
    return UNet2DConditionModel(
        in_channels=9,
        out_channels=4,
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2, 2),
        transformer_layers_per_block=(1, 1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=6 * time_width + TEXT_WIDTH,
        cross_attention_dim=2 * TEXT_WIDTH,
    ).eval()


def sd15_unet() -> UNet2DConditionModel:
    """Four channels in, and the four levels of Stable Diffusion 1.5 with two layers each."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=2,
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
    ).eval()


def flux_transformer(in_channels: int) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=in_channels,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        **_ATTENTION,
    ).eval()


def flux_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def qwen_transformer() -> QwenImageTransformer2DModel:
    """With words a hundred times as loud as chance makes them: they would not move a pixel by one step otherwise."""
    model = QwenImageTransformer2DModel(patch_size=2, in_channels=64, out_channels=16, num_layers=2, **_ATTENTION)
    with torch.no_grad():
        for block in model.transformer_blocks:
            block.attn.add_v_proj.weight.mul_(100)
    return model.eval()


def qwen_controlnet() -> torch.nn.Module:
    """Of the inpainting kind: latents of the picture with the hole, and the mask as one channel more."""
    network = QwenImageControlNetModel(
        patch_size=2, in_channels=64, out_channels=16, num_layers=1, extra_condition_channels=4, **_ATTENTION
    )
    return randomised(network)


def qwen_vae() -> AutoencoderKLQwenImage:
    """With latents that tell pictures apart: as chance makes them their own noise is twenty times as large."""
    model = AutoencoderKLQwenImage(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    with torch.no_grad():
        model.quant_conv.weight[:16].mul_(20)
    return model.eval()


def qwen_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256,
        max_image_seq_len=8192,
        base_shift=0.5,
        max_shift=0.9,
        shift=1.0,
        shift_terminal=0.02,
        use_dynamic_shifting=True,
        time_shift_type="exponential",
    )


def qwen_text_encoder(tokenizer: Any) -> Qwen2_5_VLForConditionalGeneration:
    marks = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("image_token_id", "<|image_pad|>"),
            ("video_token_id", "<|video_pad|>"),
            ("vision_start_token_id", "<|vision_start|>"),
            ("vision_end_token_id", "<|vision_end|>"),
            ("vision_token_id", "<|vision_pad|>"),
        )
    }
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>")}
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    text = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "rope_scaling": rope,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": 4096,
        **ends,
    }
    vision = {
        "depth": 1,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "patch_size": 14,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, hidden_size=TEXT_WIDTH, vocab_size=len(tokenizer), **marks
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()

"""The tiny pipelines are worth testing with: templates are cut where they end, conditions are heard, weights repeat."""

import pytest
import torch

from tests.synthesis.tiny import parts, pipelines
from tests.synthesis.tiny.tokenizers import qwen_template, qwen_tokenizer


@pytest.mark.parametrize("name", ["QwenImageControlNetInpaintPipeline", "QwenImageEditPipeline"])
def test_qwens_template_has_as_many_tokens_as_its_pipeline_cuts_off(name):
    import diffusers

    text, cut = qwen_template(getattr(diffusers, name))
    before = text.split("{}")[0].split("<|vision_start|>")[0]
    assert len(qwen_tokenizer()(before).input_ids) == cut


def test_a_controlnet_that_starts_at_zero_is_made_to_speak():
    assert all(parameter.any() for parameter in parts.qwen_controlnet().parameters() if parameter.ndim > 1)


def test_a_kind_has_the_same_weights_every_time_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    first = pipelines.build("flux-fill").transformer.state_dict()
    drawn = torch.rand(1)
    second = pipelines.build("flux-fill").transformer.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))

"""The folded attention-pooling head is transformers' head, gradients included."""

import pytest
import torch
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from nearid_ray.errors import UsageError
from nearid_ray.models.head import AttentionPoolingHead

WIDTH, HEADS, MLP_WIDTH, EPS = 48, 4, 80, 1e-6


def pair_of_heads(dtype: torch.dtype) -> tuple[AttentionPoolingHead, torch.nn.Module]:
    """Our head and transformers', with the same random weights, biases included."""
    torch.manual_seed(3)
    config = SiglipVisionConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=MLP_WIDTH, layer_norm_eps=EPS
    )
    theirs = SiglipMultiheadAttentionPoolingHead(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ours = AttentionPoolingHead(WIDTH, HEADS, MLP_WIDTH, EPS)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.to(dtype), theirs.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_output_and_every_gradient_equal_those_of_transformers(dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = pair_of_heads(dtype)
    tokens_BTD = torch.randn(5, 23, WIDTH, dtype=dtype)
    direction_BD = torch.randn(5, WIDTH, dtype=dtype)
    gradients = []
    for head in (ours, theirs):
        leaf_BTD = tokens_BTD.clone().requires_grad_()
        embedding_BD = head(leaf_BTD)
        (embedding_BD * direction_BD).sum().backward()
        named = {name: parameter.grad for name, parameter in head.named_parameters()}
        gradients.append(named | {"tokens": leaf_BTD.grad, "embedding": embedding_BD.detach()})
    mine, reference = gradients
    assert mine.keys() == reference.keys()
    for name, expected in reference.items():
        scale = max(1.0, expected.abs().max().item())
        assert (mine[name] - expected).abs().max().item() <= tolerance * scale, name


def test_state_dict_has_the_same_names_and_shapes_as_transformers() -> None:
    ours, theirs = pair_of_heads(torch.float32)
    shapes = [{name: tuple(value.shape) for name, value in head.state_dict().items()} for head in (ours, theirs)]
    assert shapes[0] == shapes[1]
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_attention_sums_to_one_and_is_that_of_transformers() -> None:
    ours, theirs = pair_of_heads(torch.float64)
    tokens_BTD = torch.randn(3, 17, WIDTH, dtype=torch.float64)
    mine_BHT = ours.attention_BHT(tokens_BTD)
    _, reference_B1HT = theirs.attention(
        theirs.probe.repeat(3, 1, 1), tokens_BTD, tokens_BTD, average_attn_weights=False
    )
    assert mine_BHT.shape == (3, HEADS, 17)
    torch.testing.assert_close(mine_BHT.sum(-1), torch.ones(3, HEADS, dtype=torch.float64))
    torch.testing.assert_close(mine_BHT, reference_B1HT[:, :, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tokens_of_other_types_are_computed_in_the_type_of_the_weights(dtype: torch.dtype) -> None:
    ours, _ = pair_of_heads(torch.float32)
    tokens_BTD = torch.randn(2, 9, WIDTH).to(dtype)
    embedding_BD = ours(tokens_BTD)
    assert embedding_BD.dtype == torch.float32
    torch.testing.assert_close(embedding_BD, ours(tokens_BTD.float()))


def test_autocast_computes_in_its_own_type_and_stays_close() -> None:
    ours, _ = pair_of_heads(torch.float32)
    tokens_BTD = torch.randn(4, 9, WIDTH).half()
    with torch.autocast("cpu", torch.bfloat16):
        rough_BD = ours(tokens_BTD)
    similarity_B = torch.cosine_similarity(rough_BD.float(), ours(tokens_BTD))
    assert similarity_B.min() > 0.999


def test_an_empty_batch_gives_every_parameter_a_zero_gradient() -> None:
    ours, _ = pair_of_heads(torch.float32)
    ours(torch.empty(0, 9, WIDTH)).sum().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_the_key_bias_gets_an_exactly_zero_gradient() -> None:
    ours, _ = pair_of_heads(torch.float32)
    ours(torch.randn(4, 9, WIDTH)).square().sum().backward()
    gradient = ours.attention.in_proj_bias.grad
    assert gradient is not None and not gradient[WIDTH : 2 * WIDTH].any() and gradient[:WIDTH].any()


def test_from_state_dict_reads_the_sizes_and_refuses_other_weights() -> None:
    ours, _ = pair_of_heads(torch.float32)
    copy = AttentionPoolingHead.from_state_dict(ours.state_dict(), HEADS, EPS)
    assert (copy.width, copy.mlp_width) == (WIDTH, MLP_WIDTH)
    tokens_BTD = torch.randn(2, 5, WIDTH)
    assert torch.equal(copy(tokens_BTD), ours(tokens_BTD))
    with pytest.raises(UsageError, match="not those of an attention-pooling head"):
        AttentionPoolingHead.from_state_dict({"weight": torch.zeros(3)}, HEADS)


def test_wrong_sizes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="width a multiple of heads"):
        AttentionPoolingHead(50, 4, 80)
    with pytest.raises(ValueError, match=r"\(images, tokens, 48\), got \(2, 5, 32\)"):
        pair_of_heads(torch.float32)[0](torch.zeros(2, 5, 32))

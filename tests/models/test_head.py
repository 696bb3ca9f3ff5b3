"""The folded attention-pooling head is transformers' head, gradients included."""

import math

import pytest
import torch
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from nearid_ray.errors import UsageError
from nearid_ray.models import pooling, products
from nearid_ray.models.head import AttentionPoolingHead, embed_with_all

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


def outcome(head: torch.nn.Module, tokens_BTD: torch.Tensor, direction_BD: torch.Tensor) -> dict[str, torch.Tensor]:
    """The embedding and all gradients of a linear function of it."""
    leaf_BTD = tokens_BTD.clone().requires_grad_()
    embedding_BD = head(leaf_BTD)
    (embedding_BD * direction_BD).sum().backward()
    named = {name: parameter.grad for name, parameter in head.named_parameters()}
    return named | {"tokens": leaf_BTD.grad, "embedding": embedding_BD.detach()}


@pytest.mark.parametrize("way", ["together", "in parts", "image by image", "without oneDNN"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_output_and_every_gradient_equal_those_of_transformers(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float, way: str
) -> None:
    if way == "in parts":
        monkeypatch.setattr(pooling, "_PART_BYTES", {"cpu": 2 * 23 * WIDTH * dtype.itemsize})  # of 2, 2 and 1 images
    if way == "image by image":
        monkeypatch.setattr(pooling, "_LARGE_IMAGE", 1)
    if way == "without oneDNN":
        monkeypatch.setattr(products, "_onednn", lambda: None)
    ours, theirs = pair_of_heads(dtype)
    tokens_BTD = torch.randn(5, 23, WIDTH, dtype=dtype)
    direction_BD = torch.randn(5, WIDTH, dtype=dtype)
    mine, reference = (outcome(head, tokens_BTD, direction_BD) for head in (ours, theirs))
    assert mine.keys() == reference.keys()
    for name, expected in reference.items():
        scale = max(1.0, expected.abs().max().item())
        assert (mine[name] - expected).abs().max().item() <= tolerance * scale, name


def test_in_bfloat16_it_is_as_near_to_the_exact_head_as_transformers() -> None:
    exact, _ = pair_of_heads(torch.float64)
    ours, theirs = pair_of_heads(torch.bfloat16)
    exact.load_state_dict(ours.state_dict())  # the rounded weights
    tokens_BTD, direction_BD = torch.randn(8, 40, WIDTH).bfloat16(), torch.randn(8, WIDTH).bfloat16()
    mine, reference = (outcome(head, tokens_BTD, direction_BD) for head in (ours, theirs))
    for name, expected in outcome(exact, tokens_BTD.double(), direction_BD.double()).items():
        size = expected.norm().item()
        if name == "attention.in_proj_bias":  # the part of the keys is zero but for rounding
            size = max(size, 1e-6)
        assert mine[name].dtype == torch.bfloat16
        errors = [(result[name].double() - expected).norm().item() / size for result in (mine, reference)]
        assert errors[0] <= max(1.5 * errors[1], 0.004), (name, errors)


def test_the_gradient_of_tokens_is_that_of_finite_differences() -> None:
    ours, _ = pair_of_heads(torch.float64)
    tokens_BTD = torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda tokens_BTD: ours(tokens_BTD)[:, :4], tokens_BTD)


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
    _, averaged_B1T = theirs.attention(theirs.probe.repeat(3, 1, 1), tokens_BTD, tokens_BTD)
    torch.testing.assert_close(ours.mean_attention_BT(tokens_BTD), averaged_B1T[:, 0])


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


def test_several_heads_in_one_pass_give_what_each_gives_alone() -> None:
    torch.manual_seed(5)
    heads = [AttentionPoolingHead(WIDTH, attention_heads, MLP_WIDTH) for attention_heads in (4, 4, 2)]
    tokens_BTD, direction_BD = torch.randn(6, 11, WIDTH), torch.randn(6, WIDTH)
    alone = [outcome(head, tokens_BTD, direction_BD) for head in heads]
    for head in heads:
        head.zero_grad()
    together = embed_with_all(heads, tokens_BTD)
    sum((embedding_BD * direction_BD).sum() for embedding_BD in together).backward()  # type: ignore[union-attr]
    for head, embedding_BD, expected in zip(heads, together, alone, strict=True):
        torch.testing.assert_close(embedding_BD.detach(), expected["embedding"])
        for name, parameter in head.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name])


def test_heads_of_different_widths_do_not_share_a_pass() -> None:
    heads = [AttentionPoolingHead(width, 4, MLP_WIDTH) for width in (WIDTH, 2 * WIDTH)]
    with pytest.raises(ValueError, match=r"one width and type, got width 48, torch.float32; width 96"):
        embed_with_all(heads, torch.zeros(1, 2, WIDTH))
    with pytest.raises(ValueError, match="got none"):
        embed_with_all([], torch.zeros(1, 2, WIDTH))


def test_a_new_head_depends_on_its_seed_alone_and_leaves_the_random_state() -> None:
    torch.manual_seed(1)
    first = AttentionPoolingHead.initialised(WIDTH, HEADS, MLP_WIDTH, seed=3).state_dict()
    torch.manual_seed(2)
    following = torch.rand(1)
    torch.manual_seed(2)
    again = AttentionPoolingHead.initialised(WIDTH, HEADS, MLP_WIDTH, seed=3)
    AttentionPoolingHead.from_state_dict(again.state_dict(), HEADS)
    assert torch.equal(torch.rand(1), following)
    other = AttentionPoolingHead.initialised(WIDTH, HEADS, MLP_WIDTH, seed=4).state_dict()
    for name, value in again.state_dict().items():
        assert torch.equal(value, first[name]), name
        assert torch.equal(value, other[name]) == (value.ndim == 1), name


def test_a_new_head_has_bounded_matrices_no_biases_and_an_identity_norm() -> None:
    state = AttentionPoolingHead.initialised(64, 4, 256).state_dict()
    assert all(not value.any() for name, value in state.items() if name.endswith("bias"))
    assert torch.equal(state["layernorm.weight"], torch.ones(64))
    shapes = {"probe": (64, 64), "attention.in_proj_weight": (192, 64), "mlp.fc1.weight": (256, 64)}
    for name, (rows, columns) in shapes.items():
        bound = math.sqrt(6 / (rows + columns))
        assert 0.9 * bound < state[name].abs().max() <= bound
        assert state[name].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25 if name == "probe" else 0.05)


def test_images_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        pair_of_heads(torch.float32)[0](torch.zeros(2, 0, WIDTH))


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

"""Products by oneDNN are torch's own, whatever way the matrices lie in memory."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nearid_ray.models import products
from nearid_ray.models.products import linear, product


def laid_out(rows: int, columns: int, way: str) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    values = torch.randn(rows, columns, generator=generator)
    if way == "columns":
        return values.t().contiguous().t()
    if way == "rows of a larger one":
        return torch.cat([values, values], dim=1)[:, :columns]
    if way == "every other column":
        return torch.stack([values, values], dim=2)[:, :, 0]
    return values


WAYS = ("rows", "columns", "rows of a larger one", "every other column")


@pytest.mark.parametrize(("left_way", "right_way"), itertools.product(WAYS, WAYS))
@pytest.mark.parametrize(("rows", "others", "inner"), [(1, 1, 1), (16, 730, 64), (3, 1, 7), (65, 16, 1), (0, 3, 4)])
def test_a_product_is_torchs(left_way: str, right_way: str, rows: int, others: int, inner: int) -> None:
    left, right = laid_out(rows, inner, left_way), laid_out(others, inner, right_way)
    torch.testing.assert_close(product(left, right), left @ right.t(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(dtype: torch.dtype) -> None:
    left, right = laid_out(4, 8, "rows").to(dtype), laid_out(3, 8, "columns").to(dtype)
    assert torch.equal(product(left, right), left @ right.t())


@pytest.mark.parametrize("has_onednn", [True, False])
def test_a_linear_layer_and_its_gradients_are_torchs(monkeypatch: pytest.MonkeyPatch, has_onednn: bool) -> None:
    if not has_onednn:
        monkeypatch.setattr(products, "_onednn", lambda: None)
    results = []
    for layer in (linear, functional.linear):
        leaves = [laid_out(5, 12, "rows"), laid_out(7, 12, "rows"), laid_out(1, 7, "rows")[0]]
        for leaf in leaves:
            leaf.requires_grad_()
        output = layer(*leaves)
        (output * laid_out(5, 7, "columns")).sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_a_linear_layer_under_autocast_is_torchs() -> None:
    leaves = laid_out(5, 12, "rows"), laid_out(7, 12, "rows"), torch.zeros(7)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(*leaves), functional.linear(*leaves))

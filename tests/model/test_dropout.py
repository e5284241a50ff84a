import pytest
import torch
from torch.nn import functional

from scaling.model import dropout as module
from scaling.model.dropout import Dropout, attention, keep_mask


def test_a_mask_keeps_the_share_it_should_and_its_elements_are_independent():
    torch.manual_seed(0)
    kept = keep_mask((1_000_003,), 0.1).double()
    assert kept.mean() == pytest.approx(0.9, abs=0.0015)  # five standard errors
    # Four neighbours come from one 64-bit draw.
    for lag in (1, 2, 3, 4):
        assert torch.corrcoef(torch.stack((kept[:-lag], kept[lag:])))[0, 1] == pytest.approx(0, abs=0.005)
    shares = kept[:1_000_000].view(-1, 4).mean(dim=0)
    assert torch.allclose(shares, torch.tensor(0.9).double(), atol=0.003)


def test_dropout_scales_what_it_keeps_and_does_nothing_in_evaluation():
    layer, values = Dropout(0.25), torch.ones(100, 1000, requires_grad=True)
    out = layer(values)
    assert out.detach().unique().tolist() == pytest.approx([0, 4 / 3])
    assert out.detach().mean() == pytest.approx(1, abs=0.01)
    out.sum().backward()
    assert torch.equal(values.grad, out.detach())
    assert layer.eval()(values) is values


def test_masks_follow_from_the_seed():
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(keep_mask((3, 77), 0.5))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("piece", [1, 2**19], ids=["spectrum by spectrum", "at once"])
@pytest.mark.parametrize(
    ("dtype", "p"), [(torch.float64, 0.2), (torch.float32, 0.2), (torch.bfloat16, 0.0), (torch.bfloat16, 0.2)]
)
def test_attention_with_dropout_is_the_textbook_formula(monkeypatch, piece, dtype, p):
    monkeypatch.setattr(module, "PIECE", piece)
    torch.manual_seed(3)
    query, key, value = (torch.randn(4, 2, 9, 6, dtype=dtype, requires_grad=True) for _ in range(3))
    towards = torch.randn(4, 2, 9, 6, dtype=dtype)

    torch.manual_seed(5)
    found = attention(query, key, value, p)
    grads = torch.autograd.grad(found, (query, key, value), towards)

    torch.manual_seed(5)
    shapes = [(1, 2, 9, 9)] * 4 if piece == 1 else [(4, 2, 9, 9)]
    kept = torch.cat([keep_mask(shape, p) for shape in shapes]).double()
    exact = [x.detach().double().requires_grad_() for x in (query, key, value)]
    weights = torch.softmax(exact[0] @ exact[1].mT / 6**0.5, dim=-1) * kept / (1 - round(p * 2**16) / 2**16)
    expected = weights @ exact[2]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    assert torch.allclose(found.double(), expected, atol=tolerance)
    for grad, other in zip(grads, torch.autograd.grad(expected, exact, towards.double()), strict=True):
        assert torch.allclose(grad.double(), other, atol=tolerance)


def test_attention_without_dropout_is_pytorchs():
    query, key, value = (torch.randn(2, 3, 5, 4) for _ in range(3))
    assert torch.equal(attention(query, key, value, 0.0), functional.scaled_dot_product_attention(query, key, value))

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.training.metrics import error_sums, scores


@given(st.integers(2, 200), st.integers(1, 50), st.floats(0.1, 3.0))
def test_scores_of_pieces_are_those_of_the_whole(count, piece, unit):
    generator = torch.Generator().manual_seed(count)
    predicted, target = torch.randn(2, count, generator=generator)
    sums = sum(error_sums(p, t) for p, t in zip(predicted.split(piece), target.split(piece), strict=True))
    found = scores(sums, unit)
    error = unit * (predicted - target).double().numpy()
    truth = unit * target.double().numpy()
    assert found.count == count
    assert np.isclose(found.mae, np.abs(error).mean())
    assert np.isclose(found.mae_sem, np.abs(error).std(ddof=1) / count**0.5, rtol=1e-6, atol=1e-9)
    assert np.isclose(found.bias, error.mean(), atol=1e-9)
    assert np.isclose(found.rmse, (error**2).mean() ** 0.5)
    assert np.isclose(found.r2, 1 - (error**2).sum() / ((truth - truth.mean()) ** 2).sum())

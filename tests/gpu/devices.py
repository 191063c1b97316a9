"""The two devices that stages are compared on, and how near their results have to be.

What is the same bits on both is what no device computes: drawn batches, seeds, initial parameters.
On CUDA the same call gives the same bits as long as PyTorch adds in one order. That is so for
matrix products on one stream, reductions along an axis, softmax and fused AdamW, and not for sums
by index where several rows go to one place (`index_add_`): there the order of additions differs
from run to run, and results agree to rounding. Each test of a run done twice says which it holds.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def assert_near(
    found: np.ndarray | torch.Tensor, expected: np.ndarray | torch.Tensor, share: float
) -> None:
    """No value is further off than a share of the expected ones' root mean square."""
    a, b = (np.asarray(torch.as_tensor(x).cpu(), dtype=np.float64) for x in (found, expected))
    assert a.shape == b.shape
    scale = float(np.sqrt(np.nanmean(b**2)))
    assert scale > 0, "nothing to compare"
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    np.testing.assert_allclose(
        np.nan_to_num(a) / scale, np.nan_to_num(b) / scale, rtol=0, atol=share
    )


def correlation(found: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's, of all values."""
    return float(np.corrcoef(np.ravel(found), np.ravel(expected))[0, 1])

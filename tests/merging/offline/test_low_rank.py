"""Factors that a change alone decides."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headwater.merging.offline.low_rank import balanced

TERNARY = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=2, max_size=9)


@given(TERNARY, TERNARY, st.floats(0.01, 100.0), st.floats(0.01, 100.0))
def test_vectors_of_equal_entries_have_one_sign_however_they_are_rounded(up, down, left, right):
    """As of ternary files and of values of few bits: which of the largest was rounded up is chance."""
    b, a = np.array([up]).T, np.array([down])
    plain, scaled = balanced(b, a), balanced(left * b, right * a)
    for one, other in zip(plain, scaled, strict=True):
        assert np.allclose(np.sqrt(left * right) * one, other, rtol=1e-9, atol=0)
    if any(up) and any(down):
        assert next(v for v in plain[0][:, 0] if abs(v) > 1e-9) > 0

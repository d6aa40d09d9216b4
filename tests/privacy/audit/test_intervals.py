"""Clopper and Pearson's interval beside SciPy's beta quantiles; tails of the binomial distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.privacy.audit.intervals import at_least, binomial_interval, probabilities

stats = pytest.importorskip("scipy.stats")


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999)
)
def test_the_interval_is_that_of_beta_quantiles(counts, confidence):
    hits, trials = counts
    found, tail = binomial_interval(hits, trials, confidence), (1 - confidence) / 2
    assert found.value == hits / trials
    low = stats.beta.ppf(tail, hits, trials - hits + 1) if hits else 0.0
    high = stats.beta.ppf(1 - tail, hits + 1, trials - hits) if hits < trials else 1.0
    assert found.low == pytest.approx(low, rel=1e-6, abs=1e-9)
    assert found.high == pytest.approx(high, rel=1e-6, abs=1e-9)


def test_it_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).binomial(40, 0.07, 400)
    intervals = {int(hits): binomial_interval(int(hits), 40) for hits in set(draws.tolist())}
    assert np.mean([intervals[h].low <= 0.07 <= intervals[h].high for h in draws.tolist()]) >= 0.95


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.3, 1 - 1e-12, 1.0])
def test_probabilities_are_those_of_scipy(share):
    assert np.allclose(probabilities(70, share), stats.binom.pmf(np.arange(71), 70, share), atol=1e-12)
    assert at_least(3, 70, share) == pytest.approx(stats.binom.sf(2, 70, share), abs=1e-12)
    assert at_least(0, 70, share) == 1


@pytest.mark.parametrize(("hits", "trials"), [(1, 0), (-1, 4), (5, 4)])
def test_what_is_no_count_is_refused(hits, trials):
    with pytest.raises(ConfigError, match="hits of at least one trial"):
        binomial_interval(hits, trials)

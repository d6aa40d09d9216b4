"""What a round with noise is: its cohort, its sum and its event, from the settings.

``cohort.population`` is a number that is no secret. Who is drawn is one: cohorts come from the same source as
the noise. With correlated noise nothing hangs on that; :mod:`.private_turns` says who may be asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headwater.config.federation import Federation
from headwater.errors import FederationStopped, HeadwaterError
from headwater.merging.plan import NoiseShare, PrivateSum
from headwater.privacy.accounting import library, noise_multiplier_for
from headwater.privacy.adaptive import sum_multiplier
from headwater.privacy.correlated.noise import CorrelatedNoise
from headwater.privacy.events import (
    Everyone,
    FixedSample,
    PoissonSample,
    Sampling,
    SequenceReleased,
    SharesReleased,
    SumReleased,
)
from headwater.privacy.noise import Randomness
from headwater.security.secagg.bounds import Promise, fewest_honest
from headwater.strategies.private_turns import sequence_from, state_for_next
from headwater.strategies.strategy import PrivacyState, ServerState


def private_start(federation: Federation) -> PrivacyState | None:
    """Bound and noise as a run begins; None without noise.

    Raises:
        ConfigError: a budget that no noise keeps.
        MissingDependency: without ``dp_accounting``.
    """
    privacy = federation.privacy
    if not privacy.noised or privacy.clip_l2 is None or privacy.delta is None:
        return None
    library()  # before anybody works
    multiplier = privacy.noise_multiplier
    if multiplier is None and privacy.epsilon is not None:
        rounds, sampling = federation.federation.rounds, sampling_of(federation)
        if privacy.correlated:  # the whole sequence is one Gaussian
            rounds, sampling = 1, Everyone()
        multiplier = noise_multiplier_for(privacy.epsilon, privacy.delta, rounds, sampling)
    assert multiplier is not None, "noised means one of the two"
    _ = shared_sum(federation)  # which may refuse what it states of clients
    if (count := _count_sigma(federation)) is not None:
        sum_multiplier(multiplier, count)  # which may refuse it
    return PrivacyState(privacy.clip_l2, multiplier, sequence_from(federation, 1))


def require_fine_units(federation: Federation, state: PrivacyState | None, values: int) -> None:
    """Before anybody works: that rounding correlated noise to units costs little, over sums of ``values``.

    Raises:
        ConfigError: too many rounds, values or σ for float64.
    """
    private = private_sum(federation, state)
    if state is None or state.sequence is None or private is None:
        return
    of, longest = state.sequence, private.longest(values)
    _ = CorrelatedNoise(of.mechanism, of.participation, values, state.multiplier, longest).sensitivity


def sampling_of(federation: Federation) -> Sampling:
    """How a round's owners are drawn, as it is priced."""
    cohort = federation.cohort
    population = cohort.population or 0
    if cohort.sampling == "poisson" and cohort.clients_per_round is not None:
        return PoissonSample(cohort.clients_per_round / population)
    if cohort.clients_per_round is not None and cohort.fixed_sample:
        return FixedSample(cohort.clients_per_round, population)
    return Everyone()


def private_cohort(federation: Federation, names: Sequence[str], randomness: Randomness) -> list[str]:
    """Who is in a round, of the sorted ``names`` of those who can be.

    Raises:
        FederationStopped: of a cohort of fixed size, fewer than it is priced for.
    """
    sampling = sampling_of(federation)
    if isinstance(sampling, Everyone):
        return list(names)
    words = randomness.words(len(names))
    if isinstance(sampling, PoissonSample):
        most = int(sampling.rate * 2**64)
        return [name for name, word in zip(names, words.tolist(), strict=True) if word < most]
    if len(names) < sampling.population and not federation.privacy.shares:  # whose price has no chance
        raise FederationStopped(
            "cohort of fixed size",
            expected=f"the {sampling.population} owners of cohort.population, of whom it is priced",
            got=f"{len(names)}",
            hint='Wait for them, or use cohort.sampling = "poisson".',
        )
    return sorted(names[i] for i in np.argsort(words, kind="stable")[: sampling.size])


def private_sum(federation: Federation, state: PrivacyState | None) -> PrivateSum | None:
    """How the sum of a round is released; None without noise."""
    if state is None:
        return None
    if federation.privacy.shares:
        return shared_sum(federation)
    adaptive, multiplier = federation.privacy.adaptive, state.multiplier
    if (sequence := state.sequence) is not None:  # what is drawn in one round, which the units must hold
        multiplier *= sequence.mechanism.sensitivity(sequence.participation)
    if adaptive is None:
        return PrivateSum(state.clip, multiplier, _expected(federation))
    return PrivateSum(
        state.clip,
        multiplier,
        _expected(federation),
        _count_sigma(federation),
        adaptive.quantile,
        adaptive.rate,
    )


def shared_sum(federation: Federation) -> PrivateSum | None:
    """What server and devices know alike of a sum with noise in shares: from the file alone; None of another.

    Raises:
        ConfigError: no honest client need be in a sum.
    """
    privacy, cohort = federation.privacy, federation.cohort
    if not privacy.shares or privacy.clip_l2 is None or privacy.noise_multiplier is None:
        return None
    honest = fewest_honest(Promise(privacy.mask_dropouts, privacy.mask_colluding, cohort.min_clients))
    clients = max(cohort.population or 0, cohort.min_clients)
    return PrivateSum(
        privacy.clip_l2,
        privacy.noise_multiplier,
        _expected(federation),
        shares=NoiseShare(honest, clients),
    )


def private_event(
    federation: Federation, server: ServerState, release: str
) -> SumReleased | SharesReleased | SequenceReleased:
    """What the release of the round after ``server`` tells; with correlated noise, all of its sequence.

    Raises:
        HeadwaterError: a state without noise.
    """
    if (state := state_for_next(federation, server)) is None:
        raise HeadwaterError(
            f"round {server.round + 1}",
            expected="a run that began with noise in [privacy]",
            got="one without",
            hint="Start a new run: what was released before cannot be priced.",
        )
    reproducible = federation.privacy.noise == "reproducible"
    if (private := shared_sum(federation)) is not None and private.shares is not None:
        values = server.state.spec.numel
        return SharesReleased(
            server.round + 1,
            release,
            private.clip,
            private.multiplier,
            private.shares.honest,
            private.share(values),
            values,
            reproducible,
        )
    if (sequence := state.sequence) is not None:
        return SequenceReleased(
            server.round + 1,
            release,
            state.clip,
            state.multiplier,
            sequence.mechanism,
            sequence.participation,
            reproducible,
        )
    return SumReleased(
        server.round + 1,
        release,
        state.clip,
        state.multiplier,
        sampling_of(federation),
        reproducible,
    )


def _expected(federation: Federation) -> float:
    """The expected number of owners in a round: what a sum is divided by."""
    cohort = federation.cohort
    return float(cohort.clients_per_round or cohort.population or 1)


def _count_sigma(federation: Federation) -> float | None:
    """σ_b of adaptive clipping; None without."""
    adaptive = federation.privacy.adaptive
    if adaptive is None:
        return None
    return adaptive.count_noise if adaptive.count_noise is not None else _expected(federation) / 20

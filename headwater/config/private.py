"""What goes with noise in ``[privacy]``: :func:`require_private`, a table of what is refused, and why.

The claim: whoever sees the adapters of all rounds learns no more of one owner than ε and δ allow; with
``noise_by = "clients"``, whoever sees the sums, the server too. It stands
on three things: each owner's part of a sum is bounded by what the server itself clips, every sum gets noise
for that bound, and who is in a sum is drawn as it is priced, or, with correlated noise, asked no more often.
What breaks one of them is refused. What holds by argument and is allowed (error feedback over Poisson
cohorts, codecs whose lengths tell of the data) stands in ``docs/decisions/0020-differential-privacy.md``.
"""

from __future__ import annotations

from collections.abc import Callable

from headwater.config.tables import FederationTables

Unsound = Callable[[FederationTables], bool]

REFUSED: tuple[tuple[str, Unsound, str], ...] = (
    (
        "a strategy that adds the updates up, such as 'mean'",
        lambda f: not f.strategy.adds_values,
        "of other rules' results nobody has stated how far one owner moves them",
    ),
    (
        'strategy.weighting = "equal"',
        lambda f: f.strategy.weighting != "equal",
        "an owner with many examples would move the sum by more than clip_l2, and its weight be told",
    ),
    (
        "space 'factors', 'ffa' or 'rolora'",
        lambda f: f.strategy.merges_products or f.strategy.keeps_own,
        "the noise is for the values that are sent: products of noised factors have another bound, and what "
        "clients keep to themselves is in no ledger",
    ),
    (
        "no strategy.norm_bound",
        lambda f: f.strategy.norm_bound is not None,
        "clip_l2 is the server's bound already",
    ),
    (
        "no strategy.control_variates",
        lambda f: f.strategy.control_variates,
        "SCAFFOLD's second sum would be released without noise",
    ),
    (
        'schedule.kind = "synchronous"',
        lambda f: not f.schedule.has_rounds,
        "whoever is first is not drawn, and one owner may be in one sum more often than priced",
    ),
    (
        "no [methods]",
        lambda f: bool(f.methods),
        "methods are dealt among all owners, so one owner's presence changes what others send",
    ),
    (
        "a method that trains all values",
        lambda f: any(t.splits_layers for t in f.trainings.values()),
        "layers are dealt among the cohort, so one owner's presence changes what others send",
    ),
    (
        "a method that sends a delta",
        lambda f: any(t.sends == "coefficients" for t in f.trainings.values()),
        "coefficients of seeds have no noise here",
    ),
    (
        "codec.up.error_feedback other than 'ef21'",
        lambda f: f.codec.up.shifts,
        "EF21's server adds up what clients sent, without noise",
    ),
    (
        'error feedback only with cohort.sampling = "poisson", or with all owners in every round',
        lambda f: bool(f.codec.up.error_feedback) and f.cohort.fixed_sample and not f.privacy.correlated,
        "what a client holds back tells in which rounds it was, and of a cohort of fixed size that tells "
        "who else was not: its chance is what is priced",
    ),
    (
        'no privacy.masks, or privacy.noise_by = "clients"',
        lambda f: f.privacy.masks and not f.privacy.shares,
        "the server cannot shorten what it does not see",
    ),
    (
        'privacy.noise_multiplier with noise_by = "clients"',
        lambda f: f.privacy.shares and f.privacy.noise_multiplier is None,
        "each device draws its share by itself, from what the file says",
    ),
    (
        'neither cohort.clients_per_round nor sampling = "poisson" with noise_by = "clients"',
        lambda f: f.privacy.shares and (f.cohort.sampling == "poisson" or f.cohort.fixed_sample),
        "the noise hides owners from the server, which knows whom it asks: chance is not priced",
    ),
    (
        'neither privacy.mechanism nor adaptive with noise_by = "clients"',
        lambda f: f.privacy.shares and (f.privacy.correlated or f.privacy.adaptive is not None),
        "no device remembers others' noise, and the count of short updates has no noise of theirs",
    ),
    (
        "no strategy.screen",
        lambda f: f.strategy.screen is not None,
        "who counts would hang on the others' updates",
    ),
    (
        "no [contribution]",
        lambda f: f.contribution is not None,
        "values of owners come from sums without noise",
    ),
    (
        'adapter.head = "shared"',
        lambda f: f.adapter is not None and f.adapter.head == "own",
        "heads that clients keep to themselves are in no ledger",
    ),
    (
        "no cohort.target_clients",
        lambda f: f.cohort.target_clients is not None,
        "one owner's update would keep another's out, so it moves the sum by two",
    ),
    (
        "cohort.population, a number of owners that is no secret",
        lambda f: f.cohort.population is None,
        "the sum is divided by the expected cohort, never by how many answered",
    ),
    (
        "evaluation on the server's rows alone: data.validation_fraction = 0 or evaluation.clients = false",
        lambda f: f.data.validation_fraction > 0 and f.evaluation.clients,
        "the best round would be chosen by owners' rows without noise",
    ),
    (
        'cohort.sampling = "fixed" with privacy.mechanism',
        lambda f: f.privacy.correlated and f.cohort.sampling == "poisson",
        "owners who are asked at most every so many rounds are not drawn by themselves: chance is not priced",
    ),
    (
        "no privacy.adaptive with privacy.mechanism",
        lambda f: f.privacy.correlated and f.privacy.adaptive is not None,
        "the noise of all rounds is for one bound of an update",
    ),
    (
        "no baselines.alone or centralised",
        lambda f: f.baselines.alone or f.baselines.centralised,
        "they train on owners' rows without noise",
    ),
)
"""Expected, when it is not so, and why that is refused."""


def require_private(federation: FederationTables) -> None:
    """Refuse what differential privacy does not go with, and Poisson cohorts without it.

    Raises:
        ValueError: says what is expected, and why.
    """
    cohort = federation.cohort
    if not federation.privacy.noised:
        if cohort.sampling == "poisson":
            raise ValueError(
                'cohort.sampling = "poisson" goes with noise in [privacy]: a round may draw nobody, and only '
                "noise can be merged of that"
            )
        return
    for expected, unsound, why in REFUSED:
        if unsound(federation):
            raise ValueError(f"noise in [privacy] needs {expected}: {why}")
    sampled, population = cohort.clients_per_round, cohort.population or 0
    if cohort.sampling == "poisson" and sampled is None:
        raise ValueError('cohort.sampling = "poisson" needs cohort.clients_per_round, the expected number')
    if sampled is not None and sampled > population:
        raise ValueError(f"cohort.clients_per_round {sampled} is above cohort.population {population}")
    if federation.privacy.correlated:
        _require_turns(federation)
    elif cohort.fixed_sample and cohort.min_clients < population:
        raise ValueError(
            f"a cohort of fixed size is priced as {sampled} of {population}, so no round begins with fewer "
            f'owners: set cohort.min_clients = {population}, or cohort.sampling = "poisson"'
        )


def _require_turns(federation: FederationTables) -> None:
    """Enough owners for the cohorts of all rounds, though each is asked no more often than is priced.

    Raises:
        ValueError: too few.
    """
    cohort, privacy = federation.cohort, federation.privacy
    population, apart = cohort.population or 0, privacy.min_separation
    asked, most = cohort.clients_per_round or population, privacy.max_participations
    least = cohort.min_clients if cohort.min_clients <= population else 0  # more than all hold a run back
    needed = (apart - 1) * asked + max(asked, least)
    if needed > population:
        raise ValueError(
            f"privacy.min_separation {apart} with {asked} owners a round needs cohort.population {needed}, "
            f"got {population}: the owners of the {apart} latest rounds must all be others"
        )
    rounds = federation.federation.rounds
    if most is not None and most * population < rounds * asked:
        raise ValueError(
            f"{rounds} rounds of {asked} owners, each in {most} at most (privacy.max_participations), "
            f"need cohort.population {-(-rounds * asked // most)}, got {population}"
        )

"""What goes with ``[training.privacy]``: :func:`require_example_private`, what is refused, and why.

The claim: whoever sees all that a client sends of a run, its server included, learns no more of one example
of its train split than ε and δ allow. It stands on every value that leaves being computed from gradients
with noise. What holds since it is computed from those alone stands in
``docs/decisions/0022-private-examples.md``.
"""

from __future__ import annotations

from collections.abc import Callable

from headwater.config.tables import FederationTables

REFUSED: tuple[tuple[str, Callable[[FederationTables], bool], str], ...] = (
    (
        "the same one in every method of the file",
        lambda f: len({t.example_privacy() for t in f.trainings.values()}) > 1,
        "a client that is dealt another one would tell of its rows without noise, or against another budget",
    ),
    (
        "a strategy other than 'fisher'",
        lambda f: f.strategy.needs_fisher,
        "squared gradients of single examples would be sent without noise",
    ),
    (
        "evaluation on the server's rows alone: data.validation_fraction = 0 or evaluation.clients = false",
        lambda f: f.data.validation_fraction > 0 and f.evaluation.clients,
        "metrics of clients' rows would be sent without noise",
    ),
    (
        "no baselines.alone or centralised",
        lambda f: f.baselines.alone or f.baselines.centralised,
        "they train on owners' rows beside the ledgers of their clients",
    ),
    (
        "data.copies = 1",
        lambda f: getattr(f.data, "copies", 1) > 1,
        "copies of one text would count as so many examples, and each cost by itself",
    ),
)
"""Expected, when it is not so, and why that is refused."""


def require_example_private(federation: FederationTables) -> None:
    """Refuse what DP-SGD at the clients does not go with.

    Raises:
        ValueError: says what is expected, and why.
    """
    if not any(t.example_privacy() for t in federation.trainings.values()):
        return
    for expected, unsound, why in REFUSED:
        if unsound(federation):
            raise ValueError(f"[training.privacy] needs {expected}: {why}")

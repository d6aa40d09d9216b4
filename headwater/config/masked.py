"""What ``privacy.masks`` goes with: :func:`require_masks`."""

from __future__ import annotations

from headwater.config.tables import FederationTables


def require_masks(federation: FederationTables) -> None:
    """Refuse masks beside what needs an update by itself.

    Raises:
        ValueError: says what masks need.
    """
    if not federation.privacy.masks:
        return
    strategy, trainings = federation.strategy, federation.trainings.values()
    weighed = strategy.weighs_methods() and any(t.noise != "none" for t in trainings)
    reasons = {
        "strategy 'mean', 'ties' or 'fisher', outside products": not strategy.adds_up(),
        "rounds: an update of an earlier version weighs by its age": not federation.schedule.has_rounds,
        "no strategy.norm_bound, which the server measures: use privacy.clip_l2": (
            strategy.norm_bound is not None
        ),
        "no strategy.screen, which looks at each update": strategy.screen is not None,
        "no control variates": strategy.control_variates,
        "codec.up.error_feedback other than 'ef21'": federation.codec.up.shifts,
        "no privacy.padding: masked vectors have one length as they are": federation.privacy.padding
        != "none",
        "no [contribution], which is told from single updates": federation.contribution is not None,
        "methods that are not weighed by their updates": bool(federation.methods) and weighed,
        "methods that all send deltas, or all coefficients": len({t.sends for t in trainings}) > 1,
        "cohort.min_clients of at least 3: of two, each knows the other's": federation.cohort.min_clients < 3,
    }
    for needed, missing in reasons.items():
        if missing:
            raise ValueError(f"privacy.masks needs {needed}")

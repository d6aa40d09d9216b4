"""Which federations' rounds can take sums of edge aggregators."""

from __future__ import annotations

from headwater.config.federation import Federation
from headwater.strategies.rules import rule_for


def why_no_sums(federation: Federation) -> str | None:
    """What needs each client's own update; None where a sum is enough."""
    if federation.schedule.buffer is not None:
        return "schedule 'buffered', which weighs each update by its age"
    if federation.strategy.control_variates:
        return "strategy.control_variates, whose c follows from each update"
    if federation.cohort.upload_s is not None:
        return "cohort.upload_s, a budget by each client's link, which only its edge aggregator sees"
    if federation.privacy.masks:
        return "privacy.masks, whose clients are added up by nobody but the server"
    if federation.strategy.screen is not None:
        return "strategy.screen, which looks at each update"
    if rule_for(federation.strategy).passes > 1:
        return f"strategy '{federation.strategy.kind}', which must be given each update several times"
    return None

"""What the organiser's requests come to, in words: which settings change when, and which cannot be met."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from headwater.config.federation import Federation
from headwater.errors import ConfigError
from headwater.protocol.control import RunRow

CHANGEABLE = {
    "rounds": "federation.rounds",
    "deadline_s": "cohort.deadline_s",
    "min_clients": "cohort.min_clients",
    "clients_per_round": "cohort.clients_per_round",
    "target_clients": "cohort.target_clients",
    "retry_s": "cohort.retry_s",
    "every": "evaluation.every",
    "evaluation_deadline_s": "evaluation.deadline_s",
    "patience": "evaluation.patience",
    "buffer": "schedule.buffer",
    "max_staleness": "schedule.max_staleness",
    "staleness_exponent": "schedule.staleness_exponent",
    "density": "codec.up.density",
    "alpha": "codec.up.alpha",
    "scale_bits": "codec.up.scale_bits",
    "model": "model.path",
    "test": "data.test",
}
"""What an organiser may change within a run, by its short name.

Of a codec, how much it keeps and how exactly: what clients hold back stays right, and no payload gets longer
than the run allowed for. Its kind and error feedback stay, for the sums of EF21 go with them; so do
``budget_bytes`` and ``density_over``, of which only a plan for the adapter's tensors tells whether they
can be kept.
"""
AT_ONCE = frozenset({"cohort.deadline_s", "cohort.retry_s", "evaluation.deadline_s"})
"""Times: they hold for the open round and its evaluation, too."""
PLACES = frozenset({"model.path", "data.test"})
"""Where the same bytes lie on the server; read when a run starts or goes on."""
_SHORT = {full: short for short, full in CHANGEABLE.items()}


def tell_changes(before: Federation, after: Federation, keys: Iterable[str], row: RunRow) -> str:
    """What a change of settings did, and from when on: ``deadline_s 120 → 30, at once``.

    Args:
        before: the settings.
        after: the settings with the change.
        keys: the full names of what was to change.
        row: how the run stands.
    """
    when: dict[str, list[str]] = {}
    for key in keys:
        old, new, name = _value(before, key), _value(after, key), _SHORT[key]
        told = f"{name} is {_shown(new)} already" if old == new else f"{name} {_shown(old)} → {_shown(new)}"
        when.setdefault("" if old == new else _from(key, row), []).append(told)
    return "; ".join(", ".join([*told, since] if since else told) for since, told in sorted(when.items()))


def _from(key: str, row: RunRow) -> str:
    if row.state not in ("running", "waiting"):
        resumed = f"is resumed: headwater server resume DIR {row.run}"
        by_itself = {"queued": "when it goes on", "failed": f"when it goes on or {resumed}"}
        return by_itself.get(row.state, f"once it {resumed}")
    if key in PLACES:
        return "once it is paused and resumed"
    if key in AT_ONCE:
        return "at once"
    return f"from round {(row.open or row.round) + 1}"


def tell_stop_request(request: str, row: RunRow) -> str:
    """When a run that goes on pauses or stops; empty if it does not."""
    if not request:
        return ""
    what = {"pause": "pauses", "stop": "stops and writes its result"}[request]
    if not row.open:
        return f"{what} before round {row.round + 1}"
    lacks = ", or without it if too few clients are there for a minute" if row.state == "waiting" else ""
    return f"{what} after round {row.open}{lacks}"


def tell_unmet(settings: Federation, row: RunRow, enrolled: int) -> tuple[str, ...]:
    """Which settings cannot be met as things are, one sentence each.

    Args:
        settings: of the run, with the organiser's changes.
        row: how the run stands.
        enrolled: devices that may take part.
    """
    cohort, schedule = settings.cohort, settings.schedule
    devices = f"{enrolled} device{' is' if enrolled == 1 else 's are'} enrolled"
    told = []
    if cohort.min_clients > enrolled:
        told.append(
            f"min_clients is {cohort.min_clients}, but {devices}: no round can close "
            f"until {cohort.min_clients - enrolled} more take part"
        )
    elif schedule.buffer is not None and schedule.buffer > enrolled:
        told.append(f"buffer is {schedule.buffer}, but {devices}: no version can be made of so many updates")
    most = min(cohort.clients_per_round or enrolled, enrolled)
    if settings.privacy.correlated:
        needed = (settings.privacy.min_separation - 1) * most + cohort.min_clients
        if needed > enrolled >= cohort.min_clients:
            told.append(
                f"privacy.min_separation is {settings.privacy.min_separation} and a round asks {most}, but "
                f"{devices}: rounds may wait for ever until {needed - enrolled} more take part"
            )
    if cohort.target_clients is not None and cohort.target_clients > most >= cohort.min_clients:
        told.append(
            f"target_clients is {cohort.target_clients}, but a round asks {most}: "
            "it closes when all have answered, or at its deadline"
        )
    done = max(row.open, row.round)
    if settings.federation.rounds < done or (settings.federation.rounds == row.round and row.round):
        what = f"round {row.open} is open" if row.open else f"{row.round} are done"
        told.append(f"rounds is {settings.federation.rounds}, but {what}: the run ends with round {done}")
    return tuple(told)


def require_known(keys: Collection[str]) -> Mapping[str, str]:
    """The full name of each key that may be changed; others are left out."""
    full = {key: CHANGEABLE.get(key, key) for key in keys}
    return {key: name for key, name in full.items() if name in _SHORT}


def require_promised(who: str, file: Federation, settings: Federation) -> None:
    """Refuse a change that weakens what the run's file promised the devices that are in it.

    Args:
        who: which run.
        file: its settings without changes.
        settings: with all of them.

    Raises:
        ConfigError: fewer clients in a masked sum. Devices would refuse each sum, and no round move anything.
    """
    least, wanted = file.cohort.min_clients, settings.cohort.min_clients
    if file.privacy.masks and wanted < least:
        raise ConfigError(
            f"{who}: cohort.min_clients",
            expected=f"at least {least}, as the run's file has it: devices mask in no sum of fewer",
            got=str(wanted), hint="Submit another federation: owners then see the new number, and decide.",
        )  # fmt: skip


def _value(settings: Federation, key: str) -> object:
    found: object = settings
    for name in key.split("."):
        found = getattr(found, name, None)
    return found


def _shown(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

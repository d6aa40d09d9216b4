"""``headwater client status``: what the agent does, what it waits for, and what it needs its owner for.

Read from the agent's files, so that it works while the agent is busy or gone; rules and paths are looked at
now, so that a wait is shown as soon as it begins.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from headwater.config.agent import AgentSettings
from headwater.config.privacy import ExamplePrivacy
from headwater.errors import MissingDependency, StorageError

if TYPE_CHECKING:
    from headwater.client.agent.known_runs import KnownRun

_DOING = {"profile": "looks at model and data", "train": "trains", "evaluate": "evaluates"}
_AT = 14
"""Column of what a line says."""


def status(settings: AgentSettings) -> int:
    """Print it."""
    for key, text in lines(settings, datetime.now()):
        first, *others = text.splitlines() or [""]
        print(f"  {key:<{_AT - 1}} {first}".rstrip() if key != "name" else first)
        for other in others:
            print(f"  {'':<{_AT - 1}} {other}")
    return 0


def lines(settings: AgentSettings, now: datetime) -> Iterator[tuple[str, str]]:
    """Key and text of each line."""
    from headwater.client.agent.agent import is_running
    from headwater.client.agent.disk_room import SLACK_BYTES, free_bytes
    from headwater.client.agent.known_runs import KnownRuns
    from headwater.client.agent.waits import waits
    from headwater.client.usage import Usage

    state, policy = settings.state, settings.file.policy
    content = _read(settings)
    if content is None:
        yield "name", f"{settings.file.name}: the agent has not run yet in {state}"
        return
    running = is_running(state)
    yield "name", f"{settings.file.name} -> {content['server']}"
    yield "agent", f"running, process {content['pid']}" if running else "not running"
    old = _as_of(settings) if running and free_bytes(state) < SLACK_BYTES else ""
    yield "connection", _connection(content) + old if running else "none"
    yield "last contact", "never" if content.get("contact") is None else _ago(content["contact"])
    today = Usage(state / "usage.json").today(now)
    waiting = waits(settings, today, now)
    yield "doing", _doing(content, waiting, policy.metered) + old if running else "nothing"
    for text in waiting:
        yield "waits", text
    for text in _needs(settings, content, running):
        yield "needs you", text
    megabytes, seconds = _of(policy.max_mb_per_day), _of(policy.max_work_s_per_day)
    unknown = ", and what a damaged usage.json had counted" if today.unknown else ""
    counted = f"{today.bytes / 1e6:.1f} MB{megabytes}, {today.work_s:.0f} s of work{seconds}"
    yield "today", f"{counted}{unknown}"
    joined = KnownRuns(state / "runs")
    for run_id in joined.runs():
        found = joined.get(run_id)
        if found is not None:
            examples = "not profiled yet" if found.examples is None else f"{found.examples} examples"
            yield "run", f"{run_id}: {found.settings.federation.name}, {examples}"
            if (privacy := found.settings.training.example_privacy()) is not None:
                yield "privacy", f"{run_id}: {_spent(found, privacy, settings.file.name)}"


def _read(settings: AgentSettings) -> dict[str, Any] | None:
    path = settings.state / "status.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(
            f"status file {path}",
            expected="what the agent wrote of itself",
            got=str(error),
            hint="The agent writes it again when it starts.",
        ) from None


def _spent(run: KnownRun, privacy: ExamplePrivacy, client: str) -> str:
    """What a run's trainings have told of each of the owner's rows."""
    from headwater.client.execution.store import DirectoryStore
    from headwater.privacy.accounting import in_words, price

    events = DirectoryStore(run.folder, durable=False, ledgers=run.ledgers).load_spent(client)
    try:
        spent = price(events, privacy.delta, "add-or-remove") if events else None
    except MissingDependency as error:
        return f"{len(events)} rounds told of your rows. {error.hint}"
    if spent is None:
        return "nothing is spent yet"
    return in_words(spent, privacy.epsilon, "row")


def _connection(content: dict[str, Any]) -> str:
    again = content.get("again") or 0.0
    return f"{content['state']}; tries again at {_clock(again)}" if again else str(content["state"])


def _doing(content: dict[str, Any], waiting: list[str], metered: bool) -> str:
    task = content.get("task")
    doing = _DOING.get(content["doing"], str(content["doing"]))
    if doing != "idle" or waiting or content.get("again"):
        return doing
    last = "it has not asked for anything yet" if task is None else f"its last task came {_ago(task)}"
    asks = ", and asks every 30 s only, for the link is metered" if metered else ""
    return f"idle: waits for a task of the server{asks}; {last}"


def _needs(settings: AgentSettings, content: dict[str, Any], running: bool) -> Iterator[str]:
    """What the owner must do something about."""
    from headwater.client.agent.disk_room import SLACK_BYTES, free_bytes
    from headwater.client.agent.preflight import missing_paths
    from headwater.client.agent.problems import read_problems

    free = free_bytes(settings.state)
    written = free >= SLACK_BYTES  # else what the agent says of its file may be an earlier agent's word
    if running and written and content.get("config") and content["config"] != settings.sha256:
        yield "the agent file has changed since the agent started: end the agent and start it again"
    yield from missing_paths(settings)
    if running and written:
        yield from _changed_rows(settings, content)
    if not written:
        yield (
            f"the disk of {settings.state} is full, {free:,} bytes are free: nothing is trained, and what is "
            "shown here may be old\n-> Free space; the agent notices by itself."
        )
    shown = set()
    for problem in read_problems(settings.state / "problems.json"):
        if (problem.run, problem.code, problem.text) in shown:  # of another kind of task
            continue
        shown.add((problem.run, problem.code, problem.text))
        times = "" if problem.count == 1 else f", {problem.count} times, last {_clock(problem.last)}"
        first, *others = problem.found.splitlines() or [""]
        again = f" Tried again at {_clock(problem.again)}." if problem.again > time.time() else ""
        what = f"run {problem.run}, {problem.kind}" if problem.run else "a message of the server"
        head = f"since {_clock(problem.since)}{times}: {what}: {first}"
        yield "\n".join([head, *others, f"-> {problem.advice}{again}"])


def _changed_rows(settings: AgentSettings, content: dict[str, Any]) -> Iterator[str]:
    """That a run goes on with rows that are no more those of the files."""
    from headwater.client.agent.data_stamp import RowsRead

    rows = RowsRead.read(content.get("rows"))
    if rows is not None and rows.changed(settings.data, skip=settings.state):
        yield (
            f"the files of your data have changed since run {rows.run} read them: it goes on with the rows "
            "as they were, the next run reads the new ones\n-> Put the files back; or try the new ones with "
            "headwater data check, and start the agent again."
        )


def _as_of(settings: AgentSettings) -> str:
    """When the agent could last write what it does."""
    try:
        return f" (as of {_clock((settings.state / 'status.json').stat().st_mtime)})"
    except OSError:
        return ""


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M:%S")


def _ago(moment: float) -> str:
    return f"{_clock(moment)} ({max(0, int(time.time() - moment))} s ago)"


def _of(cap: float | None) -> str:
    return "" if cap is None else f" of {cap:g}"

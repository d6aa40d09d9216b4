"""Engine ``network``: a federation as its users run it, a daemon and an agent per client, on one machine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.adapters.weights import resolve_base
from headwater.client.agent.agent import is_running
from headwater.config import LoadedFederation
from headwater.config.model import VectorModel
from headwater.data.federated import FederatedData
from headwater.errors import FederationStopped
from headwater.seeds.keys import Key
from headwater.server.events import Notice, Observer
from headwater.server.rounds.federation_server import RunResult
from headwater.server.rounds.finish import finish
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.run_folder import RunFolder
from headwater.server.trackers.tracking import Tracking
from headwater.server.workspace.run_queue import ENDED, RunEntry, RunQueue
from headwater.server.workspace.workspace import Workspace
from headwater.simulation.network import LocalNetwork
from headwater.simulation.network_follow import Follower
from headwater.training.context import TrainingContext

MOST_AGENTS = 64
"""Every agent is two processes, one of them with the base model."""
RESULT = ("adapter", "receipts", "rounds.jsonl", "summary.json", "report.html")
PREDECESSORS_S = 40.0
"""How long processes of a parent that was killed may take to end."""


def run_on_network(
    loaded: LoadedFederation, folder: RunFolder, tracking: Tracking, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """Run all rounds that are left over TLS between processes; the result comes into the run folder.

    Server and devices stay in ``network/`` of the run folder, to be looked at, and for ``--resume``. Their
    processes end when this one does, however it ends. The caller holds the folder, and its trackers are told
    here: they write where a person looks for them, and the daemon need not allow them.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        DataError: rows that cannot be used, of all owners at once, before anything is started.
        FederationStopped: too many clients for one machine, too few that can take part, or the daemon could
            not go on.
    """
    warnings = _check_rows(loaded)
    for warning in warnings:
        tracking.observe(Notice(warning))
    home, lost = folder.path / "network", dict[str, str]()
    entry = _earlier_run(home, tracking.observe)
    if entry is None or entry.state not in ENDED:
        bits = loaded.settings.federation.bits
        with LocalNetwork(home, plugins=tuple(loaded.settings.packages), bits=bits) as network:
            lost = _run(network, entry, loaded, tracking, should_stop)
    entry = _last_run(home)
    assert entry is not None
    summary = _result(entry, home / "server" / "runs" / entry.run, loaded, folder)
    summary["engine"] = "network"
    summary["notices"] = [*summary.get("notices", []), *warnings]
    for name, reason in lost.items():  # the daemon only knows that they are no longer enrolled
        before = {"asked": 0, "failed": 0, **summary["lost"].get(name, {})}
        summary["lost"][name] = {**before, "reason": reason}
    folder.write_json("summary.json", summary)
    return summary


def _check_rows(loaded: LoadedFederation) -> tuple[str, ...]:
    """Look at all owners' rows, as the other engines do; each device would find its own alone."""
    model = loaded.settings.model
    if isinstance(model, VectorModel):
        return ()
    tokenizer = TextTokenizer.load(resolve_base(model.path, model.revision, loaded.folder), model.path)
    key = Key.root(loaded.settings.federation.seed)
    return FederatedData.open(loaded, tokenizer, key, on_devices=True).warnings


def _run(
    network: LocalNetwork,
    entry: RunEntry | None,
    loaded: LoadedFederation,
    tracking: Tracking,
    should_stop: Callable[[], bool],
) -> dict[str, str]:
    """Until the run has ended or is paused; who was lost without having been refused in a round, and why."""
    if entry is None:
        network.add_owners(loaded)
    if len(network.agents) > MOST_AGENTS:
        raise FederationStopped(
            "engine network",
            expected=f"at most {MOST_AGENTS} clients: each is a process with the base model",
            got=f"{len(network.agents)}",
            hint="Use the engine inprocess.",
        )
    if entry is not None and entry.stop_request == "pause":  # of a start that ended before its run had paused
        book = RunQueue(network.workspace.runs_book, network.workspace.runs)
        entry = book.request_stop(entry.run, "")
    network.start_daemon()
    tracking.observe(Notice(f"daemon on 127.0.0.1:{network.ports[0]} (TLS), {len(network.agents)} agents"))
    run = network.submit(loaded) if entry is None else entry.run
    tracking.read_from(network.run_folder(run) / "rounds.jsonl")
    follower = Follower(network, run, loaded, tracking.observe, should_stop)
    follower.hold()  # no round before everybody is there: all engines have the same clients in round 1
    if entry is not None and entry.state in ("paused", "failed"):
        with network.control() as control:
            control.resume(run)
    for agent in network.agents.values():
        agent.start()
    follower.follow()
    return follower.lost


def _last_run(home: Path) -> RunEntry | None:
    """The run that was submitted to the server below ``home``."""
    server = Workspace(home / "server")
    if not server.runs_book.exists():
        return None
    entries = RunQueue(server.runs_book, server.runs).entries()
    return entries[-1] if entries else None


def _earlier_run(home: Path, observer: Observer) -> RunEntry | None:
    """The run to go on with; a deployment that was killed before it had one is removed.

    Raises:
        FederationStopped: processes of a killed parent do not end.
    """
    if not home.exists():
        return None
    ends_s, told = time.monotonic() + PREDECESSORS_S, False
    while held := _held(home):
        if time.monotonic() > ends_s:
            raise FederationStopped(
                f"{home}",
                expected="no process of an earlier start",
                got=f"{held} at work",
                hint="End it, then --resume.",
            )
        if not told:
            told = True
            observer(Notice(f"waiting for {held} of an earlier start to end"))
        time.sleep(0.2)
    entry = _last_run(home)
    if entry is None:
        shutil.rmtree(home)
    return entry


def _held(home: Path) -> str:
    """Which process of an earlier start still lives; empty if none."""
    server = home / "server"
    if (server / "lock").exists() and (holder := Workspace(server).holder()) is not None:
        return f"daemon {holder or ''}".strip()
    for device in sorted((home / "devices").glob("*")):
        if is_running(device / "state"):
            return f"agent {device.name}"
    return ""


def _result(entry: RunEntry, source: Path, loaded: LoadedFederation, folder: RunFolder) -> dict[str, Any]:
    """Bring what the daemon wrote; of a run that was stopped, write it."""
    if entry.state in ENDED:
        for name in RESULT:
            if (source / name).is_dir():
                shutil.copytree(source / name, folder.path / name, dirs_exist_ok=True)
            else:
                shutil.copy2(source / name, folder.path / name)
        summary: dict[str, Any] = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
        return summary
    context = TrainingContext.open(loaded)
    checkpoint = Checkpoint.load(RunFolder(source).checkpoint, context.spec, entry.run)
    if checkpoint is None:
        raise FederationStopped(
            f"run {entry.run}",
            expected="at least the state before the first round",
            got="a stop before it",
            hint=f"Go on with: headwater simulate --resume {folder.path}",
        )
    shutil.copy2(source / "rounds.jsonl", folder.path / "rounds.jsonl")
    shutil.copytree(source / "receipts", folder.receipts, dirs_exist_ok=True)
    clients = len(list((source.parent.parent.parent / "devices").glob("*")))
    return finish(loaded, folder, context, RunResult(checkpoint, False, "stopped", clients), engine="network")

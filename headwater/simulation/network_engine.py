"""Engine ``network``: a federation as its users run it, a daemon and an agent per client, on one machine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from typing import Any

from headwater.adapters.tokenizer import TextTokenizer
from headwater.adapters.weights import resolve_base
from headwater.config import LoadedFederation
from headwater.config.federation import VectorModel
from headwater.data.federated import FederatedData
from headwater.errors import FederationStopped
from headwater.protocol.keys import Key
from headwater.server.evaluation import decisive, metric_name
from headwater.server.events import ClientDone, Notice, Observer, RoundEnded, RoundStarted, RunStarted
from headwater.server.run_folder import RunFolder
from headwater.simulation.network import LocalNetwork

MOST_AGENTS = 64
"""Every agent is two processes, one of them with the base model."""
RESULT = ("adapter", "rounds.jsonl", "summary.json", "report.html")


def run_on_network(
    loaded: LoadedFederation, folder: RunFolder, observer: Observer, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """Run all rounds over TLS between processes; the result comes into the run folder.

    Server and devices stay in ``network/`` of the run folder, to be looked at.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        DataError: rows that cannot be used, of all owners at once, before anything is started.
        FederationStopped: too many clients for one machine, or the daemon could not go on.
    """
    warnings = _check_rows(loaded)
    for warning in warnings:
        observer(Notice(warning))
    with folder.locked(), LocalNetwork(folder.path / "network") as network:
        network.add_owners(loaded)
        if len(network.agents) > MOST_AGENTS:
            raise FederationStopped(
                "engine network",
                expected=f"at most {MOST_AGENTS} clients: each is a process with the base model",
                got=f"{len(network.agents)}",
                hint="Use the engine inprocess.",
            )
        network.start_daemon()
        observer(Notice(f"daemon on 127.0.0.1:{network.ports[0]} (TLS), {len(network.agents)} agents"))
        run = network.submit(loaded)
        with network.control() as control:
            control.change(run, {"min_clients": str(len(network.agents))})
        for agent in network.agents.values():
            agent.start()
        _follow(network, run, loaded, observer, should_stop)
        source = network.run_folder(run)
        for name in RESULT:
            if (source / name).is_dir():
                shutil.copytree(source / name, folder.path / name, dirs_exist_ok=True)
            else:
                shutil.copy2(source / name, folder.path / name)
    summary: dict[str, Any] = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    summary["engine"] = "network"
    summary["notices"] = [*summary.get("notices", []), *warnings]
    folder.write_json("summary.json", summary)
    return summary


def _check_rows(loaded: LoadedFederation) -> tuple[str, ...]:
    """Look at all owners' rows, as the other engines do; each device would find its own alone."""
    model = loaded.settings.model
    if isinstance(model, VectorModel):
        return ()
    tokenizer = TextTokenizer.load(resolve_base(model.path, model.revision, loaded.folder), model.path)
    key = Key.root(loaded.settings.federation.seed)
    return FederatedData.open(loaded, tokenizer, key).warnings


def _follow(
    network: LocalNetwork,
    run: str,
    loaded: LoadedFederation,
    observer: Observer,
    should_stop: Callable[[], bool],
) -> None:
    """Tell the observer what the daemon's status and its rounds say, until the run ends."""
    metric, rounds = metric_name(loaded.settings), loaded.settings.federation.rounds
    folder, told, open_round, accepted, stopping = RunFolder(network.run_folder(run)), -1, 0, 0, False
    observer(RunStarted(rounds, 0, len(network.agents)))
    for row in network.watch(run, within_s=float("inf")):
        if should_stop() and not stopping:
            stopping = True
            with network.control() as control:
                control.stop(run)
        for record in folder.read_rounds()[told + 1 :]:
            told = record["round"]
            value = decisive(metric, record.get("test"), record.get("clients_pooled", {}))
            observer(RoundEnded(told, record, metric, value))
        if row.asked and open_round <= told:
            open_round, accepted = told + 1, 0
            observer(RoundStarted(open_round, row.asked))
        for _ in range(row.accepted - accepted if row.asked else 0):
            observer(ClientDone(open_round, "", 0))
            accepted += 1
        if row.state == "failed":
            raise FederationStopped(f"run {run}", expected="it to go on", got=row.reason)
        time.sleep(0.3)

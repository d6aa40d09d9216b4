"""What a Flower app is told beside its federation file: by ``flwr run -c``, and by each SuperNode's owner."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import UserConfig

from headwater.config import LoadedFederation, load_federation
from headwater.errors import ConfigError

FEDERATION = "federation.toml"
"""The federation file, beside the app's modules."""


@dataclass(frozen=True)
class RunSettings:
    """The app's ``[tool.flwr.app.config]``, with what ``flwr run -c`` replaced.

    Args:
        folder: where relative paths of the federation file start; empty: the app's own folder.
        clients: nodes to wait for before the first round.
        out: the run folder; empty: ``runs/NAME-flower-RUN`` below ``folder``.
        changes: settings of the file to replace: ``federation.rounds=4 federation.seed=7``.
    """

    folder: str
    clients: int
    out: str
    changes: str

    @staticmethod
    def of(config: UserConfig) -> RunSettings:
        """From Flower's run config.

        Raises:
            ConfigError: a key is missing or of another type.
        """
        return RunSettings(
            _text(config, "folder"), _count(config, "clients"), _text(config, "out"), _text(config, "set")
        )

    def load(self, file: Path, folder: str = "") -> LoadedFederation:
        """The federation, with paths from ``folder`` on where a node has a place of its own.

        Raises:
            ConfigError: the file or a change of it is wrong, or it is of a kind that Flower cannot run.
        """
        start = folder or self.folder
        loaded = load_federation(
            file, shlex.split(self.changes), folder=Path(start).expanduser() if start else file.parent
        )
        require_runnable(loaded)
        return loaded


@dataclass(frozen=True)
class NodeSettings:
    """A SuperNode's ``--node-config``: which of the federation's clients it is.

    Args:
        client: its name, where it has rows of its own.
        data: file or folder of those rows, all of them this client's; empty: part of the federation's data.
        partition: which of the federation's clients, in the order of their names.
        partitions: how many nodes there are.
        model: folder of the base model here; empty: as the federation file says.
        folder: where the file's relative paths start here; empty: as the run says.
        store: folder that keeps what the client must not lose; empty: Flower's context, which does not
            outlive its SuperNode.
    """

    client: str
    data: str
    partition: int
    partitions: int
    model: str
    folder: str
    store: str

    @staticmethod
    def of(config: Mapping[str, object]) -> NodeSettings:
        """From Flower's node config.

        Raises:
            ConfigError: it names neither a partition nor a client with data, or both.
        """
        client, data = _text(config, "client", ""), _text(config, "data", "")
        dealt = "partition-id" in config
        if bool(client) != bool(data) or dealt == bool(client):
            raise ConfigError(
                "node config",
                expected="partition-id and num-partitions, or client and data",
                got=", ".join(sorted(config)) or "nothing",
                hint='flower-supernode --node-config \'client="anna" data="/data/anna.csv"\'',
            )
        return NodeSettings(
            client,
            data,
            _count(config, "partition-id", 0) if dealt else 0,
            _count(config, "num-partitions", 1) if dealt else 0,
            _text(config, "model", ""),
            _text(config, "folder", ""),
            _text(config, "store", ""),
        )

    def name(self, clients: tuple[str, ...]) -> str:
        """Which client it is of these, those of the federation's data.

        Raises:
            ConfigError: the data are dealt to another number of clients than there are nodes.
        """
        if self.partitions != len(clients) or self.partition >= len(clients):
            raise ConfigError(
                "node config",
                expected=f"num-partitions={len(clients)}, the number of clients in the data",
                got=f"num-partitions={self.partitions}, partition-id={self.partition}",
                hint="Start one SuperNode for each client.",
            )
        return clients[self.partition]


def require_runnable(loaded: LoadedFederation) -> None:
    """Refuse what needs a simulation.

    Raises:
        ConfigError: the file simulates devices or attackers.
    """
    if loaded.settings.simulation.attackers:
        raise ConfigError(
            "[[simulation.attackers]]",
            expected="real nodes, which nobody tells to lie",
            got="simulated attackers",
            hint="Leave the tables out, or run headwater simulate.",
        )
    if loaded.settings.simulation.devices is not None:
        raise ConfigError(
            "[simulation.devices]",
            expected="real nodes: Flower's are in real time",
            got="simulated devices",
            hint="Leave the table out, or run headwater simulate.",
        )


def _text(config: Mapping[str, object], key: str, default: str | None = None) -> str:
    found = config.get(key, default)
    if not isinstance(found, str):
        raise ConfigError(f"Flower's config, {key}", expected="a text", got=repr(found)[:80])
    return found


def _count(config: Mapping[str, object], key: str, least: int = 1) -> int:
    found = config.get(key)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise ConfigError(
            f"Flower's config, {key}", expected=f"a whole number from {least} on", got=repr(found)[:80]
        )
    return found

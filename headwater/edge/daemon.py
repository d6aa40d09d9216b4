"""``headwater aggregate CONFIG``: :func:`run_edge`, the edge aggregator's process.

::

    agents ─ TLS ─> RequestAuthenticator ─ FleetServer <─ Exchange ─ EdgeHandler <─ Agent ─ TLS ─> server

Below it is the server's own code over a folder of ``headwater server init``; above it, an agent's loop.
"""

from __future__ import annotations

import os

from headwater import __version__
from headwater.client.agent.agent import Agent, only_agent, stop_on_signal, sweep
from headwater.client.agent.known_runs import KnownRuns
from headwater.client.agent.owner_log import OwnerLog, StatusFile
from headwater.client.agent.preflight import read_authority
from headwater.config.daemon import split_address
from headwater.config.edge import EdgeSettings
from headwater.config.plugins import SERVER_ALLOWS, allow_only
from headwater.edge.handler import EdgeHandler
from headwater.edge.members import EdgeMembers
from headwater.errors import ConfigError
from headwater.flower.fleet_client import FleetClient
from headwater.flower.fleet_server import FleetServer
from headwater.security.signing import Identity
from headwater.server.agent_port.reply_auth import ReplyVerifier
from headwater.server.agent_port.request_auth import Limits, RequestAuthenticator
from headwater.server.clients.exchange import Exchange
from headwater.server.daemon.listening import EnrolledNodes, listening, register
from headwater.server.http_protocol import fleet_port
from headwater.server.workspace.workspace import Workspace


def identity_of(settings: EdgeSettings) -> Identity:
    """The keys of this edge aggregator, made if there are none.

    Raises:
        ConfigError: those that are there are of another name.
        StorageError: they cannot be read or written.
    """
    name, keys = settings.file.name, settings.path(settings.file.state) / "keys"
    if not (keys / "identity.json").exists():
        identity = Identity.create(name)
        identity.save(keys)
    else:
        identity = Identity.load(keys)
    if identity.name != name:
        raise ConfigError("name", expected=f"{identity.name!r}, for which the keys were made", got=repr(name))
    return identity


def run_edge(settings: EdgeSettings) -> int:
    """Serve until SIGTERM or Ctrl-C; the exit code.

    Raises:
        ConfigError: no CA file, other keys, no folder for its clients, or a port is taken.
        StorageError: another process uses a folder, or it cannot be written.
    """
    file, state = settings.file, settings.path(settings.file.state)
    ca, identity = read_authority(settings.path(file.ca)), identity_of(settings)
    workspace = Workspace.open(settings.path(file.clients))
    allow_only(workspace.settings.plugins.allow, SERVER_ALLOWS)
    with only_agent(state), workspace.locked():
        sweep(state)
        log, stop = OwnerLog(state / "agent.log"), stop_on_signal()
        registry, members = workspace.registry(), list[EdgeMembers]()
        link = FleetServer(max_reply_bytes=lambda name: members[0].max_reply_bytes if members else 2**20)
        for record in registry.by_name().values():
            register(link, record)
        registry.on_change(lambda record: register(link, record))
        verify = ReplyVerifier(registry, lambda why, client: log.say(f"client {client}: refused: {why}"))
        exchange = Exchange(link.grid, EnrolledNodes(link), verify)
        members.append(EdgeMembers(link, exchange, registry.refresh, stop.is_set))
        limits, credentials = workspace.settings.limits, workspace.credentials
        host, port = split_address(workspace.settings.listen.fleet)
        authenticator = RequestAuthenticator(
            link.app,
            link,
            registry,
            Limits(
                bytes_per_hour=limits.bytes_per_hour,
                requests_at_once=limits.requests_at_once,
                body_s=limits.body_s,
            ),
        )
        config = fleet_port(
            authenticator,
            host=host,
            port=port,
            certificate=credentials.folder / "server.pem",
            key=credentials.folder / "server.key",
        )
        handler = EdgeHandler(
            file.name,
            members[0],
            KnownRuns(state / "runs"),
            identity.sign_reply,
            log.say,
            file.patience_s,
        )
        status = StatusFile(state / "status.json", file.server)
        with listening(config) as (_, address):
            log.say(f"edge aggregator {__version__} of {file.name} for {file.server}, process {os.getpid()}")
            log.say(f"clients reach it at {address}; {len(link.names())} are enrolled")
            connection = FleetClient(file.server, ca, identity, version=__version__)
            try:
                Agent(connection, handler, log.say, stop, status).run()
            finally:
                status.note("ended")
        log.say("ended")
    return 0

"""server_app: the ServerApp of a federation file, on anybody's SuperLink."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from headwater.flower_app.settings import RunSettings

_PAUSE_S = 0.5
"""Between two looks for replies: each is a request to the SuperLink for every sixteen clients."""


def server_app(file: Path) -> ServerApp:
    """A ServerApp that runs the federation in ``file`` with ClientApps of :func:`.client_app`.

    It writes a run folder as ``headwater simulate`` does, without baselines, and prints a line for each
    round, the adapter's SHA-256 and the folder.

    Args:
        file: the federation file, of the app.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run_on_flower(file, RunSettings.of(context.run_config), grid, run=context.run_id)

    return app


def run_on_flower(file: Path, settings: RunSettings, grid: Grid, *, run: int) -> dict[str, Any]:
    """Run the federation in ``file`` over a Flower grid.

    Args:
        file: the federation file.
        settings: what the run says.
        grid: messages to the nodes, each of which is one client.
        run: Flower's number of the run, for the folder's name.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        HeadwaterError: what is wrong with file, data or model, or that the federation cannot go on.
    """
    # here, not above: torch and Transformers take seconds, and an app is also imported to be looked at
    from headwater.data.federated import FederatedData
    from headwater.flower_app.told import tell
    from headwater.seeds.keys import Key
    from headwater.server.clients.run_control import RunControl
    from headwater.server.rounds.federation_server import FederationServer
    from headwater.server.rounds.finish import finish, tell_trackers
    from headwater.server.storage.run_folder import RunFolder
    from headwater.server.trackers.tracking import Tracking
    from headwater.training.context import TrainingContext

    loaded = settings.load(file)
    name = f"{loaded.settings.federation.name}-flower-{run}".replace("/", "-")
    out = Path(settings.out).expanduser() if settings.out else loaded.folder / "runs" / name
    folder = RunFolder.create(out, loaded, {"engine": "flower"})
    tracking = Tracking(loaded.trackers, loaded.run_id(), loaded.settings, folder.path, tell)
    with folder.locked(), tracking:
        context = TrainingContext.open(loaded)
        data = FederatedData.held_out(loaded, context.tokenizer, Key.root(loaded.settings.federation.seed))
        folder.keep_inputs(base=context.base_sha256, data=data.sha256)
        control = RunControl(tracking.observe, sleep=lambda until_s: time.sleep(_PAUSE_S))
        server = FederationServer(loaded, loaded.run_id(), context, folder, test=data.test(), control=control)
        outcome = server.run(grid, settings.clients)
        notices = (*context.notices, *data.warnings)
        summary = finish(loaded, folder, context, outcome, engine="flower", notices=notices)
        summary = tell_trackers(tracking, folder, summary)
    print(f"adapter_sha256 {summary['adapter_sha256']}", flush=True)
    print(folder.path, flush=True)
    return summary

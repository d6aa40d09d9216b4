"""``headwater simulate``: run a federation on this machine."""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from headwater.bits import enter
from headwater.cli.tables import show
from headwater.config import LoadedFederation, load_federation
from headwater.errors import ConfigError, InternalError, OwnersLost, StorageError
from headwater.process_memory import importing

if TYPE_CHECKING:
    from headwater.server.events import Event, Observer
    from headwater.server.storage.run_folder import RunFolder


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", nargs="?", type=Path, metavar="FEDERATION.toml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/NAME-TIME)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in this folder")
    parser.add_argument("--seed", type=int, metavar="N", help="replaces federation.seed")
    parser.add_argument("--engine", choices=["inprocess", "ray", "network"], help="default: inprocess")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="training processes of engine inprocess"
    )
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a key")
    parser.add_argument(
        "--page",
        nargs="?",
        type=int,
        const=0,
        metavar="PORT",
        help="serve a live page on 127.0.0.1 while it runs; without PORT on a free one",
    )
    parser.add_argument("--quiet", action="store_true", help="print only failures and the result's path")


def run(options: argparse.Namespace) -> int:
    """Start or resume; print the result's table and, last, the run folder."""
    if (options.file is None) == (options.resume is None):
        raise ConfigError(
            "headwater simulate", expected="a federation file, or --resume DIR", got="both or none"
        )
    if options.workers < 1:
        raise ConfigError("--workers", expected="at least 1", got=str(options.workers))
    if options.page is not None and not 0 <= options.page < 2**16:
        raise ConfigError("--page", expected="a port from 0 to 65535", got=str(options.page))
    if options.resume is not None and (options.out or options.seed is not None):
        raise ConfigError(
            "headwater simulate --resume", expected="no --out or --seed: the run folder has them",
            got="one of them",
        )  # fmt: skip
    from headwater.server.storage.run_folder import RunFolder

    begun = None
    if options.resume is not None:
        begun, loaded, origin = RunFolder.open(options.resume, trackers=True)
    else:
        loaded, origin = load_federation(options.file, options.set, seed=options.seed), {}
    enter(loaded.settings.federation.bits, own_process=options.own_process)  # before torch is imported
    console = Console(stderr=True)

    with importing(for_good=options.own_process):
        from headwater.cli.progress import make_observer
        from headwater.simulation.simulate import simulate

    if begun is not None:
        folder, engine = begun, options.engine or origin["engine"]
        if "network" in {engine, origin["engine"]} and engine != origin["engine"]:
            raise ConfigError(
                f"--engine {engine}",
                expected=f"the engine that the run began with, {origin['engine']}",
                got="another one: clients of engine network keep their files elsewhere",
                hint="Leave --engine out.",
            )
        if options.set:
            loaded = _changed(folder, loaded, engine, options.set)
    else:
        engine = options.engine or "inprocess"
        out = options.out or _new_folder(Path("runs"), loaded.settings.federation.name)
        folder = RunFolder.create(out, loaded, {"engine": engine})
    with (
        defects_kept(folder.path, "run the federation"),
        stop_on_interrupt() as stopping,
        make_observer(console, options.quiet) as progress,
        _watched(options.page, loaded, folder, progress) as observer,
    ):
        summary = simulate(
            loaded,
            folder,
            engine=engine,
            workers=options.workers,
            observer=observer,
            should_stop=lambda: bool(stopping),
        )
    if not options.quiet:
        from headwater.cli.result import result_table

        show(result_table(summary), sys.stdout)
    if summary["stopped"] == "stopped":
        command = f"headwater simulate --resume {shlex.quote(str(folder.path))}"
        # not through rich: it would break the line that is there to be copied
        print(f"Stopped after round {summary['rounds']}. Go on with: {command}", file=sys.stderr)
    print(folder.path, flush=True)
    if summary["stopped"] != "stopped" and summary["lost"]:
        raise _lost(summary)
    return 0


def _changed(folder: RunFolder, loaded: LoadedFederation, engine: str, sets: list[str]) -> LoadedFederation:
    """The run under other settings, which its folder has from now on."""
    from headwater.simulation.resume import change_run

    if engine == "network":
        raise ConfigError(
            "headwater simulate --resume --set", expected="--engine inprocess or ray", got="network",
            hint="Its server is below network/: headwater server set changes what a server may change.",
        )  # fmt: skip
    changed, told = change_run(folder, loaded, sets)
    for sentence in told:
        print(f"Not as in a run with these settings from the start: {sentence}.", file=sys.stderr)
    return changed


@contextmanager
def _watched(
    port: int | None, loaded: LoadedFederation, folder: RunFolder, progress: Observer
) -> Iterator[Observer]:
    """Who is told of the run: the terminal, and the page where one is wanted."""
    if port is None:
        yield progress
        return
    from headwater.simulation.live_page import live_page

    with live_page(loaded, folder, port) as (link, page):
        print(f"Live page: {link}", file=sys.stderr, flush=True)  # whole, so that it can be copied

        def both(event: Event) -> None:
            page(event)
            progress(event)

        yield both


def _lost(summary: Mapping[str, Any]) -> OwnersLost:
    """Who did not make it to the end, for the last line and the exit code."""
    rows = [
        f"{name} (failed in {row['failed']} of {row['asked']} rounds; the last time: {row['reason']})"
        for name, row in summary["lost"].items()
    ]
    more = f"; and {len(rows) - 3} more" if len(rows) > 3 else ""
    return OwnersLost(
        "run finished",
        expected=f"all of its {summary['clients']} owners in it at the end",
        got=f"{len(rows)} lost: {'; '.join(rows[:3])}{more}",
        hint="The adapter is written, without what they had to give. All reasons stand in summary.json.",
    )


@contextmanager
def defects_kept(folder: Path, doing: str) -> Iterator[None]:
    """An exception that nobody foresaw is told as our defect, with its traceback in the folder."""
    from headwater.client.execution.faults import told_apart

    try:
        with told_apart(f"folder {folder}", doing):
            yield
    except InternalError as error:
        raise _with_traceback(folder, error) from error


def _with_traceback(folder: Path, error: InternalError) -> InternalError:
    """The same error, naming the file that has its traceback; where none can be written, it is printed."""
    path = folder / "state" / "traceback.txt"
    try:
        path.write_text(error.traceback, encoding="utf-8")
    except OSError:
        print(error.traceback, file=sys.stderr)
        return error
    hint = f"This is a defect of Headwater: please report it, with {path}."
    return InternalError(error.who, expected=error.expected, got=error.got, hint=hint)


def _new_folder(parent: Path, name: str) -> Path:
    """Make ``parent/NAME-TIME``, or the next free name where another run began in this second."""
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"  # a name may hold a slash
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in count(1):
        path = parent / (f"{stem}-{stamp}" if number == 1 else f"{stem}-{stamp}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not parent.is_dir():
                raise ConfigError(str(parent), expected="a folder", got="a file", hint="Use --out.") from None
        except OSError as error:
            raise StorageError(
                f"run folder {path}",
                expected="a folder that can be written",
                got=error.strerror or str(error),
                hint="Name another with --out.",
            ) from None
        else:
            return path
    raise AssertionError


@contextmanager
def stop_on_interrupt() -> Iterator[list[int]]:
    """The first Ctrl-C (or SIGTERM) asks to end after the round; the second ends at once."""
    stopping: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if stopping:
            raise KeyboardInterrupt
        stopping.append(number)
        print("\nEnding after this round; press Ctrl-C again to end now.", file=sys.stderr)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

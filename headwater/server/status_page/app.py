"""The status page and what it reads, as an ASGI application: :func:`make_app`. It changes nothing.

::

    /  /assets/…            the page without data; the only paths without a token
    /api/status             Status, as JSON
    /api/rounds?run=&after= rows for the charts, at most 500
    /api/events?after=&wait=  events as they happen, by long polling
    /api/adapters?run=      the latest 300 versions of a run's adapter and the best, newest first
    /api/adapter?run=&version=  one of them, as a tar; the best one without a version
    /metrics                for Prometheus

Numbers that are not finite are null. Serve it with :func:`headwater.server.status_page.serve.serving`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from headwater.asgi import App, Receive, Scope, Send
from headwater.config.data import lower_is_better
from headwater.errors import HeadwaterError
from headwater.protocol.control import Organiser
from headwater.server.monitoring import prometheus
from headwater.server.monitoring.monitor import Monitor
from headwater.server.monitoring.round_history import RoundRows
from headwater.server.status_page.guard import WebAuth
from headwater.text import json_safe, plain

MOST_WAITING = 16
"""Requests that may wait for events at once; more are answered 503 and may come again."""
MOST_DOWNLOADS = 4
MOST_WAIT_S = 25
MOST_VERSIONS = 300
_SLICE_S = 0.5
_MOST_RUNS = 8
_ASSETS = {
    "/": ("status.html", "text/html; charset=utf-8"),
    "/assets/status.css": ("status.css", "text/css; charset=utf-8"),
    "/assets/status.js": ("status.js", "text/javascript; charset=utf-8"),
    "/assets/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/assets/tables.js": ("tables.js", "text/javascript; charset=utf-8"),
    "/assets/text.js": ("text.js", "text/javascript; charset=utf-8"),
    "/assets/icon.svg": ("icon.svg", "image/svg+xml"),
}


def make_app(
    organiser: Organiser,
    monitor: Monitor,
    *,
    token: str,
    rounds: Callable[[str], Path | None],
    simulation: bool = False,
) -> App:
    """The application, guarded.

    Args:
        organiser: is asked for the status and the adapters.
        monitor: is asked for events.
        token: what every request but those for the empty page must carry.
        rounds: from a run's id to its ``rounds.jsonl``; only asked for runs that the status lists.
        simulation: there is no certificate, and no version of the adapter to be had.
    """
    app = open_app(organiser, monitor, rounds, simulation=simulation)
    return WebAuth(app, token, frozenset(_ASSETS))


def open_app(
    organiser: Organiser,
    monitor: Monitor,
    rounds: Callable[[str], Path | None],
    *,
    simulation: bool = False,
) -> FastAPI:
    """The application without its guard: its routes are what :func:`make_app` guards."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    folder = files("headwater.server.status_page") / "static"
    for path, (name, kind) in _ASSETS.items():
        app.add_api_route(path, _asset((folder / name).read_bytes(), kind), methods=["GET", "HEAD"])

    @app.exception_handler(HeadwaterError)
    async def explain(request: Request, error: HeadwaterError) -> Response:
        return JSONResponse({"error": str(error)}, status_code=404)

    @app.get("/api/status")
    def status() -> Response:
        return JSONResponse(json_safe(asdict(organiser.status()) | {"simulation": simulation}))

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(prometheus.exposition(organiser.status()), media_type=prometheus.CONTENT_TYPE)

    @app.get("/api/adapters")
    def adapters(run: str = "") -> Response:
        rows = organiser.adapters(run)
        shown = [row for i, row in enumerate(reversed(rows)) if i < MOST_VERSIONS or row.best]
        counts = {"made": len(rows), "kept": sum(row.kept for row in rows)}
        return JSONResponse(json_safe({**counts, "adapters": [asdict(row) for row in shown]}))

    app.get("/api/rounds")(_rounds(organiser, rounds))
    app.get("/api/events")(_events(monitor))
    app.get("/api/adapter")(_adapter(organiser))
    return app


def _asset(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def asset() -> Response:
        return Response(content, media_type=kind)

    return asset


def _rounds(organiser: Organiser, path: Callable[[str], Path | None]) -> Callable[..., Response]:
    charts: OrderedDict[str, RoundRows] = OrderedDict()

    def rounds(run: str = "", after: int = -1) -> Response:
        runs = organiser.status().runs
        found = [row for row in runs if row.run == run] if run else list(runs[-1:])
        file = path(found[0].run) if found else None
        if not found or file is None:
            raise HTTPException(404)
        chosen = found[0]
        chart = charts.setdefault(chosen.run, RoundRows(file))
        charts.move_to_end(chosen.run)
        while len(charts) > _MOST_RUNS:
            charts.popitem(last=False)
        every, rows = chart.rounds(after)
        lower = sorted({name for row in rows for name in row["metrics"] if lower_is_better(name)})
        return JSONResponse(
            {"run": chosen.run, "metric": chosen.metric, "every": every, "lower": lower, "rows": rows}
        )

    return rounds


def _events(monitor: Monitor) -> Callable[..., Awaitable[Response]]:
    limiter = CapacityLimiter(MOST_WAITING)
    waiting = 0

    async def events(
        request: Request, after: int = -1, wait: float = Query(0.0, ge=0, le=MOST_WAIT_S)
    ) -> Response:
        nonlocal waiting
        if waiting >= MOST_WAITING:
            return Response(status_code=503, headers={"retry-after": "2"})
        waiting += 1
        try:
            left = wait
            found = monitor.events(after)
            while not found and left > 0 and not await request.is_disconnected():
                found = await to_thread.run_sync(monitor.events, after, min(_SLICE_S, left), limiter=limiter)
                left -= _SLICE_S
        finally:
            waiting -= 1
        return JSONResponse(json_safe({"events": [asdict(e) for e in found], "started": monitor.started}))

    return events


def _adapter(organiser: Organiser) -> Callable[..., Awaitable[Response]]:
    limiter = CapacityLimiter(MOST_DOWNLOADS)
    going = 0

    def begin(run: str, version: int) -> tuple[Iterator[bytes], bytes | None]:
        """What is wrong shows with the first piece, before a status is sent."""
        pieces = organiser.export(run, version)
        return pieces, next(pieces, None)

    def release(pieces: Iterator[bytes] | None) -> None:
        nonlocal going
        going -= 1
        close = getattr(pieces, "close", None)
        if close is not None:
            close()

    async def adapter(run: str = "", version: int = Query(0, ge=0)) -> Response:
        nonlocal going
        if going >= MOST_DOWNLOADS:
            return Response(status_code=503, headers={"retry-after": "10"})
        going += 1
        try:
            pieces, first = await to_thread.run_sync(begin, run, version, limiter=limiter)
        except BaseException:
            release(None)
            raise

        async def body() -> AsyncIterator[bytes]:
            piece = first
            while piece is not None:
                yield piece
                piece = await to_thread.run_sync(next, pieces, None, limiter=limiter)

        name = re.sub(r"[^A-Za-z0-9._-]", "_", plain(run or "adapter", 60)).lstrip(".")
        named = f"{name}-v{version}.tar" if version else f"{name}-best.tar"
        return _Download(body(), named, lambda: release(pieces))

    return adapter


class _Download(StreamingResponse):
    """A response that frees its resources also if the client never reads it."""

    def __init__(self, content: AsyncIterator[bytes], name: str, release: Callable[[], None]) -> None:
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        super().__init__(content, media_type="application/x-tar", headers=headers)
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()

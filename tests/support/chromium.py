"""A headless Chromium, spoken to over a pipe in its own protocol (CDP): no driver and no package is needed.

:func:`chromium` gives a :class:`Page`; console messages, uncaught errors and every request are collected.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--no-proxy-server",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


def find_chromium() -> str:
    """The browser's path; the test is skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on this machine: install the package chromium to run this test")


class Page:
    """One tab."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._buffer, self._id = write, read, b"", 0
        self.messages: list[dict[str, Any]] = []
        """Every event of the protocol."""
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _call(self, method: str, params: dict[str, Any], session: str = "", timeout_s: float = 60) -> Any:
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends:
            for found in self._receive(0.2):
                if found.get("id") == self._id:
                    assert "error" not in found, (method, found["error"])
                    return found["result"]
                self.messages.append(found)
        raise AssertionError(f"Chromium did not answer {method}")

    def _receive(self, timeout_s: float) -> list[dict[str, Any]]:
        if select.select([self._read], [], [], timeout_s)[0]:
            data = os.read(self._read, 1 << 20)
            assert data, "Chromium has ended"
            self._buffer += data
        *whole, self._buffer = self._buffer.split(b"\0")
        return [json.loads(m) for m in whole]

    def call(self, method: str, **params: Any) -> Any:
        return self._call(method, params, self._session)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression."""
        params = {"expression": script, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        found = self.call("Runtime.evaluate", **params)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, timeout_s: float = 60) -> Any:
        """Wait until an expression is true."""
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends:
            with contextlib.suppress(AssertionError):  # the page may be just coming
                if value := self.run(f"!!({script})"):
                    return value
            time.sleep(0.05)
        shown = self.run("document.body?.innerText")
        raise AssertionError(f"never true: {script}\n{shown}\n{self.problems()}")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def look(self, *, width: int = 1240, height: int = 900, dark: bool = False) -> None:
        """Set the window and the colour scheme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def events(self, method: str) -> list[dict[str, Any]]:
        self.run("1")  # what is under way arrives before the answer
        return [m["params"] for m in self.messages if m.get("method") == method]

    def problems(self) -> list[str]:
        """Console errors and warnings, uncaught exceptions, violations of the content policy."""
        logged = [e["entry"] for e in self.events("Log.entryAdded")]
        said = [
            e for e in self.events("Runtime.consoleAPICalled") if e["type"] in ("error", "warning", "assert")
        ]
        return [
            *(
                f"{e['level']}: {e['text']} {e.get('url', '')}"
                for e in logged
                if e["level"] in ("error", "warning")
            ),
            *(f"console: {[a.get('value') for a in e['args']]}" for e in said),
            *(str(e["exceptionDetails"]) for e in self.events("Runtime.exceptionThrown")),
        ]

    def requested(self) -> list[str]:
        """Every address the page asked for."""
        return [e["request"]["url"] for e in self.events("Network.requestWillBeSent")]


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A browser with a profile in ``folder`` that downloads into ``folder / "downloads"``."""
    program = find_chromium()
    to_child, from_us = os.pipe()
    to_us, from_child = os.pipe()
    # the protocol's descriptors are 3 (in) and 4 (out) by definition; ours are moved out of the way first
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (to_child, from_child)]
    actions = [
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, ends[0], 3),
        (os.POSIX_SPAWN_DUP2, ends[1], 4),
    ]
    command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    process = os.posix_spawn(program, command, os.environ, file_actions=actions, setsid=True)
    for fd in (to_child, from_child, *ends):
        os.close(fd)
    try:
        page = Page(from_us, to_us)
        page._call(
            "Browser.setDownloadBehavior",
            {"behavior": "allow", "downloadPath": str(folder / "downloads"), "eventsEnabled": True},
        )
        yield page
        with contextlib.suppress(AssertionError, OSError):
            page._call("Browser.close", {}, timeout_s=5)
    finally:
        os.close(from_us)
        os.close(to_us)
        _end(process)


def _end(process: int) -> None:
    """Wait for the browser, not for ever, and leave none of its children."""
    ends = time.monotonic() + 5
    while not os.waitpid(process, os.WNOHANG)[0]:
        if time.monotonic() > ends:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return
        time.sleep(0.02)

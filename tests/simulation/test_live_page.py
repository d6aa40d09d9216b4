"""The status page of a simulation: what it shows during the run, to whom, and that it changes nothing."""

from __future__ import annotations

import contextlib
import re
import sys
import threading

import httpx
import pytest

from headwater.cli import progress
from headwater.config import load_federation
from headwater.errors import ConfigError, FederationStopped
from headwater.server.events import ClientAsked, ClientDone, RoundEnded
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation import live_page as module
from headwater.simulation.live_page import live_page
from headwater.simulation.simulate import simulate
from tests.server.status_page.test_chromium import CONTRAST
from tests.support.chromium import chromium
from tests.support.command import headwater
from tests.support.runs import bare_federation, run, tiny_federation


def begun(file, out):
    loaded = load_federation(file)
    return loaded, RunFolder.create(out, loaded, {"engine": "inprocess"})


def test_a_browser_follows_a_run_to_its_next_round(tmp_path):
    tables = {"training": {"max_steps": 1}, "federation": {"rounds": 2}}
    loaded, folder = begun(tiny_federation(tmp_path / "f", **tables), tmp_path / "<b>run")
    looked, reached = threading.Event(), threading.Event()

    def slowly(event):
        if isinstance(event, RoundEnded) and event.round == 1:
            reached.set()
            assert looked.wait(60)

    with chromium(tmp_path) as page, live_page(loaded, folder, 0) as (link, told):

        def observe(event):
            told(event)
            slowly(event)

        working = threading.Thread(target=simulate, args=(loaded, folder), kwargs={"observer": observe})
        working.start()
        assert reached.wait(60)
        page.look()
        page.open(link)
        page.until("document.querySelector('#progress-text').innerText.includes('Round 1 of 2')")
        page.until("document.querySelector('.curve')")
        assert page.text("#run-name") == "tiny"
        names = page.run("[...document.querySelectorAll('#clients tbody th')].map(e => e.innerText)")
        assert names == ["ann", "ben", "cleo"]
        assert page.run("document.querySelectorAll('#metric-chart .dot').length") == 2
        assert page.run("document.querySelector('#adapters-box').hidden")
        assert "certificate" not in page.text("#daemon")
        assert page.run(CONTRAST) == []
        looked.set()
        page.until("document.querySelector('#progress-text').innerText.includes('Round 2 of 2')")
        working.join()
        assert page.problems() == []
        origin = link.split("/#")[0]
        assert all(url.startswith(origin) for url in page.requested())
    with pytest.raises(httpx.ConnectError):
        httpx.get(link)


def test_who_has_no_token_reads_nothing(tmp_path):
    loaded, folder = begun(bare_federation(tmp_path / "f"), tmp_path / "run")
    with live_page(loaded, folder, 0) as (link, _):
        origin, token = link.split("/#token=")
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", origin)
        assert httpx.get(f"{origin}/api/status").status_code == 401
        own = {"authorization": f"Bearer {token}"}
        status = httpx.get(f"{origin}/api/status", headers=own).json()
        assert status["simulation"] is True
        assert httpx.get(f"{origin}/api/status", headers={**own, "host": "evil.example"}).status_code == 421
        assert httpx.get(f"{origin}/api/adapter?version=1", headers=own).status_code == 404
        with live_page(loaded, folder, 0) as (other, _):
            assert other.split("=")[1] != token


def test_a_taken_port_names_the_option(tmp_path):
    loaded, folder = begun(bare_federation(tmp_path / "f"), tmp_path / "run")
    with live_page(loaded, folder, 0) as (link, _):
        port = int(re.search(r":(\d+)/", link)[1])
        with pytest.raises(ConfigError, match="Choose another: --page PORT"), live_page(loaded, folder, port):
            pass


def test_what_a_resumed_run_has_is_shown_and_a_failure_is(tmp_path):
    file = bare_federation(tmp_path / "f")
    run(file, tmp_path / "run")
    loaded, folder = load_federation(file), RunFolder(tmp_path / "run")
    kept = []

    def fails():
        with live_page(loaded, folder, 0) as (_, told):
            kept.append(told.__self__)
            assert kept[0].status().runs[0].round == 3
            raise FederationStopped("run", got="too few")

    with pytest.raises(FederationStopped):
        fails()
    assert (kept[0].status().runs[0].state, kept[0].status().runs[0].reason) == ("failed", "run: got too few")


def test_of_very_many_clients_some_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_CLIENTS", 3)
    loaded, folder = begun(bare_federation(tmp_path / "f"), tmp_path / "run")
    with live_page(loaded, folder, 0) as (_, told):
        for number in range(9):
            told(ClientAsked(1, f"c{number}", "train", 5))
            told(ClientDone(1, f"c{number}", 5))
        assert [row.client for row in told.__self__.status().clients] == ["c0", "c1", "c2"]


def test_the_command_prints_a_link_that_works_and_the_bits_are_the_same(tmp_path, monkeypatch):
    file = bare_federation(tmp_path / "f")
    without, _ = run(file, tmp_path / "without")
    seen = []

    @contextlib.contextmanager
    def make_observer(console, quiet):
        def observe(event):
            if isinstance(event, RoundEnded) and event.round == 2:
                origin, token = re.search(r"Live page: (\S+)/#token=(\S+)\n", sys.stderr.getvalue()).groups()
                headers = {"authorization": f"Bearer {token}"}
                seen.append(httpx.get(f"{origin}/api/status", headers=headers).json()["runs"][0])
                rows = httpx.get(f"{origin}/api/rounds?run={seen[0]['run']}", headers=headers).json()["rows"]
                assert [row["round"] for row in rows] == [0, 1, 2]

        yield observe

    monkeypatch.setattr(progress, "make_observer", make_observer)
    done = headwater("simulate", file, "--page", "--out", tmp_path / "with")
    assert done.code == 0, done.err
    assert [(row["run"], row["round"], row["state"]) for row in seen] == [("with", 2, "running")]
    assert without["adapter_sha256"] in (tmp_path / "with" / "summary.json").read_text()
    assert "from 0 to 65535" in headwater("simulate", file, "--page", "70000").error

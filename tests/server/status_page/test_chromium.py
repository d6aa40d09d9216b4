"""The page in a real browser: it opens, follows, downloads, and shows hostile text as text."""

from __future__ import annotations

import json
import tarfile
import threading
import time
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from headwater.adapters.export import export
from headwater.config import load_federation
from headwater.server.events import ClientDone, Notice, WaitingFor
from headwater.server.status_page.app import make_app
from headwater.server.status_page.serve import serving
from tests.support.chromium import chromium
from tests.support.federations import adapted
from tests.support.organisers import RUN, TOKEN, ToyOrganiser
from tests.support.runs import tiny_federation

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"

CONTRAST = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.disabled) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(rgb(e.ownerSVGElement ? style.fill : style.color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${e.tagName} ${e.id} ${e.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return bad;
})()"""

NEVER_BY_ITSELF = """(() => {
  const timer = window.setTimeout;
  window.setTimeout = (done, ms) => timer(done, ms === 5000 ? 2 ** 30 : ms);
})()"""  # the page looks every 5 s by itself

UNNAMED = """[...document.querySelectorAll("button, input, select, progress, svg[role], [role=region], img")]
  .filter((e) => e.getClientRects().length)
  .filter((e) => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.labels?.length
    || e.hasAttribute("alt") || (e.tagName === "BUTTON" && e.textContent.trim())))
  .map((e) => e.outerHTML.slice(0, 90))"""


@pytest.fixture
def toy(tmp_path):
    toy = ToyOrganiser(tmp_path)
    toy.begin(rounds=10)
    for number in range(1, 5):
        toy.end_round(number, 0.6 + 0.02 * number, {"ben": "client ben: no answer"} if number == 2 else {})
    return toy


@pytest.fixture
def page(tmp_path):
    with chromium(tmp_path) as page:
        page.look()
        yield page


@pytest.fixture
def site(toy):
    with serving(make_app(toy, toy.monitor, token=TOKEN, rounds=toy.rounds), 0) as port:
        yield f"http://127.0.0.1:{port}"
        toy.monitor.close()  # first, as the daemon does: nobody waits any more


def enter(page, site):
    page.open(f"{site}/#token={TOKEN}")
    page.until("document.querySelectorAll('#clients tbody tr').length && document.querySelector('.curve')")


def test_open_see_a_round_arrive_download_and_load(toy, page, site, tmp_path):
    loaded = load_federation(tiny_federation(tmp_path / "federation"))
    base_path = tmp_path / "federation" / "bert"
    model = adapted(loaded)
    state = model.initial_state().map(lambda t: t + 0.25)
    toy.adapter_folder = tmp_path / "exported"
    export(model, state, toy.adapter_folder, card={})

    enter(page, site)
    assert page.text("#run-name") == "sentiment"
    assert page.text("#run-state") == "running"
    assert "Round 4 of 10" in page.text("#progress-text")
    assert page.run("location.href") == f"{site}/"  # the token left the address
    assert page.run("[...document.querySelectorAll('#clients tbody th')].map(e => e.innerText)") == [
        "ann", "ben", "cleo",
    ]  # fmt: skip
    assert "best 0.680" in page.text("#metric-chart")
    assert page.run("document.querySelectorAll('#metric-chart .dot').length") == 5
    page.run("window.sameDocument = true; document.querySelector('#adapters button').focus(); 1")

    page.run(NEVER_BY_ITSELF)  # from here on by events alone
    toy.start_round(5)
    toy.monitor.observer(RUN)(ClientDone(5, "ann", 12_000))
    page.until("document.querySelector('#progress-text').innerText.includes('1 of 3 updates of round 5')")
    toy.end_round(5, 0.9)
    page.until("document.querySelector('#progress-text').innerText.includes('Round 5 of 10')")
    page.until("document.querySelectorAll('#metric-chart .dot').length == 6")
    toy.end_round(6, 0.8)  # just after it looked
    page.until("document.querySelector('#progress-text').innerText.includes('Round 6 of 10')")
    page.until("document.querySelector('#adapters tbody').innerText.includes('6 · best')")
    assert "best 0.900" in page.text("#metric-chart")
    assert page.run("window.sameDocument") is True  # it was not loaded again
    # rows keep their elements: who reads or has the focus is not interrupted
    assert "version 5" in page.run("document.activeElement.getAttribute('aria-label')")

    page.run("document.querySelector('#download-best').click()")
    tar = tmp_path / "downloads" / f"{RUN}-v6.tar"  # what "the best" was when it was asked for
    ends = time.monotonic() + 60
    while not tar.exists() and time.monotonic() < ends:
        time.sleep(0.05)
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    peft = PeftModel.from_pretrained(AutoModel.from_pretrained(base_path), tmp_path / "unpacked" / "adapter")
    got = [v for k, v in peft.state_dict().items() if "lora_B" in k]
    assert got
    assert all(torch.allclose(v, torch.full_like(v, 0.25)) for v in got)

    assert page.problems() == []
    assert all(url.startswith((site, "blob:")) for url in page.requested()), page.requested()


def test_locked_without_the_token(page, site):
    page.open(site)
    page.until("!document.querySelector('#login').hidden && document.readyState === 'complete'")
    assert page.run("document.querySelector('#main').hidden")
    assert not any("/api/" in url for url in page.requested())
    page.run(
        "document.querySelector('#token').value = 'wrong'; document.querySelector('#login button').click()"
    )
    page.until("document.querySelector('#login-error').innerText.includes('not the daemon')")
    page.run(
        f"document.querySelector('#token').value = '{TOKEN}'; document.querySelector('#login button').click()"
    )
    page.until("document.querySelectorAll('#clients tbody tr').length == 3")
    assert page.run("document.querySelector('#login').hidden")


def test_hostile_names_and_reasons_are_text(tmp_path, page):
    names = (HOSTILE, "__proto__", "constructor")
    toy = ToyOrganiser(tmp_path, names)
    toy.begin(5, name=HOSTILE)
    toy.end_round(1, 0.6, dict.fromkeys(names[1:], HOSTILE))
    toy.monitor.error(HOSTILE, client=HOSTILE)
    toy.monitor.error(HOSTILE)
    toy.monitor.refused(HOSTILE, HOSTILE)
    toy.monitor.refused("__proto__")
    toy.monitor.observer(RUN)(Notice(HOSTILE))
    toy.monitor.run_state(RUN, "failed", HOSTILE)
    for name in names:
        toy.monitor.client_seen(name, version=HOSTILE)
    with serving(make_app(toy, toy.monitor, token=TOKEN, rounds=toy.rounds), 0) as port:
        enter(page, f"http://127.0.0.1:{port}")
        page.until("document.querySelector('#events').children.length > 8")
        for place in (
            "#run-name",
            "#run-reason",
            "#clients tbody",
            "#problems",
            "#events",
            "#adapters tbody",
            "#refused",
        ):
            assert "<script>" in page.run(f"document.querySelector('{place}').textContent"), place
        assert page.run("document.querySelectorAll('main script, main img, main [onerror]').length") == 0
        assert "owned" not in page.run("document.title").replace(HOSTILE, "")
        assert page.run("document.querySelectorAll('#clients tbody tr').length") == 3
        assert page.problems() == []
        toy.monitor.close()


def test_the_policy_forbids_what_would_go_wrong(page, site):
    """The second line of defence, should a page ever make markup from data."""
    enter(page, site)
    made = "(() => { try { document.body.innerHTML += '<b>'; return 'made' } catch (e) { return e.name } })()"
    assert page.run(made) == "TypeError"
    inline = "const s = document.createElement('script'); s.text = 'window.ran = 1'; document.body.append(s)"
    page.run(f"(() => {{ try {{ {inline} }} catch (e) {{}} return 1 }})()")
    assert page.run("window.ran ?? null") is None
    assert page.run("fetch('https://example.com/').then(() => 'went', () => 'kept')") == "kept"


def test_it_lives_through_the_daemon_s_restart(toy, page):
    app = make_app(toy, toy.monitor, token=TOKEN, rounds=toy.rounds)
    with serving(app, 0) as port:
        enter(page, f"http://127.0.0.1:{port}")
        toy.monitor.close()
    page.until("document.querySelector('#link').innerText.includes('connection lost')")
    fresh = ToyOrganiser(toy.folder, ("ann", "dora"))
    fresh.rounds_file.unlink()
    fresh.begin(3, name="another")
    with serving(make_app(fresh, fresh.monitor, token=TOKEN, rounds=fresh.rounds), port):
        page.until("document.querySelector('#link').innerText == 'live'")
        page.until("document.querySelector('#run-name').innerText == 'another'")
        assert page.run("[...document.querySelectorAll('#clients tbody th')].map(e => e.innerText)") == [
            "ann",
            "dora",
        ]
        page.until("document.querySelector('#events').innerText.includes('round 0 of 3')")
        page.until("!document.querySelector('#events').innerText.includes('round 4 of 10')")
        fresh.monitor.close()


def test_readable_at_any_width_light_and_dark(toy, page, site):
    long = "client ben: tensor base_model.model.encoder.layer.0.attention.self.query.lora_A: " + "x" * 200
    toy.end_round(5, 0.66, {"ben": long})
    enter(page, site)
    page.until("document.querySelector('#adapters tbody tr') && document.querySelector('#events li')")
    for width in (1240, 768, 390, 320):
        for dark in (False, True):
            page.look(width=width, height=800, dark=dark)
            page.until(f"innerWidth == {width} && document.querySelector('svg').clientWidth < {width}")
            assert page.run("document.documentElement.scrollWidth") <= width  # nothing sticks out
            assert page.run(CONTRAST) == [], (width, dark)
            assert page.run(UNNAMED) == []


def test_keys_move_through_the_rounds(page, site):
    enter(page, site)
    assert "Best: round 4" in page.text("#readout")

    def press(key, shown):
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)
        page.until(f"document.querySelector('#readout').textContent.includes({shown!r})")

    page.run("document.querySelector('#metric-chart svg').focus()")
    press("Home", "Round 0")
    press("ArrowRight", "Round 1  ·  accuracy 0.620")
    now = page.run("document.querySelector('#metric-chart svg').getAttribute('aria-valuetext')")
    assert now.startswith("Round 1")
    page.run("document.querySelector('#metric-chart svg').blur()")
    assert "Best: round 4" in page.text("#readout")
    page.run("document.querySelector('#metric').value = 'loss'")
    page.run("document.querySelector('#metric').dispatchEvent(new Event('change'))")
    assert "lower is better" in page.text("#readout")


def test_a_long_run_is_decimated_and_fast(tmp_path, page):
    toy = ToyOrganiser(tmp_path)
    toy.begin(20_000)
    with toy.rounds_file.open("a") as file:
        for n in range(1, 10_001):
            value = 0.99 if n == 7_777 else 0.5
            row = {"round": n, "clients": {}, "bytes": {"up": n, "down": n}, "test": {"accuracy": value}}
            file.write(json.dumps(row) + "\n")
    with serving(make_app(toy, toy.monitor, token=TOKEN, rounds=toy.rounds), 0) as port:
        enter(page, f"http://127.0.0.1:{port}")
        assert "Best: round 7,777" in page.text("#readout")
        assert "every 32" in page.text("#decimated")
        toy.monitor.close()


def test_before_it_has_heard_anything_it_says_that_it_loads_and_not_that_there_is_nothing(tmp_path, page):
    toy, heard = ToyOrganiser(tmp_path), threading.Event()
    told = toy.status

    def status():
        assert heard.wait(60)
        return told()

    toy.status = status
    with serving(make_app(toy, toy.monitor, token=TOKEN, rounds=toy.rounds), 0) as port:
        page.open(f"http://127.0.0.1:{port}/#token={TOKEN}")
        page.until("!document.querySelector('#main').hidden")
        shown = page.run("document.querySelector('#main').innerText")
        assert "Loading" in shown
        for premature in ("No run yet", "Queue one", "Nobody is enrolled", "None since"):
            assert premature not in shown
        heard.set()
        page.until("document.querySelector('#run-name').innerText == 'No run yet'")
        assert "Queue one with" in page.text("#run-none")
        page.until("!document.querySelector('#events-none').hidden")
        toy.monitor.close()


def test_whom_it_waits_for_what_was_asked_and_what_cannot_be_met(toy, page, site):
    told = toy.status
    warning = "min_clients is 5, but 2 devices are enrolled: no round can close until 3 more take part"

    def status():
        found = told()
        (run,) = found.runs
        return replace(found, runs=(replace(run, note="pauses after round 5", warnings=(warning,)),))

    toy.status = status
    enter(page, site)
    toy.start_round(5)
    toy.monitor.observer(RUN)(WaitingFor(5, "train", (("ann", "at work"), ("ben", "offline"))))
    page.until("document.querySelector('#run-reason').innerText.includes('waits for')")
    assert page.text("#run-reason") == "round 5 waits for the update of ann (at work), ben (offline)"
    assert page.text("#run-note") == "pauses after round 5"
    assert page.text("#run-warnings") == warning
    assert page.run(CONTRAST) == []

"""The laws that every tracker inherits: subclass :class:`TrackerLaws`, set ``settings`` and :meth:`read`.

A tracker observes: it is told every round, once and in order, and a run with it is the run without it, to the
last bit, whatever becomes of the tracker.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from headwater.config import LoadedFederation
from headwater.config.load import federation_of
from headwater.config.traits import TrackerTraits
from headwater.server.events import Event, Notice, RoundEnded, RunStarted
from headwater.server.round_record import RoundRecord
from headwater.server.storage.run_folder import RunFolder
from headwater.server.trackers import tracking
from headwater.server.trackers.table import tracker_of
from headwater.server.trackers.tracker import RunStart
from headwater.server.trackers.tracking import Tracking
from headwater.simulation.run import simulate
from headwater.simulation.simulate import simulate as run_federation

# inherited @given tests run once per subclass, which is exactly what this check warns about
LAW = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,  # that below, which needs no reset
    ],
)
NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
METRICS = st.dictionaries(st.text(max_size=9), NUMBERS, max_size=4)


class TrackerLaws:
    """What must hold of any tracker.

    Attributes:
        settings: its ``[[trackers]]`` table.
    """

    settings: ClassVar[dict[str, Any]]

    @pytest.fixture(autouse=True)
    def _patience(self, monkeypatch):
        """On a busy machine a thread may wait long for its turn, and a run's end waits for it here."""
        monkeypatch.setattr(tracking, "DRAIN_S", 300.0)

    def read(self, folder: Path) -> list[int]:
        """The rounds that it has written down below its folder, as whoever reads them there sees them."""
        raise NotImplementedError

    def federation(self, rounds: int = 3, *, tracked: bool = True) -> LoadedFederation:
        """A small one with, or without, the tracker."""
        raw: dict[str, Any] = {
            "federation": {"name": "observed", "rounds": rounds},
            "model": {"kind": "vector", "size": 20},
            "data": {"kind": "none", "clients": 2},
            "training": {"kind": "noop"},
        }
        more = {"trackers": [dict(self.settings)]} if tracked else {}
        return federation_of(raw | more, folder=Path(), name="federation")

    @property
    def table(self) -> TrackerTraits:
        """Its settings."""
        (tracker,) = self.federation().trackers
        return tracker

    def folder(self, run: Path) -> Path:
        """Where it writes in a run folder."""
        return run / (self.table.folder or f"trackers/{self.settings['kind']}")

    def told(self, run: Path, last: int, *, first: int = 0, stop: str = "") -> list[str]:
        """Tell it of rounds ``first`` … ``last``, as a run that begins or goes on there; what people hear.

        Args:
            run: the run folder.
            last: the last round; they are put into ``rounds.jsonl`` if they are not there.
            first: 0 begins the run; else the rounds before it are done.
            stop: why there is no summary; empty if there is one.
        """
        folder, events, loaded = RunFolder(run), list[Event](), self.federation()
        with Tracking(loaded.trackers, "run-1", loaded.settings, run, events.append) as tracking:
            if first:
                tracking.observe(RunStarted(last, first - 1, 2))
            for number in range(first, last + 1):
                content = {"clients": {}, "bytes": {"up": number}, "test": {"loss": 1.0 / (1 + number)}}
                record = RoundRecord({"round": number, **content, "seconds": 0.1})
                folder.append_round(record)
                tracking.observe(RoundEnded(number, record, "loss", 1.0))
            if not stop:
                tracking.end({"rounds": last, "stopped": "rounds"})
        return [event.text for event in events if isinstance(event, Notice)]

    # what it is told

    def test_every_round_comes_once_and_in_order(self, tmp_path):
        assert self.told(tmp_path, 9) == []
        assert self.read(self.folder(tmp_path)) == list(range(10))

    def test_a_run_that_goes_on_is_told_from_where_it_was(self, tmp_path):
        assert self.told(tmp_path, 3, stop="killed") == []
        assert self.told(tmp_path, 6, first=4) == []
        assert self.read(self.folder(tmp_path)) == list(range(7))

    def test_a_run_that_is_over_has_nothing_new_to_tell(self, tmp_path):
        self.told(tmp_path, 2)
        assert self.told(tmp_path, 2, first=3) == []
        assert self.read(self.folder(tmp_path)) == [0, 1, 2]

    def test_what_a_kill_forgot_comes_again_with_its_number(self, tmp_path):
        """Only what the tracker was told is on disk, not that it was."""
        self.told(tmp_path, 2, stop="killed")
        shutil.rmtree(tmp_path / "state" / "trackers")
        assert self.told(tmp_path, 4, first=3) == []
        seen = self.read(self.folder(tmp_path))
        assert set(seen) == set(range(5))
        assert seen[-2:] == [3, 4]

    @LAW
    @given(test=METRICS, pooled=METRICS, merge=METRICS, more=st.dictionaries(st.text(max_size=9), NUMBERS))
    def test_no_record_is_refused(self, tmp_path_factory, test, pooled, merge, more):
        """What is missing, not finite or of another type reads as absent, as in every line of a run."""
        folder = tmp_path_factory.mktemp("tracker")
        tracker = tracker_of(self.table, folder / "own")
        tracker.start(RunStart("run-1", self.federation().settings, "loss", 0))
        content = {**more, "round": 0, "test": test, "clients_pooled": pooled, "merge": merge, "gap": None}
        tracker.round(RoundRecord(json.loads(json.dumps({"round": 0}))))
        tracker.round(RoundRecord({**json.loads(json.dumps(content)), "round": 1}))
        tracker.end({"rounds": 1})
        tracker.close()

    # what it changes

    def test_it_is_no_part_of_what_a_run_is_named_by_or_clients_are_sent(self):
        with_it, without = self.federation(), self.federation(tracked=False)
        assert with_it.settings == without.settings
        assert with_it.sha256() == without.sha256()
        assert str(self.settings["kind"]) not in with_it.settings.model_dump_json()

    def test_a_run_with_it_is_the_run_without_it(self, tmp_path):
        with_it = simulate(self.federation(), tmp_path / "a")
        without = simulate(self.federation(tracked=False), tmp_path / "b")
        assert self.read(self.folder(with_it.folder)) == [0, 1, 2, 3]
        assert bits(with_it.folder, own=self.folder(with_it.folder)) == bits(without.folder)
        (row,) = with_it.summary["trackers"].values()
        assert row == {"through": 3, "missing": 0, "failures": {}}
        assert "trackers" not in without.summary

    def test_it_writes_in_its_own_folder_only(self, tmp_path):
        self.told(tmp_path, 2)
        own, state = self.folder(tmp_path), tmp_path / "state" / "trackers"
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        rest = [path for path in files if not path.is_relative_to(own) and not path.is_relative_to(state)]
        assert rest == [tmp_path / "rounds.jsonl"]

    # what becomes of it

    def break_it(self, run: Path) -> None:
        """Let it fail from now on: nothing can be written where it writes."""
        folder = self.folder(run)
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.write_text("in the way")

    def mend_it(self, run: Path) -> None:
        """What :meth:`break_it` did is gone."""
        self.folder(run).unlink()

    def test_a_failing_tracker_costs_the_run_nothing_and_is_named(self, tmp_path):
        folder = RunFolder.create(tmp_path / "a", self.federation(), {"engine": "inprocess"})
        self.break_it(folder.path)
        summary = run_federation(self.federation(), folder)
        without = simulate(self.federation(tracked=False), tmp_path / "b")
        assert bits(folder.path) == bits(without.folder)
        row = summary["trackers"][self.settings["kind"]]
        assert row["missing"] == 4
        assert row["failures"]
        assert any(f"tracker {self.settings['kind']} failed" in text for text in summary["notices"])

    def test_a_failure_loses_no_round(self, tmp_path):
        self.break_it(tmp_path)
        told = self.told(tmp_path, 2)
        assert any(f"tracker {self.settings['kind']}, start" in text for text in told)
        assert any("has not taken 3 rounds" in text for text in told)
        self.mend_it(tmp_path)
        assert self.told(tmp_path, 4, first=3) == []
        assert self.read(self.folder(tmp_path)) == list(range(5))


def bits(run: Path, own: Path | None = None) -> dict[str, object]:
    """What a run came to: every tensor, round and number, without times and how its trackers fared.

    Args:
        run: the run folder.
        own: where its tracker writes, which may keep the adapter too.
    """
    tensors = sorted(path for path in run.rglob("*.safetensors") if not (own and path.is_relative_to(own)))
    found: dict[str, object] = {path.relative_to(run).as_posix(): _values(path) for path in tensors}
    assert [name.split("/")[0] for name in found] == ["adapter", "state"]
    found["rounds"] = [RoundRecord.read(line).content for line in (run / "rounds.jsonl").open("rb")]
    found["summary"] = summary = json.loads((run / "summary.json").read_text())
    for key in ("seconds", "peak_rss_bytes", "trackers", "notices"):
        summary.pop(key, None)
    return _without_seconds(found)


def _values(path: Path) -> dict[str, bytes]:
    """The tensors of a file; a checkpoint's notes name the run's receipts, which a key of its own signs."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def _without_seconds(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_seconds(value) for key, value in content.items() if key != "seconds"}
    return [_without_seconds(value) for value in content] if isinstance(content, list) else content

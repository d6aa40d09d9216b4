"""Correlated noise over rounds: C⁻¹Z leaves, and whatever dies or is put back, no position leaves twice."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from headwater.config.privacy import PrivacySettings
from headwater.errors import FederationStopped, HeadwaterError, StorageError
from headwater.merging.plan import MergePlan, PrivateSum
from headwater.privacy.correlated.blt import BufferedToeplitz
from headwater.privacy.correlated.mechanism import Participation
from headwater.privacy.correlated.noise import CorrelatedNoise
from headwater.privacy.correlated.toeplitz import Banded
from headwater.privacy.correlated.tree import Tree
from headwater.privacy.events import PositionReleased, SequenceReleased
from headwater.privacy.ledger import Ledger
from headwater.privacy.noise import ReproducibleRandomness, discrete_gaussian
from headwater.seeds.keys import Key
from headwater.server.rounds import releases
from headwater.server.rounds.releases import Releases
from headwater.server.storage.run_folder import RunFolder
from headwater.state import StateSpec, TensorSpec
from headwater.strategies.private_sum import NoisedSum
from headwater.tensor_bytes import save
from tests.support.crash_points import crash_points

pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
ROUNDS, Z, CLIP, OWNERS = 6, 0.8, 0.5, 4.0
WHO = Participation(ROUNDS, 2)
KINDS = {
    "tree": Tree(ROUNDS),
    "banded": Banded((1.0, 0.5)),
    "blt": BufferedToeplitz((0.95, 0.4), (0.15, 0.3)),
    "identity": Banded((1.0,)),
}
every_kind = pytest.mark.parametrize("mechanism", KINDS.values(), ids=KINDS)
SETTINGS = PrivacySettings(clip_l2=CLIP, noise_multiplier=Z, delta=1e-5, mechanism="tree", min_separation=2)
ROOT = Key.root(7)


class Process:
    """One life of a server, which makes releases of rounds without any update: of noise alone."""

    def __init__(self, home, mechanism, *, values=3, settings=SETTINGS):
        (home / "state").mkdir(exist_ok=True)
        self.folder, self.mechanism, self.settings = RunFolder(home), mechanism, settings
        self.spec = StateSpec([TensorSpec("v", (values,), "other")])
        self.releases = Releases(self.folder, self.spec)
        private = PrivateSum(CLIP, Z * mechanism.sensitivity(WHO), OWNERS)
        self.plan = MergePlan(self.spec, {"ann": 1}, 1.0, private=private)

    def release(self, number, *, base="", key=ROOT):
        """The values of this round's delta, in units of its sum."""
        randomness = ReproducibleRandomness(key.child("sum", number))
        rule = NoisedSum(lambda what, z, longest, size: self.releases.draw(randomness, longest, size))

        def event(release):
            return SequenceReleased(number, release, CLIP, Z, self.mechanism, WHO)

        def make():
            return rule.finalize(rule.init(self.plan))

        merged = self.releases.once(self.settings, event, base or f"base {number}", make)
        assert merged.asked == ("ann",)
        return np.rint(merged.delta.vector().double().numpy() * OWNERS * 2.0**self.plan.private.bits)

    @property
    def sigma(self):
        longest, values = self.plan.private.longest(self.spec.numel), self.spec.numel
        return CorrelatedNoise(self.mechanism, WHO, values, Z, longest).sigma

    @property
    def ledger(self):
        return Ledger(self.folder.ledger).events


def paid(events):
    return [event for event in events if isinstance(event, SequenceReleased)]


def told(events):
    return [(event.sequence, event.step) for event in events if isinstance(event, PositionReleased)]


@every_kind
def test_the_noise_of_the_rounds_is_the_inverse_times_independent_noise(tmp_path, mechanism):
    process = Process(tmp_path, mechanism, values=50)
    rows = np.stack([process.release(number) for number in range(1, ROUNDS + 1)])
    source = [ReproducibleRandomness(ROOT.child("sum", number)) for number in range(1, ROUNDS + 1)]
    independent = np.stack([discrete_gaussian(process.sigma, 50, one) for one in source])
    exact = np.linalg.solve(mechanism.materialize(ROUNDS), independent)
    assert np.abs(rows - exact).max() <= ROUNDS + 2.0**-23 * np.abs(rows).max()  # deltas are float32


@every_kind
def test_its_covariance_over_the_rounds_is_that_of_the_inverse(tmp_path, mechanism):
    values = 6000
    process = Process(tmp_path, mechanism, values=values)
    rows = np.stack([process.release(number) for number in range(1, ROUNDS + 1)])
    inverse = np.linalg.inv(mechanism.materialize(ROUNDS))
    sigma = Z * mechanism.sensitivity(WHO) * process.plan.private.longest(values)  # as the event is priced
    assert sigma <= process.sigma < 1.001 * sigma
    found, exact = rows @ rows.T / values / sigma**2, inverse @ inverse.T
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert np.abs(found - exact).max() < 6 * scale.max() * math.sqrt(2 / values)
    assert np.abs(found - np.eye(ROUNDS)).max() > 0.2 or mechanism == KINDS["identity"]


def test_whatever_write_it_dies_at_one_sum_of_a_position_leaves_and_one_sequence_is_paid(tmp_path):
    """Another life draws other noise: so what leaves twice, or goes on from another memory, would show."""
    mechanism, numbers, points = KINDS["blt"], (1, 2), 0
    lives = Key.root(8), Key.root(9)
    left: dict[int, list[np.ndarray]] = {}

    def live(home, key, numbers):
        for number in numbers:
            values = Process(home, mechanism).release(number, key=key)
            left.setdefault(number, []).append(values)

    for point in crash_points(lambda home: live(home, lives[0], numbers), tmp_path, hows=("before", "torn")):
        points += 1
        made = read(point.home)["round"] if RunFolder(point.home).release.exists() else 0
        live(point.home, lives[1], [number for number in numbers if number >= made])
        for number in numbers:
            assert all(np.array_equal(left[number][0], values) for values in left[number]), point
        require_one_stream(mechanism, [left[number][0] for number in numbers], lives, point)
        events = Process(point.home, mechanism).ledger
        assert len(paid(events)) == 1, point
        assert told(events) == [(paid(events)[0].release, step) for step in numbers], point
        left.clear()
    assert points > 15


def read(home):
    with safe_open(RunFolder(home).release, framework="np") as file:
        return json.loads(file.metadata()["headwater"])


def require_one_stream(mechanism, rows, lives, point):
    """Each row is what one of the lives drew for it, less what C takes of the rows before."""
    memory, sigma = mechanism.init(3), Process(point.home, mechanism).sigma
    for number, row in enumerate(rows, 1):
        taken = np.rint(mechanism.earlier(memory))
        drawn = [
            discrete_gaussian(sigma, 3, ReproducibleRandomness(key.child("sum", number))) for key in lives
        ]
        assert any(np.abs(z - taken - row).max() <= 2.0**-22 * np.abs(row).max() for z in drawn), point
        memory = mechanism.enter(memory, row)


def test_a_release_is_closed_by_the_next_life_as_it_was_made(tmp_path):
    first = Process(tmp_path, KINDS["blt"])
    made = [first.release(1), first.release(2)]
    before = first.ledger
    assert np.array_equal(Process(tmp_path, KINDS["blt"]).release(2, key=Key.root(99)), made[1])
    assert first.ledger == before


@pytest.mark.parametrize("lost", ["checkpoint", "release"])
def test_where_it_cannot_go_on_another_sequence_begins_and_is_paid(tmp_path, lost):
    process = Process(tmp_path, KINDS["banded"])
    for number in (1, 2, 3):
        process.release(number)
    if lost == "release":
        process.folder.release.unlink()
    again = 4 if lost == "release" else 2  # an older checkpoint
    Process(tmp_path, KINDS["banded"]).release(again, base="older")
    first, second = paid(process.ledger)
    steps = [(first.release, 1), (first.release, 2), (first.release, 3), (second.release, 1)]
    assert told(process.ledger) == steps
    assert second.round == again


def test_another_sequence_is_not_begun_above_the_budget(tmp_path):
    settings = SETTINGS.model_copy(update={"epsilon": 8.0})
    process = Process(tmp_path, KINDS["tree"], settings=settings)
    process.release(1)
    process.release(2)
    process.folder.release.unlink()
    before = process.ledger
    with pytest.raises(FederationStopped, match="budget"):
        Process(tmp_path, KINDS["tree"], settings=settings).release(3)
    assert process.ledger == before


def test_a_memory_that_is_not_what_was_written_stops_the_run(tmp_path):
    process = Process(tmp_path, KINDS["tree"])
    process.release(1)
    with safe_open(process.folder.release, framework="np") as file:
        arrays, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - an open file is no mapping
    arrays["noise/memory"][0, 0] ^= 1
    process.folder.release.write_bytes(save(arrays, metadata=about))
    with pytest.raises(StorageError, match="memory of correlated noise"):
        Process(tmp_path, KINDS["tree"]).release(2)


def test_a_position_is_drawn_once_and_in_the_units_of_those_before(tmp_path):
    process = Process(tmp_path, KINDS["tree"])
    process.release(1)
    with pytest.raises(HeadwaterError, match="none open"):
        process.releases.draw(ReproducibleRandomness(ROOT), 2.0**20, 3)
    other = Process(tmp_path, KINDS["tree"])
    other.plan = MergePlan(other.spec, {"ann": 1}, 1.0, private=PrivateSum(0.3, 1.0, OWNERS))
    with pytest.raises(HeadwaterError, match="other units"):
        other.release(2)


def test_the_report_says_what_the_sum_of_all_rounds_has(tmp_path):
    process = Process(tmp_path, Tree(ROUNDS), values=4000)
    total = sum(process.release(number) for number in range(1, 5))
    report = read(tmp_path)["report"]
    unit = 2.0**-process.plan.private.bits / OWNERS
    assert total.std() * unit == pytest.approx(report["prefix_noise_std"], rel=0.05)
    assert report["prefix_noise_std"] == pytest.approx(report["noise_std"])  # the node over 4 rounds


class History:
    """A run to which anything may happen: what has left of each position, and all that was drawn."""

    def __init__(self, home, mechanism):
        self.home, self.mechanism = home, mechanism
        self.checkpoints, self.drawn = [(0, "start", b"")], []
        self.left: dict[tuple[str, int], np.ndarray] = {}

    def process(self):
        return Process(self.home, self.mechanism)

    def release(self, process=None):
        """The next round's sum leaves; the checkpoint is another matter."""
        done, base, _ = self.checkpoints[-1]
        key = Key.root(len(self.drawn))
        self.drawn.append(key.child("sum", done + 1))
        row = (process or self.process()).release(done + 1, base=base, key=key)
        place = read(self.home)["sequence"]
        assert np.array_equal(self.left.setdefault((place["id"], place["step"]), row), row)
        return row

    def ends(self):
        """A round as it should be."""
        row, done = self.release(), self.checkpoints[-1][0]
        base, file = hashlib.sha256(row.tobytes()).hexdigest(), RunFolder(self.home).release.read_bytes()
        self.checkpoints.append((done + 1, base, file))

    def dies_before_the_file(self):
        with mock.patch.object(releases, "write_atomically", side_effect=Died), suppress(Died):
            self.release()

    def dies_before_the_position(self):
        process = self.process()
        with mock.patch.object(process.releases._positions, "close", side_effect=Died), suppress(Died):
            self.release(process)

    def dies_before_the_checkpoint(self):
        self.release()

    def gets_an_older_checkpoint(self):
        self.checkpoints = self.checkpoints[:-2] or self.checkpoints[:1]

    def gets_an_older_state(self):
        """Checkpoint and release; the ledger is as it was."""
        self.gets_an_older_checkpoint()
        self.loses_the_release()
        if file := self.checkpoints[-1][2]:
            RunFolder(self.home).release.write_bytes(file)

    def loses_the_release(self):
        RunFolder(self.home).release.unlink(missing_ok=True)

    def rolls_back(self):
        """As the server does it: after a round whose sum is out."""
        if RunFolder(self.home).release.exists() and read(self.home)["base"] == self.checkpoints[-1][1]:
            self.ends()
        done, base, file = self.checkpoints[-1]
        self.checkpoints[-1] = done, f"{base} again", file

    def require_sound(self):
        """Each sequence is paid; its positions have left in order, each once, as the matrix wants it."""
        ids, sigma = [event.release for event in paid(self.process().ledger)], self.process().sigma
        assert {sequence for sequence, _ in self.left} <= set(ids)
        fresh = [discrete_gaussian(sigma, 3, ReproducibleRandomness(key)) for key in self.drawn]
        for sequence in ids:
            memory, steps = self.mechanism.init(3), sorted(s for i, s in self.left if i == sequence)
            assert steps == list(range(1, len(steps) + 1))
            for step in steps:
                row = self.left[sequence, step]
                z = row + np.rint(self.mechanism.earlier(memory))
                assert any(np.abs(z - one).max() <= 2.0**-22 * np.abs(row).max() for one in fresh)
                memory = self.mechanism.enter(memory, row)


class Died(BaseException):
    """The process is gone."""


HAPPENS = (
    *[History.ends] * 4,
    History.dies_before_the_file,
    History.dies_before_the_position,
    History.dies_before_the_checkpoint,
    History.gets_an_older_checkpoint,
    History.gets_an_older_state,
    History.loses_the_release,
    History.rolls_back,
)


@example([History.ends] * (ROUNDS + 1), "blt")  # more than the sequence has
@example(  # what is put back is as long as what is paid, and of another sequence
    [
        *[History.ends] * 2,
        History.loses_the_release,
        History.ends,
        History.gets_an_older_state,
        History.ends,
    ],
    "banded",
)
@example([*[History.ends] * 4, History.gets_an_older_state, History.ends], "banded")
@example([*[History.ends] * 4, History.gets_an_older_checkpoint, *[History.ends] * 3], "tree")
@given(st.lists(st.sampled_from(HAPPENS), max_size=12), st.sampled_from(["tree", "banded", "blt"]))
@settings(max_examples=20, deadline=None)
def test_whatever_happens_to_a_run_no_position_leaves_twice(tmp_path_factory, happens, kind):
    history = History(tmp_path_factory.mktemp("run"), KINDS[kind])
    for event in happens:
        event(history)
    history.require_sound()

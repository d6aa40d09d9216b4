"""A model of a daemon, its spool and its clients, in which everything goes wrong: :class:`World`.

It does what a coordinator says, and after every event compares it with a few lines of bookkeeping of its
own. All that is random comes from the seed. A crash throws the coordinator away and begins the open round
anew with what the spool has.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from headwater.protocol import coordinator as c


class Crashed(Exception):
    """kill -9."""


@dataclass
class Trouble:
    """How likely what is; all 0: nothing goes wrong."""

    fail: float = 0.0
    garbage: float = 0.0
    duplicate: float = 0.0
    noise: float = 0.0
    crash: float = 0.0
    slowest_s: int = 8
    dead: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()


@dataclass
class World:
    """One federation from its first round to its last.

    ``machine`` makes a coordinator from the number of rounds that are done. ``buffer`` is None for
    synchronous rounds. ``crash_at`` crashes at that write, counted from 1.
    """

    seed: int
    machine: object
    clients: tuple[str, ...]
    rounds: int = 3
    min_clients: int = 1
    target: int | None = None
    buffer: int | None = None
    max_staleness: int = 20
    deadline_s: float | None = None
    retry_s: float | None = 5.0
    at_once: int | None = None
    trouble: Trouble = field(default_factory=Trouble)
    crash_at: int | None = None
    patience_s: int = 4000

    def __post_init__(self):
        self.random = random.Random(self.seed)
        self.now, self.told, self.done, self.writes, self.crashes = 0, 0, 0, 0, 0
        self.spool: dict[str, int] = {}
        self.merged: list[tuple[tuple[str, int], ...]] = []
        self.halted = False
        self.post: list[tuple[int, str, int, str]] = []  # due, client, round, what
        self.gone: set[str] = set()
        self.start()

    def start(self):
        """A new process: nothing is remembered but what is on disk."""
        self.coordinator = self.machine(self.done)
        self.outstanding: dict[str, int] = {}
        self.asked_s: dict[str, int] = {}

    def run(self):
        """Until the last round; every round's accepted updates and the versions they started from."""
        while self.done < self.rounds and not self.halted:
            try:
                self.round()
            except Crashed:
                self.crashes += 1
                if self.random.random() < 0.5:
                    self.post = []  # else replies to a process that is no more come in late
                self.start()
        return self.merged

    def write(self):
        """Something goes to disk here: a crash may come before and after."""
        self.writes += 1
        if self.writes == self.crash_at or (self.crashes < 20 and self.random.random() < self.trouble.crash):
            raise Crashed

    # --- one round --------------------------------------------------------------------------------

    def round(self):
        self.number, self.began = self.done + 1, self.now
        self.due: dict[str, float] = {}
        self.failures: dict[str, int] = {}
        self.reasons: dict[str, str] = {}
        if self.buffer is not None:
            self.outstanding = {
                name: origin
                for name, origin in self.outstanding.items()
                if self.number - origin <= self.max_staleness
            }
        self.asked = {*self.spool, *self.outstanding}
        self.ends = None if self.deadline_s is None else self.now + self.deadline_s
        plan = tuple(name for name in self.clients if name not in self.gone)
        started = tuple((n, v) for n, v in self.spool.items() if v != self.number)
        accepted = tuple(self.spool)
        end = self.do([c.Begin(self.number, plan, self.now, accepted, started)])
        while end is None:
            self.now += self.random.choice((1, 1, 1, 2, 3))
            assert self.now - self.began < self.patience_s, f"seed {self.seed}: stalled\n{self.__dict__}"
            end = self.step()
        if isinstance(end, c.Halt):
            self.halted = True
            return
        self.write()
        self.merged.append(tuple(sorted(self.spool.items())))
        self.done, self.spool = self.number, {}
        self.write()

    def step(self):
        """One tick; in it what the post brings, what nobody asked for, and who is revoked."""
        arrived = [letter for letter in self.post if letter[0] <= self.now]
        self.post = [letter for letter in self.post if letter[0] > self.now]
        self.random.shuffle(arrived)
        end = None
        for letter in arrived:
            if end is not None:
                self.post.append(letter)  # the transport keeps it until the next round
                continue
            _, name, origin, what = letter
            if what == "fails":
                end = self.do([c.Failed(name, origin, "fails")])
            else:
                end = self.arrive(name, origin, what)
        if end is None and self.random.random() < self.trouble.noise:
            end = self.do([self.rubbish()])
        if end is None and self.random.random() < self.trouble.noise:
            end = self.do([c.Joined(self.random.choice((*self.clients, "stranger")), self.number)])
        for name in sorted(self.trouble.revoked - self.gone):
            if end is None and self.random.random() < 0.1:
                self.gone.add(name)
                end = self.do([c.Gone(name, self.number, "revoked")])
        return end or self.do([c.Tick(self.now)])

    def rubbish(self):
        """An event that must change nothing."""
        name = self.random.choice((*self.clients, "stranger"))
        wrong = self.random.choice((0, self.number + 1, self.number - 1, self.number))
        if self.outstanding.get(name) == wrong:
            return c.Folded(name, wrong)
        return self.random.choice((c.Folded, c.Arrived))(name, wrong)

    def arrive(self, name, origin, what):
        return self.do([c.Arrived(name, origin)], what)

    # --- events in, actions out, laws in between --------------------------------------------------

    def do(self, events, what="good"):
        end = None
        for event in events:
            self.expect(event)
            actions = self.coordinator.receive(event)
            end = self.obey(event, actions, what) or end
        if end is None:
            self.must_be_open()
        return end

    def expect(self, event):
        """Bring the bookkeeping up to date with an event that is about to be told."""
        name = getattr(event, "client", "")
        if isinstance(event, c.Failed) and self.outstanding.get(name) == event.round:
            self.fell_out(name, event.reason)
        if isinstance(event, c.Gone):
            self.due.pop(name, None)
            if self.outstanding.pop(name, None) is not None or name in self.reasons:
                self.reasons[name] = event.reason

    def fell_out(self, name, reason):
        del self.outstanding[name]
        self.reasons[name] = reason
        if self.retry_s is not None and name not in self.gone:
            count = self.failures.get(name, 0)
            self.failures[name] = count + 1
            self.due[name] = self.told + self.retry_s * min(2**count, 16)

    def obey(self, event, actions, what):
        if isinstance(event, c.Tick | c.Begin):
            self.told = event.now_s
        end = None
        ripe = {name for name, due in self.due.items() if due <= self.told or isinstance(event, c.Joined)}
        if isinstance(event, c.Joined):
            ripe &= {event.client}
        asks = [a.client for a in actions if isinstance(a, c.Ask)]
        ends = any(isinstance(a, c.Close | c.Halt) for a in actions)
        if isinstance(event, c.Tick | c.Joined) and self.buffer is None and not ends:
            assert set(asks) == ripe, (self.seed, asks, ripe)
        for action in actions:
            assert end is None, "nothing follows an end"
            if isinstance(action, c.Ask):
                self.ask(action, event, ripe)
            elif isinstance(action, c.Fold):
                assert isinstance(event, c.Arrived)
                assert (action.client, action.round) == (event.client, event.round)
                end = self.fold(action, what)
            elif isinstance(action, c.Discard):
                assert action.reason
                assert self.outstanding.get(action.client) != action.round, self.seed
            else:
                end = action
                self.check_end(end, event)
        if isinstance(event, c.Tick) and end is None and self.ends is not None and self.now >= self.ends:
            assert len(self.spool) < self.min_clients, f"seed {self.seed}: open after its deadline"
            self.ends = self.now + self.deadline_s
        return end

    def ask(self, action, event, ripe):
        name = action.client
        assert action.round == self.number
        assert name in self.clients
        assert name not in self.gone
        assert name not in self.spool, f"seed {self.seed}: {name} was accepted already"
        assert name not in self.outstanding
        assert not self.failures.get(name) or name in ripe or self.at_once is not None, self.seed
        self.due.pop(name, None)
        self.asked.add(name)
        self.outstanding[name] = self.number
        self.asked_s[name] = self.told
        if self.at_once is not None:
            since = -1 if self.deadline_s is None else self.told - self.deadline_s
            assert sum(self.asked_s[n] > since for n in self.outstanding) <= self.at_once
        self.behave(name)

    def behave(self, name):
        """What the client makes of its task; one that is not dead answers rightly in the end."""
        trouble, roll = self.trouble, self.random.random()
        if name in trouble.dead:
            return
        what = "good"
        if self.failures.get(name, 0) < 6:
            if roll < trouble.fail:
                what = "fails"
            elif roll < trouble.fail + trouble.garbage:
                what = "garbage"
        for _ in range(2 if self.random.random() < trouble.duplicate else 1):
            self.post.append((self.now + self.random.randint(0, trouble.slowest_s), name, self.number, what))

    def fold(self, action, what):
        name, origin = action.client, action.round
        assert self.outstanding.get(name) == origin, f"seed {self.seed}: {name} was not asked"
        assert name not in self.spool, f"seed {self.seed}: {name} is folded twice"
        assert self.number - origin <= (0 if self.buffer is None else self.max_staleness)
        if what == "garbage":
            self.fell_out(name, what)
            return self.do([c.Failed(name, origin, what)])
        self.write()
        self.spool[name] = origin
        self.write()
        del self.outstanding[name]
        self.reasons.pop(name, None)
        return self.do([c.Folded(name, origin)])

    def check_end(self, end, event):
        accepted = dict(sorted(self.spool.items()))
        assert end.round == self.number
        assert end.accepted == tuple(accepted), self.seed
        assert set(end.accepted) <= self.asked
        late = isinstance(event, c.Tick) and self.ends is not None and self.now >= self.ends
        failed = dict(end.failed)
        assert not failed.keys() & accepted.keys()
        if isinstance(end, c.Halt):
            assert self.retry_s is None, f"seed {self.seed}: a persistent machine halted"
            assert len(accepted) < self.min_clients
            assert late or not self.outstanding
            return
        assert len(accepted) >= self.min_clients
        enough = self.buffer or self.target
        full = enough is not None and len(accepted) >= enough
        assert full or late or not self.outstanding, f"seed {self.seed}: closed too early"
        assert end.last == (end.round == self.rounds)
        if self.buffer is not None:
            assert end.started == tuple(accepted.items())
            return
        told = {*self.asked, *event.clients} if isinstance(event, c.Begin) else self.asked
        assert failed.keys() == told - accepted.keys(), self.seed
        for name in self.outstanding:
            assert failed[name].startswith("not needed" if full else "no answer within"), self.seed
        for name, reason in self.reasons.items():
            assert reason in failed[name]
        self.outstanding = {}

    def must_be_open(self):
        """What would have to have ended the round has not happened."""
        assert self.coordinator.phase is c.Phase.OPEN
        enough = self.buffer or self.target
        assert enough is None or len(self.spool) < enough, f"seed {self.seed}: full, but open"
        if self.outstanding or (self.retry_s is not None and len(self.spool) < self.min_clients):
            return
        raise AssertionError(f"seed {self.seed}: all have answered, but round {self.number} is open")

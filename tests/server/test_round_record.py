"""The round record: one reader, one writer, the same bytes; nothing in a line is relied on."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import headwater
from headwater.server.round_record import ClientRow, RoundDraft, RoundRecord, Traffic
from headwater.server.storage.run_folder import RunFolder

OLD = (
    '{"round":0,"clients":{},"bytes":{"up":0,"down":0,"up_dense":0,"down_dense":0},'
    '"state_sha256":"3753","test":{"accuracy":0.5121163166397416,"loss":null,"examples":619},"seconds":1.5}',
    '{"round":1,"clients":{"amazon":{"bytes_down":616,"bytes_up":716,"loss":0.59510715,"examples":1800,'
    '"steps":57,"bytes_up_dense":295000},"yelp \\u2028\\ud83d":{"bytes_down":616,"failed":"late"},'
    '"imdb":{"bytes_down":1,"failed":"not needed","spared":true,"method":"phone"}},'
    '"bytes":{"up":716,"down":1233,"up_dense":295000,"down_dense":885000},'
    '"gap":{"exact":false,"absolute":0.1,"relative":1e-07,"saturated":0,"modules":{"q":0.2}},'
    '"merge":{"delta_norm":0.25},"not_evaluated":{"amazon":"noise","imdb":"not asked: offline"},'
    '"clients_pooled":{"accuracy":0.5},"clients_each":{"imdb":{"accuracy":1.0,"examples":3.0}},'
    '"state_sha256":"5cf1","seconds":36.2}',
    '{"round":2,"seconds":-0.0,"a_key_of_tomorrow":[1,{"x":1e+300}],"gap":null,"clients":{"a":{"new":true}}}',
)
"""Lines as earlier versions wrote them, and one of a later version."""


@pytest.mark.parametrize("line", OLD)
def test_what_is_read_is_written_to_the_same_bytes(line, tmp_path):
    assert RoundRecord.read(line.encode()).line() == line.encode()
    folder = RunFolder(tmp_path)
    folder.rounds.write_bytes(line.encode() + b"\n" + b'{"round":9,"torn')
    (kept,) = folder.keep_rounds(9)
    assert folder.rounds.read_bytes() == line.encode() + b"\n"
    folder.append_round(kept)
    assert folder.rounds.read_bytes() == 2 * (line.encode() + b"\n")


def test_the_views_say_what_the_line_says():
    first, second, third = (RoundRecord.read(line.encode()) for line in OLD)
    assert (first.round, first.clients, first.bytes, first.tested) == (0, {}, Traffic(0, 0, 0, 0), True)
    assert first.deciding("accuracy") == 0.5121163166397416
    assert math.isnan(first.deciding("loss"))
    assert second.deciding("accuracy") == 0.5  # of the clients together, without a file of the server's
    assert second.bytes == Traffic(716, 1233, 295_000, 885_000)
    amazon, yelp, imdb = second.clients.values()
    assert (amazon.bytes_up, amazon.bytes_down, amazon.number("loss")) == (716, 616, 0.59510715)
    assert (amazon.failed, amazon.spared, amazon.method) == ("", False, "")
    assert amazon.not_evaluated == "evaluation: noise"
    assert (yelp.failed, yelp.bytes_up, yelp.bytes_fisher, yelp.number("loss")) == ("late", 0, None, None)
    assert (imdb.spared, imdb.method, imdb.not_evaluated) == (True, "phone", "")
    assert second.gap["modules"] == {"q": 0.2}
    assert not second.gap_unmeasured
    assert second.merge == {"delta_norm": 0.25}
    assert second.each == {"imdb": {"accuracy": 1.0, "examples": 3.0}}
    assert (third.gap_unmeasured, third.gap, third.tested, third.seconds) == (True, {}, False, 0.0)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    "clients", "bytes", "gap", "merge", "test", "clients_pooled", "clients_each", "not_evaluated", "seconds",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), JUNK | st.dictionaries(st.just("up"), JUNK)), JUNK)
def test_nothing_in_a_line_is_relied_on(content, row):
    record = RoundRecord({"round": 3, **content})
    views = [n for n, v in vars(RoundRecord).items() if not n.startswith("_") and not callable(v)]
    assert {"clients", "bytes", "test", "pooled", "each", "gap", "merge", "seconds"} <= set(views)
    for name in set(views) - {"read", "content"}:
        getattr(record, name)
    assert isinstance(record.deciding("x"), float)
    one = ClientRow({"failed": row, "bytes_up": row, "loss": row, "method": row, "bytes_fisher": row})
    assert isinstance(one.failed, str)
    assert isinstance(one.bytes_up, int)
    assert one.number("loss") is None or math.isfinite(one.number("loss"))


@pytest.mark.parametrize("line", [b"", b"[]", b'{"round":"1"}', b'{"rounds":1}', b'{"round":1', b"3"])
def test_what_is_no_round_is_not_read(line):
    with pytest.raises(ValueError, match=r"round|Expecting|delimiter"):
        RoundRecord.read(line)


def test_a_draft_becomes_the_line_in_the_order_in_which_it_was_told():
    draft = RoundDraft(4, {"b": {"bytes_down": 5}}, Traffic(1, 5, 10, 20))
    draft.merged({"exact": True}, {"delta_norm": math.nan})
    draft.stale("b", 2)
    draft.not_asked({"c": "offline"})
    draft.transferred(up=1, up_dense=2, down=3, down_dense=4)
    draft.tested({"loss": 0.5}, 7)
    draft.not_evaluated({"b": "late"})
    draft.not_evaluated({})
    draft.evaluated({"loss": 0.25}, {"b": {"loss": 0.25}})
    draft.lost({"a": "gone", "b": "in it already"})
    draft.set_state("abc")
    assert draft.record(1.23456).line().decode() == (
        '{"round":4,"clients":{"a":{"bytes_down":0,"failed":"gone"},"b":{"bytes_down":5,"staleness":2}},'
        '"bytes":{"up":2,"down":8,"up_dense":12,"down_dense":24},"gap":{"exact":true},'
        '"merge":{"delta_norm":null},"not_evaluated":{"c":"not asked: offline","b":"late"},'
        '"test":{"loss":0.5,"examples":7},"clients_pooled":{"loss":0.25},"clients_each":{"b":{"loss":0.25}},'
        '"state_sha256":"abc","seconds":1.235}'
    )
    assert json.loads(draft.record(0).line())["seconds"] == 0


def test_nobody_else_names_the_keys_of_the_line():
    package = Path(headwater.__file__).parent
    own = {"clients_each", "not_evaluated", "staleness", "spared", "bytes_fisher"}
    found = {
        (path.relative_to(package).as_posix(), name)
        for path in package.rglob("*.py")
        for name in own & {n.value for n in ast.walk(ast.parse(path.read_text())) if _is_text(n)}
    }
    writers = {("server/rounds/open_round.py", "spared")}  # what one client did is noted where it is folded
    writers |= {("server/rounds/masked_round.py", "bytes_fisher")}  # left out there
    assert found - writers == {("server/round_record.py", name) for name in own}


def _is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)

"""What all clients of a simulation keep in one file is what each would keep by itself."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.client.execution.control_variate import ControlVariate
from headwater.client.execution.record_file import RecordFile
from headwater.client.execution.store import STORE_FILE, DirectoryStore, MemoryStore, SharedStore
from headwater.compression.feedback import FeedbackState, sent
from headwater.compression.feedback_file import pending_round, read_state, to_pieces
from headwater.errors import SpecMismatch, StorageError
from headwater.state import AdapterState, StateSpec, TensorSpec

SPEC = StateSpec.of([TensorSpec("a", (3, 2), "lora_a"), TensorSpec("b", (2,), "vector")])
OTHER = StateSpec.of([TensorSpec("v", (4,), "vector")])
NAMES = ["ann", "больница 7", "a/b", "医" * 63 + "1", "医" * 63 + "2"]


def state(seed, spec=SPEC):
    values = np.random.default_rng(seed).standard_normal(spec.numel).astype(np.float32)
    return AdapterState.from_vector(spec, torch.from_numpy(values))


def feedback(seed):
    kept = FeedbackState() if seed % 4 == 0 else FeedbackState(state(seed))
    return kept if seed % 3 else sent(kept, seed + 1, state(seed + 1), state(seed + 2), bytes([seed]) * 90)


def control(seed):
    return ControlVariate(state(seed) if seed % 2 else None, seed, state(seed + 1) if seed % 3 else None)


def kept(store, client):
    sums = store.load_sums(client).items()
    return (
        store.load(client, SPEC), store.pending_round(client, SPEC), store.load_control(client, SPEC),
        store.load_own(client, SPEC),
        [(version, values.tolist()) for version, values in sums],
    )  # fmt: skip


def play(store, game):
    for client, kind, seed in game:
        if kind == "feedback":
            store.save(client, feedback(seed))
        elif kind == "control":
            store.save_control(client, control(seed))
        elif kind == "own":
            store.save_own(client, control(seed + 1))
        else:
            store.save_sums(client, seed + 1, np.arange(seed, dtype=np.int64) << seed, max(0, seed - 1))


GAMES = st.lists(
    st.tuples(
        st.sampled_from(NAMES), st.sampled_from(["feedback", "control", "own", "sums"]), st.integers(0, 20)
    ),
    max_size=12,
)


@given(before=GAMES, after=GAMES)
@settings(max_examples=30, deadline=None)
def test_it_is_a_store_like_the_others_also_in_a_folder_that_an_earlier_version_left(
    before, after, tmp_path_factory
):
    """An earlier version kept a file per client and kind: each is read until it is replaced."""
    folder, model = tmp_path_factory.mktemp("clients"), MemoryStore()
    play(DirectoryStore(folder, durable=False), before)
    earlier = {path.name: path.read_bytes() for path in folder.iterdir()}
    play(model, before)
    for _ in range(2):  # and as after a restart
        store = SharedStore(folder)
        for client in NAMES:
            assert kept(store, client) == kept(model, client)
        play(store, after)
        play(model, after)
        for client in NAMES:
            assert kept(store, client) == kept(model, client)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name: found[name] for name in earlier} == earlier
    assert found.keys() - earlier.keys() <= {STORE_FILE, f"{STORE_FILE}-journal"}


def test_nothing_is_written_before_there_is_something_to_keep(tmp_path):
    store = SharedStore(tmp_path / "clients")
    assert store.load("ann", SPEC) == FeedbackState()
    assert store.pending_round("ann", SPEC) is None
    assert store.load_sums("ann") == {}
    assert not (tmp_path / "clients").exists()
    store.save("ann", feedback(1))
    assert sorted(path.name for path in (tmp_path / "clients").iterdir())[0] == STORE_FILE


def test_another_adapter_s_state_is_refused(tmp_path):
    SharedStore(tmp_path).save("ann", feedback(3))
    for ask in (SharedStore(tmp_path).load, SharedStore(tmp_path).pending_round):
        with pytest.raises(SpecMismatch, match="residuals of spec"):
            ask("ann", OTHER)


def test_a_damaged_record_is_an_error_that_names_file_and_client_and_sums_count_as_none(tmp_path):
    store, records = SharedStore(tmp_path), RecordFile(tmp_path / STORE_FILE)
    store.save("ben", feedback(3))
    store.save_sums("ann", 1, np.arange(3))
    for kind in ("feedback", "control", "own", "sums"):
        records.put("ann", kind, [b"HWFB2\n" + b"x" * 90])
    for ask in (store.load, store.load_control, store.load_own):
        with pytest.raises(
            StorageError, match=rf"{STORE_FILE}: client ann, .*Restore the file from a backup"
        ):
            ask("ann", SPEC)
    assert store.load_sums("ann") == {}
    assert store.load("ben", SPEC) == feedback(3)


def test_the_round_of_a_pending_update_is_read_from_the_head_alone(tmp_path):
    class Counted(io.BytesIO):
        given = 0

        def read(self, size=-1):
            data = super().read(size)
            Counted.given += len(data)
            return data

    large = StateSpec.of([TensorSpec("v", (100_000,), "vector")])
    whole = sent(FeedbackState(), 7, state(1, large), state(2, large), b"e" * 1000)
    data = b"".join(to_pieces(whole))
    assert pending_round(Counted(data), large) == 7
    assert Counted.given < 2000 < len(data)
    assert read_state(io.BytesIO(data), large) == whole


def test_a_folder_without_clients_files_has_no_earlier_store(tmp_path):
    (tmp_path / "notes.txt").write_text("a stranger's")
    assert isinstance(SharedStore(tmp_path)._earlier, MemoryStore)
    DirectoryStore(tmp_path).save("ann", feedback(1))
    assert isinstance(SharedStore(tmp_path)._earlier, DirectoryStore)
    assert isinstance(SharedStore(Path(tmp_path, "absent"))._earlier, MemoryStore)

import json
from pathlib import Path

import pytest

from headwater.config import LoadedFederation, load_federation
from headwater.data import federated
from headwater.data.federated import FederatedData
from headwater.data.files.formats import read_rows
from headwater.errors import ConfigError, DataError
from headwater.seeds.keys import Key
from tests.data.toys import Letters, write_jsonl

KEY = Key.root(3)
OWN_DATA = Path(__file__).parents[2] / "examples" / "own-data"


def federation(folder: Path, data: dict[str, object], *, kind: str = "encoder") -> LoadedFederation:
    lines = ['[federation]\nname = "t"\nrounds = 1', f'[model]\nkind = "{kind}"\npath = "m"']
    lines += ['[adapter]\nkind = "lora"', '[training]\nkind = "backprop"', "[data]"]
    for key, value in data.items():
        if isinstance(value, dict):
            value = "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + "}"
        else:
            value = json.dumps(value)
        lines.append(f"{key} = {value}")
    path = folder / "federation.toml"
    path.write_text("\n".join(lines))
    return load_federation(path)


def labelled(count: int, client: str, labels: str = "ab") -> list[dict[str, object]]:
    return [
        {"text": f"{client} {i}", "label": labels[i % len(labels)], "owner": client} for i in range(count)
    ]


def classes(**more) -> dict[str, object]:
    return {
        "kind": "classification",
        "path": "data.jsonl",
        "labels": ["a", "b"],
        "partition": {"kind": "column", "column": "owner"},
        **more,
    }


def test_clients_have_their_own_rows_tokenised_when_asked(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", labelled(20, "y") + labelled(30, "x"))
    data = FederatedData.open(federation(tmp_path, classes()), Letters(), KEY)
    assert data.clients == ("x", "y")
    assert (data.rows("x"), data.rows("y")) == ((27, 3), (18, 2))
    assert data.warnings == ()
    assert data.test() is None
    own = data.client("x")
    assert (len(own.train), len(own.validation)) == (27, 3)
    assert all(chr(e.tokens[1]) == "x" for e in (*own.train, *own.validation))
    assert data.client("x") is own


def test_a_fraction_keeps_clients_unequal_and_the_cap_holds(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", labelled(20, "y") + labelled(50, "x"))

    def sizes(**more):
        data = FederatedData.open(federation(tmp_path, classes(validation_fraction=0.0, **more)), None, KEY)
        return data.rows("x")[0], data.rows("y")[0]

    assert sizes(fraction=0.31) == (16, 7)  # rounded up: a client keeps at least one row
    assert sizes(max_examples_per_client=30) == (30, 20)
    assert sizes(fraction=0.5, max_examples_per_client=12) == (12, 10)
    assert sizes(fraction=0.001) == (1, 1)


def test_a_sample_of_the_test_file_is_drawn_once(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", labelled(20, "x"))
    write_jsonl(tmp_path / "test.jsonl", labelled(30, "z"))
    settings = federation(tmp_path, classes(test="test.jsonl", max_test_examples=7))
    whole = federation(tmp_path, classes(test="test.jsonl"))
    drawn = [FederatedData.open(settings, Letters(), KEY).test() for _ in range(2)]
    every = {tuple(e.tokens) for e in FederatedData.open(whole, Letters(), KEY).test()}
    assert len(drawn[0]) == 7
    assert [tuple(e.tokens) for e in drawn[0]] == [tuple(e.tokens) for e in drawn[1]]
    assert {tuple(e.tokens) for e in drawn[0]} < every
    assert len(every) == 30


def test_sizes_need_no_tokenizer(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", labelled(20, "x"))
    data = FederatedData.open(federation(tmp_path, classes()), None, KEY)
    assert data.rows("x") == (18, 2)
    with pytest.raises(ConfigError, match=r"expected a tokenizer"):
        data.client("x")


def test_a_device_with_its_own_file_has_the_split_of_the_simulation(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", labelled(20, "y") + labelled(30, "x"))
    device = write_jsonl(tmp_path / "device.jsonl", labelled(30, "x"))
    loaded = federation(tmp_path, classes(max_examples_per_client=12, validation_fraction=0.4))
    whole = FederatedData.open(loaded, Letters(), KEY)
    alone = FederatedData.own(loaded, device, "x", Letters(), KEY)
    assert alone.clients == ("x",)
    assert alone.rows("x") == whole.rows("x") == (7, 5)
    for part in ("train", "validation"):
        ours, theirs = getattr(alone.client("x"), part), getattr(whole.client("x"), part)
        assert [e.tokens.tolist() for e in ours] == [e.tokens.tolist() for e in theirs]
    assert FederatedData.own(loaded, device, "z", Letters(), KEY).client("z").train is not None
    with pytest.raises(DataError, match=r"own name"):
        FederatedData.own(loaded, device, "", Letters(), KEY)


def test_another_clients_rows_change_nothing(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", labelled(20, "y") + labelled(30, "x"))
    loaded = federation(tmp_path, classes())
    before = FederatedData.open(loaded, Letters(), KEY).client("x").validation
    write_jsonl(tmp_path / "data.jsonl", labelled(5, "w") + labelled(30, "x") + labelled(9, "y"))
    after = FederatedData.open(loaded, Letters(), KEY).client("x").validation
    assert [e.tokens.tolist() for e in before] == [e.tokens.tolist() for e in after]


def test_few_examples_stay_in_memory(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "data.jsonl", labelled(20, "y") + labelled(30, "x"))
    monkeypatch.setattr(federated, "CACHED_TOKENS", 250)
    data = FederatedData.open(federation(tmp_path, classes()), Letters(), KEY)
    first = data.client("x")
    data.client("y")
    again = data.client("x")
    assert again is not first
    assert [e.tokens.tolist() for e in again.train] == [e.tokens.tolist() for e in first.train]


def test_warnings_for_a_single_class_and_for_texts_shared_with_the_test_file(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", labelled(6, "mono", "a") + labelled(6, "x"))
    write_jsonl(tmp_path / "test.jsonl", [*labelled(2, "x"), {"text": "new", "label": "b"}])
    data = FederatedData.open(federation(tmp_path, classes(test="test.jsonl")), Letters(), KEY)
    assert data.warnings == (
        "2 of 3 test rows have a text that is also in the clients' data (first test.jsonl:1)",
        "1 client has a single class: 'mono' (only 'a')",
    )
    test = data.test()
    assert test is not None
    assert len(test) == 3
    assert data.test() is test


def test_bad_rows_show_when_the_data_is_opened(tmp_path):
    good = labelled(6, "x")
    loaded = federation(tmp_path, classes(test="test.jsonl"))
    write_jsonl(tmp_path / "test.jsonl", good)
    write_jsonl(tmp_path / "data.jsonl", [*good, {"text": "t", "label": "c", "owner": "x"}])
    with pytest.raises(DataError, match=r"data.jsonl:7: expected one of the labels 'a', 'b'.*'c'"):
        FederatedData.open(loaded, None, KEY)
    write_jsonl(tmp_path / "data.jsonl", good)
    write_jsonl(tmp_path / "test.jsonl", [{"text": "", "label": "a"}])
    with pytest.raises(DataError, match=r"test.jsonl:1: .*empty text"):
        FederatedData.open(loaded, None, KEY)


def test_an_empty_client_file_is_named(tmp_path):
    write_jsonl(tmp_path / "clients" / "full.jsonl", labelled(3, "x"))
    write_jsonl(tmp_path / "clients" / "void.jsonl", [])
    loaded = federation(tmp_path, classes(path="clients", partition={"kind": "files"}))
    with pytest.raises(DataError, match=r"void.jsonl: expected at least one row"):
        FederatedData.open(loaded, None, KEY)


def test_labels_must_differ(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", labelled(3, "x"))
    with pytest.raises(ConfigError, match=r"data\.labels"):
        FederatedData.open(federation(tmp_path, classes(labels=["a", "b", "a"])), None, KEY)


def test_an_unknown_client_is_refused(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", labelled(3, "x"))
    data = FederatedData.open(federation(tmp_path, classes()), Letters(), KEY)
    with pytest.raises(DataError, match=r"client 'z': expected one of the clients x"):
        data.client("z")


@pytest.mark.parametrize("kind", ["causal-lm", "instruction"])
def test_texts_and_instructions(tmp_path, kind):
    rows = [{"text": "abcdefghij", "prompt": f"q{i}", "answer": "ok", "owner": "x"} for i in range(4)]
    write_jsonl(tmp_path / "data.jsonl", rows)
    data = {
        "kind": kind,
        "path": "data.jsonl",
        "test": "data.jsonl",
        "max_tokens": 8,
        "validation_fraction": 0.25,
    }
    data["partition"] = {"kind": "column", "column": "owner"}
    opened = FederatedData.open(federation(tmp_path, data, kind="causal-lm"), Letters(), KEY)
    assert opened.rows("x") == (3, 1)
    # 12 tokens with those around it: windows of 8 and 5
    assert len(opened.client("x").train) == (6 if kind == "causal-lm" else 3)
    shared = "4 of 4 test rows have a text that is also in the clients' data"
    assert any(shared in warning for warning in opened.warnings)


def test_a_client_with_nothing_to_predict_is_named(tmp_path):
    class Bare(Letters):
        bos = eos = None

    write_jsonl(tmp_path / "data.jsonl", [{"text": "a"}])
    data = {"kind": "causal-lm", "path": "data.jsonl", "partition": {"kind": "files"}}
    loaded = federation(tmp_path, data, kind="causal-lm")
    message = r"client 'data': expected a train split with something to predict"
    with pytest.raises(DataError, match=message):
        FederatedData.open(loaded, Bare(), KEY)
    with pytest.raises(DataError, match=message):
        FederatedData.open(loaded, Bare(), KEY, check=False).client("data")


def test_no_data_has_names_and_sizes(tmp_path):
    path = tmp_path / "f.toml"
    path.write_text(
        '[federation]\nname = "t"\nrounds = 1\n[model]\nkind = "vector"\nsize = 4\n'
        '[data]\nkind = "none"\nclients = 3\nexamples = 5\n[training]\nkind = "noop"\n'
    )
    loaded = load_federation(path)
    data = FederatedData.open(loaded, None, KEY)
    assert data.clients == ("client-0000", "client-0001", "client-0002")
    assert data.rows("client-0001") == (5, 0)
    assert len(data.client("client-0001").train) == 5
    assert data.test() is None
    assert FederatedData.own(loaded, tmp_path, "edge", None, KEY).rows("edge") == (5, 0)


def test_the_sample_of_own_data_opens():
    texts = []
    for path in (OWN_DATA / "clients", OWN_DATA / "test.csv"):
        table = read_rows(path)
        assert {table.name("label", i) for i in range(len(table))} == {"praise", "complaint", "question"}
        texts += [table.text("text", i) for i in range(len(table))]
    assert len(texts) == len(set(texts)) == 34 + 34 + 31 + 30


def test_pairs_that_no_server_can_see_must_be_said_in_the_federation_file(tmp_path):
    rows = [
        {"premise": f"p{i}", "hypothesis": f"h{i}", "label": "ab"[i % 2], "owner": "x"} for i in range(20)
    ]
    write_jsonl(tmp_path / "data.jsonl", rows)
    loaded = federation(tmp_path, classes())
    assert FederatedData.open(loaded, Letters(), KEY).clients == ("x",)  # a simulation sees the rows
    message = (
        r'data\.jsonl: expected data\.text_pair .*data\.text = "premise" and data\.text_pair = "hypothesis"'
    )
    with pytest.raises(DataError, match=message):
        FederatedData.own(loaded, tmp_path / "data.jsonl", "x", Letters(), KEY)
    with pytest.raises(DataError, match=message):
        FederatedData.open(loaded, Letters(), KEY, on_devices=True)
    for settled in ({"text": "premise", "text_pair": "hypothesis"}, {"test": "data.jsonl"}):
        loaded = federation(tmp_path, classes(**settled))
        own = FederatedData.own(loaded, tmp_path / "data.jsonl", "x", Letters(), KEY)
        assert chr(own.client("x").train[0].tokens[1]) == "p"
        assert ord("|") in own.client("x").train[0].tokens

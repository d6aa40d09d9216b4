import contextlib
import json
import signal

import pytest
import torch

from headwater.adapters import export as room
from headwater.adapters.card import loading_code
from headwater.adapters.export import export, export_vector
from headwater.adapters.predict import Predictor
from headwater.errors import DataError, ModelError, SpecMismatch, StorageError
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.support import federations

IID = {"kind": "iid", "clients": 2}


def build(folder, kind, base, adapter, **settings):
    loaded = federations.federation(folder, kind, base, federations.adapter(adapter, base), **settings)
    absolute = loaded.settings.model.model_copy(update={"path": str(folder / base)})
    loaded = type(loaded)(loaded.settings.model_copy(update={"model": absolute}), folder)
    model = federations.adapted(loaded)
    noise = torch.Generator().manual_seed(5)
    return model, model.initial_state().map(lambda v: v + 0.2 * torch.randn(v.shape, generator=noise))


def logits_of(model, state, text="a text"):
    model.load(state)
    tokens = torch.tensor([model.base.tokenizer.encode(text, 99)])
    with torch.no_grad():
        return model.network(tokens, torch.ones_like(tokens))


def test_a_slice_and_its_card(tmp_path):
    model, state = build(tmp_path, "encoder", "bert", "lora")
    export(model, state, tmp_path / "out", card={"accuracy": 0.5, "note": "a|b"})
    notes = json.loads((tmp_path / "out/headwater.json").read_text())
    assert notes["labels"] == list(federations.LABELS)
    assert (notes["kind"], notes["pooling"], notes["base"]["sha256"]) == (
        "encoder",
        "mean",
        model.base_sha256,
    )
    assert notes["adapter_sha256"] == state.sha256()
    text = (tmp_path / "out/README.md").read_text()
    assert model.base_sha256 in text
    assert "| accuracy | 0.5 |" in text
    assert "a\\|b" in text
    quantised = loading_code({**notes, "base": {**notes["base"], "quantization": "8bit"}})
    compile(quantised, "README.md", "exec")
    assert "quantization_config=BitsAndBytesConfig(load_in_8bit=True)" in quantised
    assert "BitsAndBytesConfig" in quantised.partition("\n\n")[0], "imported"
    sliced = loading_code({**notes, "base": {**notes["base"], "layers": 1, "revision": "v2"}})
    assert "config.num_hidden_layers = 1" in sliced
    assert "revision='v2'" in sliced


def test_export_replaces_as_a_whole_and_changes_no_model(tmp_path, monkeypatch):
    model, state = build(tmp_path, "encoder", "bert", "lora")
    out = tmp_path / "deep" / "out"
    export(model, state, out, card={})
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    held = model.read().tobytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(room, "_write_json", full)
        with pytest.raises(StorageError, match="No space left"):
            export(model, state.map(torch.zeros_like), out, card={})
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    export(model, state.map(torch.zeros_like), out, card={})
    assert (out / "adapter_model.safetensors").read_bytes() != before["adapter_model.safetensors"]
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert model.read().tobytes() == held
    with pytest.raises(SpecMismatch):
        export(model, AdapterState(StateSpec(()), {}), out, card={})


SPEC = StateSpec((TensorSpec("v", (50_000,), "vector"),))


@contextlib.contextmanager
def no_file_beyond(size):
    """As on a full disk, writing more fails: in safetensors' own code, with an error of its own."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_old_adapter_and_nothing_else(tmp_path):
    out = tmp_path / "adapter"
    export_vector(AdapterState.zeros(SPEC), out, card={})
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with no_file_beyond(100_000), pytest.raises(StorageError, match=r"export to .*adapter"):
        export_vector(AdapterState.zeros(SPEC).map(torch.ones_like), out, card={})
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    with no_file_beyond(100_000), pytest.raises(StorageError):
        export_vector(AdapterState.zeros(SPEC), tmp_path / "new" / "adapter", card={})
    assert not list((tmp_path / "new").iterdir())


def test_what_a_killed_export_left_is_cleared(tmp_path):
    out = tmp_path / "adapter"
    neighbours = [".adapter.7.tmp.d", ".adapter2.7.tmp", "adapter.7.old", ".adapter.x.old"]
    for name in (".adapter.1.tmp", ".adapter.2.tmp", ".adapter.3.old", *neighbours):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    export_vector(AdapterState.zeros(SPEC), out, card={})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["adapter", *neighbours])


def test_an_adapter_that_a_killed_export_put_aside_comes_back(tmp_path):
    """Killed between its two renames, it left the only good adapter under another name."""
    out = tmp_path / "adapter"
    export_vector(AdapterState.zeros(SPEC), out, card={})
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    out.rename(tmp_path / ".adapter.99999.old")
    with no_file_beyond(100_000), pytest.raises(StorageError):
        export_vector(AdapterState.zeros(SPEC).map(torch.ones_like), out, card={})
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


class TestPredictor:
    def test_classify(self, tmp_path):
        model, state = build(tmp_path, "encoder", "bert", "lora")
        export(model, state, tmp_path / "out", card={})
        predictor = Predictor.open(tmp_path / "out", base=None)
        texts = ["good movie", "the movie was not good", "x"]
        found = predictor.classify(texts, batch_size=2)
        for text, result in zip(texts, found, strict=True):
            scores = logits_of(model, state, text).softmax(-1)[0]
            assert list(result["scores"]) == list(federations.LABELS)
            torch.testing.assert_close(
                torch.tensor(list(result["scores"].values())), scores, rtol=1e-4, atol=1e-5
            )
            assert result["label"] == federations.LABELS[int(scores.argmax())]
            assert result["score"] == max(result["scores"].values())
        with pytest.raises(ModelError, match="causal"):
            predictor.generate(["x"], 3)
        for nothing in ("", " ", "\u200b", "\x01\x02"):  # the tokenizer drops all of it
            with pytest.raises(DataError, match="text 2: expected a text with at least one token"):
                predictor.classify(["good", nothing])

    @pytest.mark.parametrize(
        ("adapter", "base"),
        [(a, b) for a in ("lora", "prompt", "prefix", "ia3") for b in ("llama", "gpt2")]
        + [("vera", "gpt2"), ("p-tuning", "llama")],
    )
    def test_generate_is_greedy_by_default(self, tmp_path, adapter, base):
        model, state = build(tmp_path, "causal-lm", base, adapter)
        export(model, state, tmp_path / "out", card={})
        predictor = Predictor.open(tmp_path / "out")
        tokenizer = model.base.tokenizer
        model.load(state)
        row = tokenizer.encode("to be", 99)
        start = len(row)
        for _ in range(6):
            tokens = torch.tensor([row])
            row.append(int(model.network(tokens, torch.ones_like(tokens))[0, -1].argmax()))
        assert tokenizer.eos not in row[start:]  # or the answer would be shorter
        assert predictor.generate(["to be"], 6) == [tokenizer.decode(row[start:]).strip()]
        assert predictor.generate(["to be"], 8) == predictor.generate(["to be"], 8)
        before = torch.get_rng_state()
        drawn = [predictor.generate(["to be"], 8, temperature=5.0, seed=s)[0] for s in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert torch.equal(before, torch.get_rng_state())

    def test_instructions_are_asked_in_the_chat_template(self, tmp_path, monkeypatch):
        data = {
            "kind": "instruction",
            "path": "x",
            "partition": {"kind": "iid", "clients": 2},
            "system": "Brief.",
        }
        model, state = build(tmp_path, "causal-lm", "llama", "lora", data=data)
        export(model, state, tmp_path / "out", card={})
        predictor = Predictor.open(tmp_path / "out")
        seen = []
        monkeypatch.setattr(
            predictor.network.peft, "generate", lambda **kw: seen.append(kw["input_ids"]) or kw["input_ids"]
        )
        predictor.generate(["Why?"], 1)
        text = predictor.base.tokenizer._tokenizer.decode(seen[0][0])
        expected = (
            "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
        )
        assert text.replace(" ", "") == expected.replace(" ", "")

    def test_another_base_is_refused_and_a_moved_one_found(self, tmp_path):
        model, state = build(tmp_path, "encoder", "bert", "lora")
        export(model, state, tmp_path / "out", card={})
        moved = (tmp_path / "bert").rename(tmp_path / "moved")
        with pytest.raises(ModelError, match="bert"):
            Predictor.open(tmp_path / "out")
        assert Predictor.open(tmp_path / "out", base=str(moved)).labels == federations.LABELS
        other = federations.tiny_bert(tmp_path / "other", seed=1)
        with pytest.raises(ModelError, match="expected sha256"):
            Predictor.open(tmp_path / "out", base=str(other))
        with pytest.raises(ModelError, match=r"headwater\.json"):
            Predictor.open(tmp_path / "moved")

    def test_a_vector_has_nothing_to_predict(self, tmp_path):
        spec = StateSpec((TensorSpec("vector", (3,), "vector"),))
        export_vector(AdapterState.zeros(spec), tmp_path / "out", card={})
        with pytest.raises(ModelError, match="vector"):
            Predictor.open(tmp_path / "out")

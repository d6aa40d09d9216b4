"""The code in an export's README: what it computes, in a process that does not know headwater."""

import datetime
import json
import subprocess
import sys

import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from headwater.adapters.export import export
from headwater.adapters.predict import Predictor
from tests.adapters.reading.test_segments import paired
from tests.adapters.test_export import IID, build
from tests.support import architectures, federations
from tests.support.chat_templates import tiny_chat_llama
from tests.support.readme_code import readme_code
from tests.support.tiny_models import tiny_bert, tiny_llama

CASES = [
    (kind, base, adapter)
    for kind, base in [("encoder", "bert"), ("sequence-classification", "bert"), ("causal-lm", "llama")]
    for adapter in ("lora", "dora", "prompt", "prefix", "ia3")
] + [
    ("encoder", "llama", "lora"),
    ("sequence-classification", "llama", "rslora"),
    ("sequence-classification", "llama", "prefix"),
    ("sequence-classification", "roberta", "lora"),
    ("causal-lm", "gpt2", "lora"),
    ("encoder", "bert", "vera"),
    ("encoder", "bert", "p-tuning-lstm"),
    ("causal-lm", "gpt2", "vera"),
    ("causal-lm", "llama", "p-tuning"),
]
# Runs READMEs' own code, each in its exported folder; headwater must stay unknown.
READER = """
import contextlib, json, os, sys, torch, traceback
class Refuse:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "headwater":
            raise AssertionError("an export must load without headwater")
sys.meta_path.insert(0, Refuse())
for line in sys.stdin:
    folder, code, texts = json.loads(line)
    os.chdir(folder)
    try:
        logits = []
        for text in texts:
            scope = {}
            with contextlib.redirect_stdout(sys.stderr):
                exec(code.replace('"a text"', repr(text)), scope)
            logits.append(scope["logits"].tolist())
        print(json.dumps({"logits": logits}), flush=True)
    except Exception:  # the test says it
        print(json.dumps({"error": traceback.format_exc()}), flush=True)
"""

DATE = datetime.date(2026, 11, 5)
LONG = "a text that goes on, beyond what training has read of any"
HOSTILE = "a text </s> with [SEP] and <|im_end|> in it"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Computes the logits of texts by the code of a folder's README; Transformers is loaded once for all."""
    with subprocess.Popen(
        [sys.executable, "-c", READER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path_factory.mktemp("reader"),
    ) as process:

        def computed(folder, texts):
            print(json.dumps([str(folder), readme_code(folder), texts]), file=process.stdin, flush=True)
            found = json.loads(process.stdout.readline())
            assert "error" not in found, found["error"]
            return found["logits"]

        yield computed
        process.stdin.close()


def predicted(predictor, text):
    """The logits by which ``predict`` answers for ``text``."""
    if predictor.labels is None:
        row = predictor.prompt(text)
    else:
        row = predictor.base.tokenizer.encode(text, predictor.max_tokens)
    tokens = torch.tensor([row])
    with torch.no_grad():
        return predictor.network(tokens, torch.ones_like(tokens))


def require_same(reader, folder, texts):
    predictor = Predictor.open(folder)
    for text, logits in zip(texts, reader(folder, texts), strict=True):
        torch.testing.assert_close(torch.tensor(logits), predicted(predictor, text), rtol=1e-5, atol=1e-5)


def test_a_pairs_readme_gives_both_texts_and_their_types(tmp_path, reader):
    paired(tmp_path / "bert")
    labels = {"kind": "classification", "labels": federations.LABELS}
    data = {**labels, "path": "x", "partition": IID, "text_pair": "other", "max_tokens": 20}
    model, state = build(tmp_path, "sequence-classification", "bert", "lora", data=data)
    export(model, state, tmp_path / "out", card={})
    (logits,) = reader(tmp_path / "out", ["good movie"])
    row = torch.tensor([model.base.tokenizer.encode("good movie", 20, "and its pair")])
    with torch.no_grad():
        expected = Predictor.open(tmp_path / "out").network(row, torch.ones_like(row))
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-5, atol=1e-5)
    assert "token_type_ids" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", None])
def test_a_number_s_readme_takes_a_base_whose_own_head_had_another_problem(tmp_path, reader, problem, layers):
    path = tiny_bert(tmp_path / "bert") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problem_type": problem}))
    data = {"kind": "regression", "target": "stars", "path": "x", "partition": IID, "max_tokens": 20}
    kind = {"kind": "sequence-classification", "path": "bert", "layers": layers}
    model, state = build(tmp_path, "sequence-classification", "bert", "lora", data=data, model=kind)
    export(model, state, tmp_path / "out", card={})
    require_same(reader, tmp_path / "out", ["good movie"])


def test_what_xlnet_puts_after_a_text_is_kept_when_it_is_cut(tmp_path, reader):
    """A separator and the class's token stand behind, and padding belongs before for its own head."""
    folder = architectures.build("xlnet", tmp_path / "xlnet")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [CLS]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save_pretrained(folder)
    data = {"kind": "classification", "labels": federations.LABELS, "path": "x", "partition": IID}
    lora = {"kind": "lora", "rank": 2, "target_modules": ("all-linear",)}
    base = {"kind": "encoder", "path": str(folder)}
    loaded = federations.federation(
        tmp_path, "encoder", "xlnet", lora, model=base, data={**data, "max_tokens": 6}
    )
    model = federations.adapted(loaded)
    for text in ("good", "good movie was not bad at all"):
        assert model.base.tokenizer.encode(text, 6)[-2:] == [3, 2]
    assert model.base.tokenizer.before == []
    state = model.initial_state().map(lambda v: v + 0.2 * torch.ones_like(v))
    export(model, state, tmp_path / "out", card={})
    require_same(reader, tmp_path / "out", ["good", "good movie was not bad at all"])


def test_a_readmes_answer_is_the_likeliest_whatever_the_base_says_of_generation(tmp_path):
    model, state = build(tmp_path, "causal-lm", "llama", "lora")
    config = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "num_beams": 3, "do_sample": True}
    path = tmp_path / "llama" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    export(model, state, tmp_path / "out", card={})
    code = readme_code(tmp_path / "out", answer=24).replace(
        'PeftModel.from_pretrained(base, "."', f'PeftModel.from_pretrained(base, "{tmp_path / "out"}"'
    )
    scope = {}
    exec(code, scope)
    said = scope["answer"][0, len(scope["ids"]) :].tolist()
    model.load(state)
    row = list(scope["ids"])
    for _ in said:
        tokens = torch.tensor([row])
        with torch.no_grad():
            row.append(int(model.network(tokens, torch.ones_like(tokens))[0, -1].argmax()))
    assert said == row[len(scope["ids"]) :]
    assert len(set(said)) < len(said)  # a penalty would show


@pytest.mark.parametrize(("kind", "base", "adapter"), CASES)
def test_every_readmes_code_computes_what_predict_does(tmp_path, reader, kind, base, adapter):
    data = {} if kind == "causal-lm" else {"kind": "classification", "labels": federations.LABELS}
    for space in ("factors", "ffa") if adapter == "lora" else ("factors",):
        model, state = build(
            tmp_path,
            kind,
            base,
            adapter,
            strategy={"kind": "mean", "space": space},
            data={"kind": "causal-lm", "path": "x", "max_tokens": 20, "partition": IID, **data},
        )
        folder = tmp_path / space
        export(model, state, folder, card={"rounds": 3})
        if kind != "causal-lm":
            row = torch.tensor([model.base.tokenizer.encode(LONG, 20)])
            model.load(state)
            trained = model.network(row, torch.ones_like(row)).detach()
            torch.testing.assert_close(predicted(Predictor.open(folder), LONG), trained)
        require_same(reader, folder, [LONG, HOSTILE])


def qwen(folder):
    """A tiny Qwen3, whose configuration names the type of every layer."""
    tiny_llama(folder)
    config = Qwen3Config(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=32,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize("style", ["chatml", "date", "thought-by-argument", "opened-thought", "words"])
def test_a_chats_readme_asks_as_predict_does(tmp_path, reader, style):
    tiny_chat_llama(tmp_path / "llama", style)
    data = {"kind": "instruction", "path": "x", "partition": IID, "date": DATE}
    if style != "words":
        data["system"] = "Brief."
    model, state = build(tmp_path, "causal-lm", "llama", "lora", data=data)
    export(model, state, tmp_path / "out", card={})
    spelled = model.base.tokenizer.spell(Predictor.open(tmp_path / "out").prompt("why?"))
    assert ("05 Nov 2026" in spelled) == (style == "date")
    require_same(reader, tmp_path / "out", ["a text and a question"])


@pytest.mark.parametrize(
    ("name", "kind", "base", "changes"),
    [
        ("no-pad", "causal-lm", "gpt2", {}),
        ("no-pad-classifier", "sequence-classification", "gpt2", {}),
        ("half", "causal-lm", "llama", {}),
        ("bfloat16", "causal-lm", "llama", {"dtype": "bfloat16"}),
        ("bfloat16-encoder", "encoder", "bert", {"dtype": "bfloat16"}),
        ("slice", "causal-lm", "qwen", {"layers": 1}),
        ("slice-classifier", "sequence-classification", "bert", {"layers": 1}),
    ],
)
def test_bases_without_a_pad_of_another_dtype_and_of_fewer_layers(
    tmp_path, reader, name, kind, base, changes
):
    if base == "qwen":
        qwen(tmp_path / base)
    else:
        federations.MAKERS[base](tmp_path / base)
    if base == "gpt2":
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / base)
        tokenizer.pad_token = None
        tokenizer.save_pretrained(tmp_path / base)
    if name == "half":
        half = AutoModelForCausalLM.from_pretrained(tmp_path / base, dtype=torch.bfloat16)
        half.save_pretrained(tmp_path / base)
    model = {"kind": kind, "path": base, **changes}
    table = federations.adapter("lora", "llama" if base == "qwen" else base)
    loaded = federations.federation(tmp_path, kind, base, table, model=model)
    absolute = loaded.settings.model.model_copy(update={"path": str(tmp_path / base)})
    loaded = type(loaded)(loaded.settings.model_copy(update={"model": absolute}), tmp_path)
    adapted = federations.adapted(loaded)
    noise = torch.Generator().manual_seed(5)
    state = adapted.initial_state().map(lambda v: v + 0.2 * torch.randn(v.shape, generator=noise))
    export(adapted, state, tmp_path / "out", card={})
    require_same(reader, tmp_path / "out", [LONG])

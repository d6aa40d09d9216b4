import errno
import logging
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from headwater.adapters.base import load_base
from headwater.adapters.reports import listening
from headwater.config.model import CausalLMModel, EncoderModel, SequenceClassificationModel
from headwater.errors import ModelError, StorageError
from tests.support.tiny_models import tiny_bert, tiny_llama


def speak(how, message):
    if how == "log":
        logging.getLogger("transformers.modeling_utils").warning(message)
    elif how == "once":
        transformers_logging.get_logger("transformers.modeling_utils").warning_once(message)
    else:
        warnings.warn(message, UserWarning, stacklevel=2)


@pytest.mark.parametrize("how", ["log", "once", "warn"])
def test_a_warning_that_nobody_took_care_of_is_an_error_each_time(how):
    for _ in range(2):  # Python and transformers say such things once a process
        with (
            pytest.raises(ModelError, match=r"the base: .*got a warning: something odd"),
            listening("the base"),
        ):
            speak(how, "something odd")


@pytest.mark.parametrize("how", ["log", "once", "warn"])
def test_what_the_user_accepts_is_told_instead(how):
    with listening("the base", ["odd"]) as heard:
        speak(how, "something odd")
    assert heard.notices == ["the base: accepted: something odd"]


def test_what_is_handled_leads_to_its_notice_or_none():
    with listening("the base") as heard:
        speak("log", "`kernel` is falling back to its reference PyTorch implementation because x")
        speak("log", "Initializing global attention on CLS token...")
    assert [n.startswith("the base: Slower than with its own kernels: `kernel`") for n in heard.notices] == [
        True
    ]


def test_deprecations_are_for_programmers():
    with listening("the base") as heard:
        warnings.warn("old", FutureWarning, stacklevel=1)
    assert heard.notices == []


def test_what_nobody_closed_is_no_word_on_the_model():
    with pytest.warns(ResourceWarning, match="unclosed file"), listening("base x") as heard:
        warnings.warn("unclosed file", ResourceWarning, stacklevel=1)
    assert not heard.notices


def test_the_library_speaks_as_before_afterwards(capsys):
    log = logging.getLogger("transformers")
    before = log.handlers[:], log.propagate, log.level
    with pytest.raises(ZeroDivisionError), listening("the base"):
        raise ZeroDivisionError
    assert (log.handlers, log.propagate, log.level) == before


def rewritten(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_layers_that_the_configuration_does_not_know_are_refused(tmp_path):
    """num_hidden_layers too small: transformers loads a part and only reports the rest."""
    tiny_bert(tmp_path / "bert", layers=2)

    def deeper(weights):
        for name in [n for n in weights if ".layer.1." in n]:
            weights[name.replace(".layer.1.", ".layer.2.")] = weights[name].clone()

    rewritten(tmp_path / "bert", deeper)
    with pytest.raises(ModelError, match=r"16 tensors that it has no place for, such as encoder\.layer\.2\."):
        load_base(EncoderModel(kind="encoder", path="bert"), tmp_path, labels=("a", "b"))
    base = load_base(
        EncoderModel(kind="encoder", path="bert", layers=1), tiny_folder(tmp_path), labels=("a", "b")
    )
    assert base.model.config.num_hidden_layers == 1


def tiny_folder(tmp_path):
    tiny_bert(tmp_path / "again" / "bert", layers=2)
    return tmp_path / "again"


def test_a_head_that_is_not_used_is_named(tmp_path):
    tiny_llama(tmp_path / "llama")
    base = load_base(EncoderModel(kind="encoder", path="llama"), tmp_path, labels=("a", "b"))
    assert base.notices == (
        "base model llama: model.kind 'encoder' does not use what the files hold as lm_head",
    )


def test_a_body_of_another_shape_is_no_fresh_head(tmp_path):
    """A classifier's sizes may differ, its embeddings may not."""
    tiny_bert(tmp_path / "bert")

    def shorter(weights):
        weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][
            :-3
        ].clone()

    rewritten(tmp_path / "bert", shorter)
    settings = SequenceClassificationModel(kind="sequence-classification", path="bert")
    with pytest.raises(ModelError, match=r"of another shape, such as bert\.embeddings\.word_embeddings"):
        load_base(settings, tmp_path, labels=("a", "b"))
    with pytest.raises(ModelError, match=r"got embeddings\.word_embeddings\.weight MISMATCH .*\[14\d, 32\]"):
        load_base(EncoderModel(kind="encoder", path="bert"), tmp_path, labels=("a", "b"))


def test_adapter_files_in_the_folder_are_not_loaded(tmp_path):
    folder = tiny_llama(tmp_path / "llama")
    settings = CausalLMModel(kind="causal-lm", path="llama")
    clean = load_base(settings, tmp_path, labels=None)
    from peft import LoraConfig, get_peft_model

    peft = get_peft_model(
        load_base(settings, tmp_path, labels=None).model, LoraConfig(target_modules=["q_proj"])
    )
    with torch.no_grad():
        for name, value in peft.named_parameters():
            if "lora_B" in name:
                value.fill_(1.0)
    peft.save_pretrained(folder)
    base = load_base(settings, tmp_path, labels=None)
    assert base.sha256 == clean.sha256
    assert [n for n, _ in base.model.named_parameters()] == [n for n, _ in clean.model.named_parameters()]
    assert "adapter_config.json, adapter_model.safetensors in its folder are not read" in base.notices[0]


@pytest.mark.parametrize("where", ["mkdtemp", "symlink"])
def test_a_full_temporary_folder_is_said(tmp_path, monkeypatch, where):
    tiny_llama(tmp_path / "llama")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "mkdtemp":
        monkeypatch.setattr(tempfile, "mkdtemp", full)
    else:
        monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(StorageError, match=r"temporary folder .*No space left on device.*TMPDIR"):
        load_base(CausalLMModel(kind="causal-lm", path="llama"), tmp_path, labels=None)

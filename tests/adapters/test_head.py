from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from headwater.adapters.head import match_head
from headwater.errors import ModelError
from tests.support import federations
from tests.support.architectures import build
from tests.support.tiny_models import tiny_bert

NAMES = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=2, max_size=5, unique=True)


@given(names=NAMES, data=st.data())
def test_every_label_gets_the_row_of_its_name(names, data):
    labels = tuple(data.draw(st.permutations(names)))
    plan = match_head("base", dict(enumerate(names)), labels, "match")
    order = plan.order or range(len(names))
    assert tuple(names[row] for row in order) == labels
    assert not plan.fresh


@given(names=NAMES)
def test_case_and_space_make_no_other_name(names):
    plan = match_head("base", dict(enumerate(names)), tuple(f" {n.upper()}" for n in names), "match")
    assert plan.order is None
    assert not plan.fresh


@pytest.mark.parametrize("own", [("LABEL_0", "LABEL_1"), ("neg", "pos"), ("a", "A"), ("yes", "maybe")])
def test_names_that_do_not_match_are_refused_with_both_orders(own):
    with pytest.raises(ModelError) as caught:
        match_head("base", dict(enumerate(own)), ("no", "yes"), "match")
    assert all(repr(name) in str(caught.value) for name in (*own, "no", "yes"))
    assert "in-order" in str(caught.value)


def test_names_that_differ_in_case_alone_belong_to_nobody():
    with pytest.raises(ModelError):
        match_head("base", {0: "a", 1: "A"}, ("a", "b"), "match")


def test_the_user_can_say_what_they_mean():
    own = {0: "LABEL_0", 1: "LABEL_1"}
    assert match_head("base", own, ("no", "yes"), "in-order").order is None
    assert match_head("base", own, ("no", "yes"), "fresh").fresh
    with pytest.raises(ModelError, match="as many labels"):
        match_head("base", own, ("a", "b", "c"), "in-order")
    other = match_head("base", own, ("a", "b", "c"), "match")
    assert other.fresh
    assert "starts fresh" in other.notice


def trained(folder, name, labels):
    """A base of that type with a trained head of these labels."""
    (tiny_bert(folder / name) if name == "bert" else build(name, folder / name))
    model = AutoModelForSequenceClassification.from_pretrained(folder / name, num_labels=len(labels))
    model.config.id2label, model.config.label2id = (
        dict(enumerate(labels)),
        {n: i for i, n in enumerate(labels)},
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.shape[0] == len(labels):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder / name)
    return model.eval()


@pytest.mark.parametrize(
    "name", ["bert", "roberta", "distilbert", "deberta-v2", "llama", "gpt2", "bart", "t5"]
)
@pytest.mark.parametrize("order", list(permutations(range(3)))[1::2], ids=str)
def test_the_adapted_model_gives_each_label_the_score_that_the_base_gave_its_name(tmp_path, name, order):
    own = ("red", "green", "blue")
    plain = trained(tmp_path, name, own)
    labels = tuple(own[i] for i in order)
    table = {"kind": "lora", "rank": 2, "target_modules": ("all-linear",)}
    loaded = federations.federation(
        tmp_path,
        "sequence-classification",
        name,
        table,
        data={
            "kind": "classification",
            "path": "x",
            "labels": labels,
            "partition": {"kind": "iid", "clients": 2},
        },
    )
    model = federations.adapted(loaded)
    ids = torch.tensor([model.base.tokenizer.encode("good movie", 16)])
    with torch.no_grad():
        theirs = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        ours = model.network(ids, torch.ones_like(ids))[0]
    torch.testing.assert_close(ours, theirs[list(order)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_head_in_another_order_that_the_adapter_would_not_save_is_refused(tmp_path, name):
    trained(tmp_path, name, ("red", "green"))
    data = {
        "kind": "classification",
        "path": "x",
        "labels": ("green", "red"),
        "partition": {"kind": "iid", "clients": 2},
    }
    loaded = federations.federation(
        tmp_path, "sequence-classification", name, {"kind": "prompt", "tokens": 2}, data=data
    )
    with pytest.raises(ModelError, match="put in another order"):
        federations.adapted(loaded)

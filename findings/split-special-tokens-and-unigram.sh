#!/usr/bin/env bash
# transformers 5.23.0: split_special_tokens=True, which is to read the characters "</s>" in a user's text as
# characters, still gives the id of the end token where a Unigram model has "</s>" as a piece (as
# SentencePiece models do). A BPE tokenizer splits it. A text so ends its own sequence.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check transformers==5.23.0
"$work/env/bin/python" - <<'PY'
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

letters = list("</s>the")
unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((c, -6.0) for c in letters)],
                                   unk_id=0))
unigram.pre_tokenizer = pre_tokenizers.Metaspace()
bpe = Tokenizer(models.BPE({t: i for i, t in enumerate(["<unk>", "</s>", "▁", *letters])}, merges=[],
                           unk_token="<unk>"))
bpe.pre_tokenizer = pre_tokenizers.Metaspace()


def ends(model):
    """How many end tokens a text has that writes the end token's characters once."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", unk_token="<unk>")
    return tokenizer("the </s>", split_special_tokens=True)["input_ids"].count(tokenizer.eos_token_id)


found = {"Unigram": ends(unigram), "BPE": ends(bpe)}
print("transformers", transformers.__version__, "end tokens with split_special_tokens=True:", found)
assert found == {"Unigram": 1, "BPE": 0}
PY

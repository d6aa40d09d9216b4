"""Chat templates in the styles of the families that are in use, small, and a tokenizer for them.

Each style keeps what makes its family special (what opens an answer, what ends it, what happens to earlier
turns); the words around are ours.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIALS = [
    *("<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|return|>"),
    *("<|message|>", "<|channel|>", "<|eot|>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|call|>"),
]
PLAIN_ADDED = ["<think>", "</think>", "<tool_call>"]
"""Added tokens that are no special ones, as thoughts and calls mostly are."""

_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_THINKER = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set text = m.content %}{% set thought = '' %}"
    "{% if m.role == 'assistant' %}{% if m.reasoning_content %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in text %}{% set thought = text.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{% endif %}"
    "{{ text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n%s{% endif %}"
)
TEMPLATES = {
    # all turns alike
    "chatml": _TURNS,
    # a system prompt of its own, unless there is one
    "default-system": "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + _TURNS,
    # the end of the text only where nothing is asked: Phi
    "eos-when-finished": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|eos|>{% endif %}",
    # the last answer with its thought, earlier ones without: Qwen3
    "thoughts-of-the-last": _THINKER.replace("%s", ""),
    # the same, and the thought is opened for generation: Qwen3.5
    "opened-thought-of-the-last": _THINKER.replace("%s", "<think>\n"),
    # channels; a finished answer ends otherwise than one in the middle: gpt-oss
    "channels": "{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|start|>assistant<|channel|>final<|message|>"
    "{{ m.content }}{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}{% else %}"
    "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    # a thought is opened for generation and never shown: R1
    "opened-thought": "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{{ m.content.split('</think>')[-1] }}<|eos|>{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
    # a thought is opened for generation, and shown if there is one: MiniMax
    "opened-or-shown-thought": "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n<think>\n{% endif %}",
    # an argument closes the thought; an answer ends where the next turn begins: GLM
    "thought-by-argument": "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% else %}</think>{% endif %}"
    "{{ m.content }}{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}{% endif %}",
    # an empty thought for generation that a finished answer lacks: Gemma 4
    "empty-thought": "{% for m in messages %}<|start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>model\n<|channel|>thought\n<|channel|>{% endif %}",
    # the system message goes with the last question, and only while it is the last: Mistral
    "system-in-the-last": "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}{% for m in turns %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST]{% if loop.last and system is defined %}{{ system }}\n\n{% endif %}"
    "{{ m.content }}[/INST]{% else %}{{ m.content }}<|eos|>{% endif %}{% endfor %}",
    # words alone, no token ends an answer: Vicuna and Alpaca
    "words": "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    # today's date by the clock: Llama 3
    "date": "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y') }}.<|im_end|>\n" + _TURNS,
    # thoughts, calls and names: what else a message may have
    "calls": "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>{{ call | tojson }}{% endfor %}"
    "{{ '<|call|>' if m.tool_calls else '<|im_end|>' }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


def chat_tokenizer(template: str | None, *, eos: str | None = "<|eos|>") -> PreTrainedTokenizerFast:
    """A tokenizer that spells any text in bytes, with the tokens of all styles."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        additional_special_tokens=SPECIALS[3:],
        **({} if eos is None else {"eos_token": eos}),
    )
    fast.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_ADDED])
    fast.chat_template = template
    return fast


def tiny_chat_llama(folder: Path, style: str) -> None:
    """Write a Llama of one layer, drawn at random, whose tokenizer has the template of a style."""
    tokenizer = chat_tokenizer(TEMPLATES[style])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

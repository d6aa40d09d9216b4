"""Federation files that fit together and need no model or data to be read. No torch."""


def federation_text(*, rounds: int = 1, model: str = "m", training: str = "noop") -> str:
    """The file's text: an encoder, LoRA, two labels, a file for each owner."""
    return f"""
[federation]
name = "t"
rounds = {rounds}
[model]
kind = "encoder"
path = "{model}"
[adapter]
kind = "lora"
[data]
kind = "classification"
path = "d"
labels = ["a", "b"]
partition = {{ kind = "files" }}
[training]
kind = "{training}"
"""


def vector_text(name: str, *, rounds: int = 1, cohort: str = "") -> str:
    """The file's text: a bare vector of ten values, two clients without data; lines of ``[cohort]``."""
    return f"""
[federation]
name = "{name}"
rounds = {rounds}
[model]
kind = "vector"
size = 10
[data]
kind = "none"
clients = 2
examples = 3
[training]
kind = "noop"
[cohort]
{cohort}
"""

"""A federation file that fits together and needs no model or data to be read. No torch."""


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

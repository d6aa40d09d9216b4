"""``headwater completion SHELL``: what bash, zsh or fish can complete, from the parser itself."""

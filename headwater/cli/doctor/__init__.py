"""``headwater doctor``: what this machine lacks, looked at and not guessed."""

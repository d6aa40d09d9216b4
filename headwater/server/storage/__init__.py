"""What a run keeps on disk: checkpoints, updates of the open round, adapter versions, the run folder."""

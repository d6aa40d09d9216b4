"""Local training: cohorts of clients over one frozen base, their Fishers and their evaluation."""

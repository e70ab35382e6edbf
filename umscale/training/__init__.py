"""One run: trunk, branches, checkpoints, evaluation, optimiser; alone or on several processes."""

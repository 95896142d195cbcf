"""Training: the Lightning modules, weight averages, checkpoints of a run and its report."""

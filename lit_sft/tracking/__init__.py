"""Where a run's figures go: a CSV file always, Weights & Biases on request."""

"""Look at what a run would train on, without a model: `lit-sft inspect`."""

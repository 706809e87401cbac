"""A frozen base of which each rank holds a share (`trainer.strategy: fsdp2`)."""

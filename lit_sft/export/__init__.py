"""What leaves a run: the adapter folder, its model card, the upload."""

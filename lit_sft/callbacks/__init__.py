"""What a run does besides training: one class a file, and none knows another."""

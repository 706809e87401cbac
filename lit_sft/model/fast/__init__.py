"""What is done for speed alone: each computes what the plain way computes."""

"""What a data set says, and how an answer to it is graded: no tensors, no Lightning."""

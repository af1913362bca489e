"""What the commands of `frcnn` that need no more than the model share, and those of weights."""

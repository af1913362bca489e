"""`frcnn loadtest`: how much load a service bears, and how fast it answers under it."""

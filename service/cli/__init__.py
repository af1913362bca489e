"""The command `frcnn`: a module for each of its commands."""

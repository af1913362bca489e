"""`frcnn bench service`: what serving costs, side by side with the bare model and with a service without batching."""

"""The service on many machines: the same application as a Ray Serve deployment (extra `ray`)."""

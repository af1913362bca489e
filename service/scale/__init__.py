"""The service on many machines: the same application as a Ray Serve deployment (extra `ray`)."""

from service.devices.cores import bound_spinning

bound_spinning()  # here, as a replica's process loads torch with the first module of this package

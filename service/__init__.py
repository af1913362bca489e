"""The microservice: bytes in, JSON out."""

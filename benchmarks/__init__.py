"""Measurements of the service from outside: real processes, real databases, whole figures."""

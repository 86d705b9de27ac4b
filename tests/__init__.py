"""The tests: run them with `pytest`; what they share stands in `tests.support`."""

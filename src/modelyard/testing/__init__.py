"""Shipped fakes: real child processes that behave like engines, and worse."""

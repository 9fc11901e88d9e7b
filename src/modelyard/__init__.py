"""Modelyard: from a trained model on disk to a proved, OpenAI-compatible service, and kept there."""

__version__ = "0.1.0"

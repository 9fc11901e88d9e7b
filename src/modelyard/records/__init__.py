"""Frozen, versioned values that every layer speaks."""

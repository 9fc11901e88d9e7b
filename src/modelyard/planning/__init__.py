"""Which engine, which settings, and will it fit: pure."""

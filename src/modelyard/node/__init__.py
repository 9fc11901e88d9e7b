"""Keeps engines running: environments, the shim, the replica's state machine, probes, restarts."""

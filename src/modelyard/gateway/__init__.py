"""The data plane: the process that clients talk to."""

"""The control plane: what is wanted, reconcile loop, admin API."""

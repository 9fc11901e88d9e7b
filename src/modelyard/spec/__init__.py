"""What is wanted: strict deployments; every error names file, line and key."""

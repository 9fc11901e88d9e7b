"""What is shown: projections of the journal."""

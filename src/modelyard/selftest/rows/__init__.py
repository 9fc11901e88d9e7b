"""One file per row: its claim, and how it is tried."""

"""What exists: the machine that we are on."""

"""Campaigns that hold what we promise against real processes, killed, flooded and lied to."""

"""Campaigns: what we promise, held against real processes that are killed, flooded and lied to."""

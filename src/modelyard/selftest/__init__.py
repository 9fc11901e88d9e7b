"""Campaigns that show what the gateway does when clients, engines and machines misbehave; the case tables ship with it."""

"""One kit that every engine passes: its claims, tried on the real launch path without yard, control and gateway."""

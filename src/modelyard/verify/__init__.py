"""Claims about a running replica, checked before its route opens."""

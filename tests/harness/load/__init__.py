"""Loads that a daemon must bear: everybody at once for long, a flood of malformed messages, very many clients.

`tools/soak` is the way in. What is judged is the daemon's process from outside, and what its clients were told.
"""

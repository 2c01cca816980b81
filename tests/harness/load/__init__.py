"""The loads of `tools/soak`: all kinds of clients for a long time, a flood of malformed messages, very many clients.

Each measures the daemon's process from outside, and what its clients were answered.
"""

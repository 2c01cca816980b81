"""Stages in the processes of a cluster. Ray places and watches them; they talk over sockets of their own."""

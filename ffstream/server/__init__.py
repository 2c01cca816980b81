"""The sockets: loops that receive, ask the parts below, and reply. They know no model."""

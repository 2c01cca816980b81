"""The sockets: loops that receive messages, call the parts below, and reply. They know no model."""

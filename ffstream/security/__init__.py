"""Keys, tokens and their file permissions."""

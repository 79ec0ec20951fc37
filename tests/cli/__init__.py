"""`blockctl`, against the real service over files."""

"""The HTTP layer: JSON over a Unix socket, decoded into domain values, answered by the service."""

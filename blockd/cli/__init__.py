"""`blockctl`, the person's tool. It speaks HTTP to the daemon and shares only values with it."""

"""Values, states, errors and units. Nothing here does I/O or imports another room."""

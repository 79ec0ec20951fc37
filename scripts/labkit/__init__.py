"""The parts of scripts/lab: nothing here is imported by blockd."""

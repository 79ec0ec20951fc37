"""What blockd costs, beside what it stands on. Run by `scripts/bench`; no test has a time limit."""

"""What is installed beside the code: units, rules, configuration, scripts."""

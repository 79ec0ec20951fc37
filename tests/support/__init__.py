"""What tests share: the file driver, stamped data, a running service."""

"""The machine below: processes, netlink, locks, the service supervisor."""

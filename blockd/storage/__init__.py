"""The drivers: LVM for space and snapshots, device-mapper for the fronts."""

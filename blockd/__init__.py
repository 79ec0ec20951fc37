"""blockd: local disks as cloud-style block storage, with real snapshots."""

__version__ = "0.1.0"

"""Images on their way between disks and object storage: QCOW2, NBD, S3, and qemu-img."""

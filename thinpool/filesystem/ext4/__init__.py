"""ext4 as it is on its device: read without mounting it, checked, and never written."""

"""btrfs by ioctl: subvolumes made and destroyed, trees searched, what changed and what is held, without a fork."""

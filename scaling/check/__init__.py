"""`scaling check`: whether the devices of a cluster compute correctly, and how fast they train."""

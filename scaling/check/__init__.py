"""`scaling check`: whether the devices of a cluster compute what they should, and how fast they train."""

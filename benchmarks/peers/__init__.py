"""What people would use instead, each at the best settings that we found, written down there."""

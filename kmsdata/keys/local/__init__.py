"""Master keys in a file on this machine."""

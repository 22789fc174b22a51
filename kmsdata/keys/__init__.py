"""Master keys, data keys, and the envelope (the header with the wrapped keys)."""

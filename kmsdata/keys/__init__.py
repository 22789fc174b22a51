"""Master keys, data keys, and the envelope that holds them."""

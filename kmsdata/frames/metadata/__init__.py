"""What schema metadata and key-value metadata of any software say about columns and their values."""

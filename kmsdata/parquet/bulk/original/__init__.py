"""What a file said of a column before it was encrypted: kept encrypted, and restored by decryption."""

"""Encrypt, decrypt and verify files and datasets of any size, column by column."""

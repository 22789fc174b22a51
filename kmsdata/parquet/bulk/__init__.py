"""Files and datasets of any size, encrypted and decrypted column by column."""

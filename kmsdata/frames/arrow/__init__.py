"""Arrow data of any library, whole or as a stream of batches."""

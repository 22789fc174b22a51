"""Master keys in Tencent Cloud KMS."""

"""AES over whole columns of cells: `gcm` is randomised, `siv` deterministic. No pandas, Arrow, JSON."""

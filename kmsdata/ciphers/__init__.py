"""AES over whole columns of cells: `gcm` randomised, `siv` deterministic. No pandas, no Arrow, no JSON."""

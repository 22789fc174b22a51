"""Operations that take a frame, an Arrow table or a path."""

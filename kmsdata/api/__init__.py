"""Operations on a frame, a table or a path alike."""

"""Points of the plane: the smallest modality, with a teacher known exactly, for measuring objectives."""

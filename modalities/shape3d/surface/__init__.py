"""From signed distances on sparse cells to meshes, and what is done to meshes afterwards."""

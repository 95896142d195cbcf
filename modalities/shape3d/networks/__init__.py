"""The networks of both stages, with the parameter names of TRELLIS."""

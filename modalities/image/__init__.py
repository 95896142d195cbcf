"""Images: a rendered world of objects, captions, data."""

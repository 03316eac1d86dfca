"""Programs for the other end of the wire."""

"""Images: reading and validation, and simple statistics of their pixels."""

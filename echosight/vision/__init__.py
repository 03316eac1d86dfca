"""Images: reading and checking them, and what plain statistics show of them."""

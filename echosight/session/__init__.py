"""One live conversation: the user's turn, the responses to it, and what waits to be sent."""

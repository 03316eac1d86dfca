"""What runs the sessions of all clients: the manager, the pumps to sockets, recordings, metrics."""

"""MiniCPM-o in a process and environment of its own."""

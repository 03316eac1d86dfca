"""MiniCPM-o (speech in, speech out) in a process and an environment of its own."""

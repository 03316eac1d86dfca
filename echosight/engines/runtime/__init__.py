"""What engines run on: threads, processes, HTTP, downloads, progress."""

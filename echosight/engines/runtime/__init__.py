"""What engines run on: threads, worker processes, HTTP services, downloads, progress reports."""

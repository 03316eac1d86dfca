"""FastAPI routers, one file a protocol family. They find a session and call a pump."""

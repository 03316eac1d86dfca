"""Parts that other servers make, reached by the HTTP API that OpenAI began."""

import logging

# It notes every request at INFO.
logging.getLogger("httpx").setLevel(logging.WARNING)

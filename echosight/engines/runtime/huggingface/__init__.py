"""Models of the Hugging Face hub: where they are, downloading them, the device they run on and its memory."""

"""Models of the Hugging Face hub: finding and downloading them, choosing a device, checking that they fit."""

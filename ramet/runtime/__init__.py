"""The serving half: from a request in text to tokens on a device, and back."""

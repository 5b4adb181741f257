"""The page in the browser, and the HTTP API behind it; off until ``web.enabled``."""

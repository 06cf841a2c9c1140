"""HTTP in fal's words: requests, queue, files, keys. Never imports torch."""

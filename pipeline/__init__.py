"""From a request in the model's words to frames, waveform and a file. Knows nothing of HTTP or fal."""

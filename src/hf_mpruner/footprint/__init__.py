"""What a model takes: bytes on disk and in memory, cache per token, peak memory of a piece of work."""

"""explorer(): the layers of one engine or of two."""

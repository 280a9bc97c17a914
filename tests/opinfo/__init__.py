"""The recording, tried on every operation of PyTorch's own OpInfo database."""

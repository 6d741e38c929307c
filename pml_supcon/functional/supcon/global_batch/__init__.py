"""The loss of a batch that several processes hold together."""

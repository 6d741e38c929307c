"""The loss of a batch that is sharded over several processes."""

"""The evaluation of an encoder: a section each, and the report that shows them."""

"""The losses as pure functions of tensors: torch only, one loss per anchor, no host library."""

from pml_supcon.functional.supcon import AnchorLosses, supcon_loss

__all__ = ["supcon_loss", "AnchorLosses"]  # noqa: RUF022 - the function first, then what it returns

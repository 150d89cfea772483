"""Pictures: tensors to (H, W, 3) uint8 arrays, and those to PNG files.

`grid` draws captioned grids, `chimera` the figures about mixes of two classes, `diagram` the networks.
None imports matplotlib before a figure needs it.
"""

from pegasus_lightning.figures.grid import image_grid, save_png, side_by_side, stack, to_uint8

__all__ = ["image_grid", "save_png", "side_by_side", "stack", "to_uint8"]

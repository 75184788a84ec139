"""The network that a library of blocks imitates, with its weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..data.statistics import config_from_json
from ..messages import quote
from ..nets.library import BlockLibrary, LibraryError
from .find import create_network

__all__ = ["original_network"]


def original_network(library: BlockLibrary, **kwargs: Any) -> nn.Module:
    """Makes the network that a library was trained from, with its weights, images and names of classes.

    Args:
        library: The library.
        **kwargs: Arguments of timm's `create_model`.

    Returns:
        The network, in evaluation mode.

    Raises:
        LibraryError: The network was made with arguments that no file can hold.
    """
    header = library.header
    layout = library.layout
    # Older libraries have none.
    own = header.get("arguments", {})
    if own is None:
        raise LibraryError(
            f"the library {quote(str(library.folder))} is of a {header['network']} made with arguments that no file "
            "can hold; use swap(model, genome, library=…), or a network made with names such as act_layer='silu'"
        )
    arguments = {"num_classes": layout.num_classes, "in_chans": layout.input_size[0], **own, **kwargs}
    model: Any = create_network(header["network"], header["genome"], pretrained=False, **arguments)
    # Of a library of an older version it is that of the network's name.
    model.pretrained_cfg.update(config_from_json(header.get("config", {})))
    model.load_state_dict(library.original_state())
    return model.eval()

"""The zoo for `torch.hub`, one callable an entry.

model = torch.hub.load("…/blockswap_models", "blockswap_wrn40_2_404k", pretrained=True)
"""

import timm as _timm

# torch.hub takes this folder off the path as soon as the entry has been called, so the zoo is imported here.
import blockswap_models.zoo.blockswap  # noqa: F401

dependencies = ["torch", "timm"]


def _entry(name):
    def entry(pretrained=False, **kwargs):
        # Through timm, which keeps the arguments with the model: so that it can be saved and made again.
        return _timm.create_model(name, pretrained=pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = (
        f"{_timm.model_entrypoint(name).__doc__}\n\n"
        "Takes `pretrained` and the arguments of `timm.create_model`, such as `genome`, `num_classes` and `in_chans`."
    )
    return entry


globals().update({name: _entry(name) for name in _timm.list_models("blockswap_*", module="blockswap")})

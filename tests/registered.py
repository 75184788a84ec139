"""Forgets networks that a test has registered with timm."""

from timm.models import _registry

from blockswap_models.layout import _registered
from blockswap_models.zoo.register import _entries


def forget_entry(name):
    """Forgets a network, so that the tests that follow find timm and the zoo as they were."""
    _registry._clear_model_entries(name)
    for names in (_registry._model_entrypoints, _registered, _entries):
        names.pop(name, None)

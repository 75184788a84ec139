"""What `import blockswap_models` offers, and what it does not load."""

import importlib
import pkgutil
import pydoc
import subprocess
import sys

import pytest

import blockswap_models
from blockswap_models import BlockSwapError


def test_dir_shows_the_public_names_and_nothing_else():
    code = "import sys, blockswap_models as b\nassert 'torch' not in sys.modules\nprint(*dir(b))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(blockswap_models.__all__)
    assert {"train", "evaluate", "mask_rcnn", "Candidate", "BlockSwapError", "ExportError"} <= {*dir(blockswap_models)}


def test_every_public_name_is_there():
    pytest.importorskip("torchvision")
    for name in {*blockswap_models.__all__} - {"SEARCH_TYPES"}:
        assert getattr(blockswap_models, name).__name__ == name


def test_help_does_not_list_the_block_types_twice():
    text = pydoc.plain(pydoc.render_doc(blockswap_models.SearchSpace))
    assert "types" in text
    assert "B2G16" not in text


# It says which line, for others to say what to do; it is told as a RecordError or a TrainingError.
WITHIN = {"JsonLineError", "ImageError"}


def test_errors_are_public_and_share_one_base():
    found = {}
    for each in pkgutil.walk_packages(blockswap_models.__path__, "blockswap_models."):
        if each.name != "blockswap_models.__main__":
            module = importlib.import_module(each.name)
            found |= {
                name: value
                for name, value in vars(module).items()
                if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == each.name
            }
    assert {"GenomeError", "TrainingError", "WeightsError"} < found.keys()
    for name in found.keys() - WITHIN:
        assert name in blockswap_models.__all__
        assert issubclass(found[name], BlockSwapError), name
    assert all(issubclass(found[name], RuntimeError) for name in ("SearchError", "WorkerError", "MissingWeightsError"))

"""`python -m blockswap_models` is the command `blockswap`."""

import sys

from .cli.main import main

sys.exit(main())

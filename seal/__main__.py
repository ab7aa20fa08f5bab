"""`python -m seal` is the `seal` command."""

import sys

from seal.command import main

sys.exit(main())

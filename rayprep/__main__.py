"""`python -m rayprep`."""

import sys

from rayprep.cli.main import main

sys.exit(main())

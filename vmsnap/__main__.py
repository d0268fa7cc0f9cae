# SPDX-License-Identifier: Apache-2.0
"""`python -m vmsnap`, for running from a checkout."""

import sys

from vmsnap.cli.main import main

sys.exit(main())

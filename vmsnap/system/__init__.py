# SPDX-License-Identifier: Apache-2.0
"""Linux and systemd: processes, waiting, atomic and trusted files. Knows nothing of vmsnap."""

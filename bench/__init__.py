# SPDX-License-Identifier: Apache-2.0
"""The numbers of vmsnap, measured side by side with qemu-ga and fsfreeze: `python -m bench`."""

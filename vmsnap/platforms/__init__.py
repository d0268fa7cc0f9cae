# SPDX-License-Identifier: Apache-2.0
"""The guest agents that call vmsnap, one module per platform, and what is done with them: `vmsnap
hook`, `vmsnap integrate` and their part of `vmsnap check`."""

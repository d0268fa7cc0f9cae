# SPDX-License-Identifier: Apache-2.0
"""How a release is made: the source archive, the packages, and the signed repositories.

Nothing here is installed. docs/release.md is the procedure.
"""

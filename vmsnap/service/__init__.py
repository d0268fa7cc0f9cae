# SPDX-License-Identifier: Apache-2.0
"""vmsnap-session.service and its clients: a session that is held between `freeze` and `thaw`."""

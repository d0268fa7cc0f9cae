# SPDX-License-Identifier: Apache-2.0
"""One session, from check to report: the order of the phases, the hold, the lock, recovery."""

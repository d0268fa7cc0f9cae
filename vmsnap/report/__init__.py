# SPDX-License-Identifier: Apache-2.0
"""What people read: summaries, tables, the plot, the history."""

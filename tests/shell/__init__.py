# SPDX-License-Identifier: Apache-2.0
"""The shells' completion and the manual, in real shells and with the real man(1)."""

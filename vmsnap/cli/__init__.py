# SPDX-License-Identifier: Apache-2.0
"""The command line: grammar beside each command, and the terminal. Nothing imports it."""

# SPDX-License-Identifier: Apache-2.0
"""Files below /etc -> frozen dataclasses and a list of problems."""

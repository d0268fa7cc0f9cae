# SPDX-License-Identifier: Apache-2.0
"""The tests, one package for each tier."""

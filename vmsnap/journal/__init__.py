# SPDX-License-Identifier: Apache-2.0
"""Structured records for the journal, and the catalogue that explains them."""

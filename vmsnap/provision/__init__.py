# SPDX-License-Identifier: Apache-2.0
"""Configuration from one document or `init`: validate it, write all of it or nothing, remember the
outcome."""

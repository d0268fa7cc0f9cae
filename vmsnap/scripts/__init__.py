# SPDX-License-Identifier: Apache-2.0
"""The administrator's programs, run below supervisors, which are forks of the engine."""

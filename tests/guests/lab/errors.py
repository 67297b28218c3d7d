# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the laboratory raises when a guest does not do what a test needs."""

from __future__ import annotations


class LabError(Exception):
    """A test guest that did not start, did not answer or did not get somewhere in time."""

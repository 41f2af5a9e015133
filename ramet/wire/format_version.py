"""The version of the wire form. A reader refuses every other one."""

from __future__ import annotations

FORMAT = "ramet-program"
VERSION = 1

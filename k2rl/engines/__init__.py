"""Engines that have a process of their own, and how weights get there."""

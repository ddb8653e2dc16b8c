"""Where a run's processes live: workers in child processes of this machine, or in Ray's actors."""

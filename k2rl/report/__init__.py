"""What a run's folder says, to look at: one page of HTML (`page`), or rollouts in a terminal (`terminal`)."""

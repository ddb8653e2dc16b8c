"""The critic: the policy in its judging role. No value network."""

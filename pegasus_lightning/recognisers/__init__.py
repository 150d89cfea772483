"""Binary classifiers for the two classes: they select and guide in searches and report in evaluations."""

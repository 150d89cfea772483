"""Binary classifiers for the two classes: they guide training, select in searches and report in evaluations."""

"""Evaluation of models and chimeras: metrics, controls and scorecards."""

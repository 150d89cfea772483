"""Run folders to one page. It reads files only: neither a model nor a data set is opened."""

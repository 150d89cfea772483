"""HTML report of run folders, from their files only: no model or data set is loaded."""

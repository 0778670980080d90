"""The pages that a reader opens: report.html of one run, of a cross-validation, and of a table alone."""

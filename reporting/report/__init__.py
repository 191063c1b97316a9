"""`results/report.html`: the run as a page to look at, to search and to send to colleagues."""

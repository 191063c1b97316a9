"""What a run says: ledger, page, figures."""

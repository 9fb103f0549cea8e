"""Loading files: `text` and `formats` read, `sending` sends, `ledger` notes what is done, in `rejects` and `checkpoint`."""

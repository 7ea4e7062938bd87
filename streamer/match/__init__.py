"""Whether anything in a query's list matches: the best frame score, compared with the same query's for other clips."""

from __future__ import annotations

from streamer.match.bank import Bank, Calibration, Match
from streamer.match.bank_file import BankError, read_bank, written

__all__ = ["Bank", "BankError", "Calibration", "Match", "read_bank", "written"]

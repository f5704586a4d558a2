"""A proxy that breaks what passes it, as it is told: for tests and benches of anything that speaks HTTP/1.1 to an S3 server on loopback.

``FaultProxy`` starts and steers it, ``Fault`` says what goes wrong and for which requests, ``Exchange`` and ``Stats`` are what was seen.
"""

from tests.faults.control import FaultProxy
from tests.faults.ledger import Exchange, Stats, moved_twice
from tests.faults.script import Fault

__all__ = ["Exchange", "Fault", "FaultProxy", "Stats", "moved_twice"]
